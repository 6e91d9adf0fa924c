"""glocal embed model=... data=... out=FILE.parquet|FILE.npz [what=cls,patches] [size=...]."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from glocal.cli.settings import refuse_rest, require, split_settings

OWN = ("model", "data", "split", "out", "what", "size", "workers")


def run(words: Sequence[str]) -> None:
    """Embed every image of a source into one file."""
    own, rest = split_settings(words, OWN)
    refuse_rest(rest, OWN)
    require(own, "model", "data", "out")
    from glocal.extraction.embedding_file import embed

    written = embed(
        own["model"], own["data"], own["out"], split=own.get("split"), what=tuple(own.get("what", "cls").split(",")),
        size=int(own["size"]) if "size" in own else None, workers=int(own.get("workers", "0")),
    )  # fmt: skip
    Console().print(f"{written} embeddings in {own['out']}", highlight=False)
