"""How long work over a collection is carried out: cache, workers, portions, progress. Never what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Work:
    """How an evaluation is carried out. Changes speed and memory, never a number."""

    cache: Path | None = None
    """Folder for extracted features; null keeps none. Entries are keyed by model, data and settings."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    batch_size: int = 64
    """Images handed from one step of a pipeline to the next. Arithmetic is cut the same way whatever it is."""
    progress: bool = True
    """Show images/s and time left."""
    together: bool = False
    """Every process of the group does this work: each computes its share of the features and all get the whole. Patches
    are shared through `cache`, so that all must see one folder; without it each computes all of them."""
