"""glocal check file.py:NAME [data=...]: the suite that everything of that kind in the package passes."""

from __future__ import annotations

from collections.abc import Sequence

from glocal.cli.screen import say, screen
from glocal.cli.settings import read_words
from glocal.config import Config
from glocal.errors import ConfigError


class CheckSettings(Config):
    """What `glocal check` takes."""

    data: str | None = None
    """Images that a protocol is tried on; null: a few digits."""


def run(words: str, settings: Sequence[str]) -> None:
    """Find the suite, run it and say what is kept and what is not.

    Raises:
        ConfigError: naming how many promises are broken.
    """
    options = read_words(CheckSettings, settings)
    from glocal.conformance.subjects import find_suite

    console, suite = screen(), find_suite(words, options.data)
    say(console, f"{words}: {suite.what}", style="bold")
    broken = 0
    for outcome in suite.run():
        broken += not outcome.kept
        say(
            console,
            f"{'kept  ' if outcome.kept else 'BROKEN'}  {outcome.promise}",
            style=None if outcome.kept else "red",
        )
        if outcome.trouble is not None:
            say(console, f"        {outcome.trouble}")
    if broken:
        raise ConfigError(f"{words} breaks {broken} of {len(suite.checks)} promises of every {suite.what}.")
