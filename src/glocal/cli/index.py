"""glocal index MODEL data=... out=INDEX [patches=true] [key=value ...]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from glocal.cli.screen import say, screen
from glocal.cli.settings import Count, Side, read_words
from glocal.config import Config
from glocal.outside import new_folder


class IndexSettings(Config):
    """What `glocal index` takes beside the model. The same command again brings the index up to date."""

    data: str
    """Images: a folder, a list file, parquet, or a built-in name. The index holds exactly these: new and changed ones are
    computed, gone ones are found no more."""
    out: str
    """The index's folder."""
    patches: bool = False
    """Index every patch: needed to search by box or patch, and re-ranking reads instead of computing."""
    stored: Literal["float32", "float16", "int8"] = "int8"
    """The numbers of the vectors."""
    split: str | None = None
    """train, val, test or all; null: everything, or the training images where there are splits."""
    size: Side | None = None
    """Pixels of the square into which images are squashed; null: the model's own."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: the first GPU where there is one."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the forward pass; auto: bfloat16 where the processor has the instructions."""
    workers: Count = 0
    """Processes that decode."""


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
