"""glocal curate MODEL data=... out=FOLDER [clusters=...] [key=value ...]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from glocal.cli.screen import say, screen
from glocal.cli.settings import CollectionSettings, Seed, read_words
from glocal.outside import new_folder


class CurateSettings(CollectionSettings):
    """What `glocal curate` takes beside the model."""

    out: str
    """A folder for clusters.parquet and the index; `glocal pretrain ... balance=` takes it."""
    clusters: Annotated[int, Field(ge=1)] | None = None
    """How many; null: the square root of the number of images."""
    seed: Seed = 0
    """Of the first centres."""


def run(model: str, words: Sequence[str]) -> None:
    """Cluster, write, and say how uneven the collection is."""
    settings = read_words(CurateSettings, words)
    out = new_folder(settings.out, "out")
    from glocal.curation.clusters import CLUSTERS, curate

    clusters = curate(model, settings.data, out, **settings.model_dump(exclude={"data", "out"}))
    sizes = clusters.sizes()
    say(
        screen(),
        f"{len(clusters.keys)} images in {len(sizes)} clusters of {sizes.min()} to {sizes.max()} images: {out / CLUSTERS}",
        f"Pretrain with every cluster seen alike: glocal pretrain RECIPE data={settings.data} balance={out} out=...",
    )
