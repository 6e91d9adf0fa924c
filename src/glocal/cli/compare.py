"""glocal compare RUN RUN ... [to=FILE.csv|FILE.md|FILE.tex]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import IO, Literal

from glocal.atomic_files import write_atomically
from glocal.cli.screen import say, screen
from glocal.errors import ConfigError

FORMS: dict[str, Literal["csv", "markdown", "latex"]] = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
"""Endings of a table's file."""


def run(runs: Sequence[str]) -> None:
    """Print the results of several folders side by side, or write them to a file."""
    from glocal.evaluation.compare import as_tables, as_text, compare
    from glocal.outside import given_path

    files = [word.removeprefix("to=") for word in runs if word.startswith("to=")]
    comparison = compare([given_path(run, "run") for run in runs if not run.startswith("to=")])
    if not files:
        screen().print(*as_tables(comparison), sep="\n")
    for file in files:
        path = given_path(file, "to")
        if path.suffix not in FORMS:
            raise ConfigError(f"to={file}: the ending must be {', '.join(FORMS)}.")
        content = as_text(comparison, FORMS[path.suffix]).encode()
        write_atomically(path, partial(_write, content))
        say(screen(), f"table in {path}")


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)
