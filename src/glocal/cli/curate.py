"""glocal curate MODEL data=... out=FOLDER [clusters=...] [key=value ...]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from glocal.cli.screen import say, screen
from glocal.cli.settings import Count, Seed, Side, read_words
from glocal.config import Config
from glocal.outside import new_folder


class CurateSettings(Config):
    """What `glocal curate` takes beside the model."""

    data: str
    """Images: a folder, a list file, parquet, or a built-in name."""
    out: str
    """A folder for clusters.parquet and the index; `glocal pretrain ... balance=` takes it."""
    clusters: Annotated[int, Field(ge=1)] | None = None
    """How many; null: the square root of the number of images."""
    seed: Seed = 0
    """Of the first centres."""
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
    """Cluster, write, and say how uneven the collection is."""
    settings = read_words(CurateSettings, words)
    out = new_folder(settings.out, "out")
    from glocal.curation.clusters import CLUSTERS, curate

    found = curate(model, settings.data, out, **settings.model_dump(exclude={"data", "out"}))
    sizes = found.sizes()
    say(
        screen(),
        f"{len(found.keys)} images in {len(sizes)} clusters of {sizes.min()} to {sizes.max()} images: {out / CLUSTERS}",
        f"Pretrain with every cluster seen alike: glocal pretrain RECIPE data={settings.data} balance={out} out=...",
    )
