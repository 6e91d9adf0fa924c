"""glocal embed model=... data=... out=FILE.parquet|FILE.npz [what=cls,mean_patches] [size=...]."""

from __future__ import annotations

from collections.abc import Sequence

from glocal.cli.screen import say, screen
from glocal.cli.settings import Count, Side, read_words
from glocal.config import Config
from glocal.outside import new_file


class EmbedSettings(Config):
    """What `glocal embed` takes."""

    model: str
    """A run folder, an exported folder, a weight file or timm:NAME."""
    data: str
    """Images: a folder, a list file, parquet, or a built-in name."""
    out: str
    """The file to write, .parquet or .npz."""
    split: str | None = None
    """train, val, test or all; null: everything, or the training images where there are splits."""
    what: str = "cls"
    """Embeddings of an image, with commas between them: cls, mean_patches."""
    size: Side | None = None
    """Pixels at which images are seen; null: the model's own."""
    workers: Count = 0
    """Processes that decode."""


def run(words: Sequence[str]) -> None:
    """Embed every image of a source into one file."""
    settings = read_words(EmbedSettings, words)
    out = new_file(settings.out, "out", (".parquet", ".npz"))
    from glocal.extraction.embedding_file import embed

    written = embed(
        settings.model, settings.data, str(out), split=settings.split, what=tuple(settings.what.split(",")),
        size=settings.size, workers=settings.workers,
    )  # fmt: skip
    say(screen(), f"{written} embeddings in {out}")
