"""glocal index MODEL data=... out=INDEX [patches=true] [key=value ...]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from glocal.cli.screen import say, screen
from glocal.cli.settings import CollectionSettings, read_words
from glocal.outside import new_folder


class IndexSettings(CollectionSettings):
    """What `glocal index` takes beside the model. The same command again brings the index up to date: it then holds exactly
    the images of data=; new and changed ones are computed, gone ones are found no more.
    """

    out: str
    """The index's folder."""
    patches: bool = False
    """Index every patch: needed to search by box or patch, and re-ranking reads instead of computing."""
    stored: Literal["float32", "float16", "int8"] = "int8"
    """The numbers of the vectors."""


def run(model: str, words: Sequence[str]) -> None:
    """Make an index, or bring one up to date, and say what it holds."""
    settings = read_words(IndexSettings, words)
    out = new_folder(settings.out, "out")
    from glocal.lookup.index import index

    made = index(model, settings.data, out, **settings.model_dump(exclude={"data", "out"}))
    gone = len(made.alive) - len(made)
    say(screen(), f"{len(made)} images in {out}{f', {gone} gone' if gone else ''}")
    if made.about.unreadable:
        say(
            screen(), f"{len(made.about.unreadable)} unreadable: {', '.join(list(made.about.unreadable)[:5])}"
        )
