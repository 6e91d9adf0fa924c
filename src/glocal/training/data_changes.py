"""What became of the images since a run was stopped: the same, more of them, or something that can't be continued."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64

from glocal.atomic_files import write_atomically
from glocal.data import ImageSource
from glocal.errors import TrainingError
from glocal.outside import reading


def write_image_names(path: Path, source: ImageSource) -> None:
    """Keep a 64-bit hash of every image's name: 8 bytes and about 3 microseconds an image."""
    hashes = _hashes(source)
    write_atomically(path, lambda file: np.save(file, hashes))


def count_added(source: ImageSource, fingerprint: str, state: dict[str, Any], names: Path) -> int:
    """How many images were added since the checkpoint `state` was written; all that it knew must still be there.

    Args:
        source: the images of `data=`.
        fingerprint: its own.
        state: the checkpoint.
        names: what `write_image_names` wrote when the run was started.

    Raises:
        TrainingError: when images are missing, when the same names have other sizes or another order, and when `names` is
            damaged, so that nobody can tell.
    """
    if state["data_fingerprint"] == fingerprint:
        return 0
    before, now = state["images_of_data"], len(source)
    known = _known(names, before)
    present = _hashes(source)
    missing = int((~np.isin(known, present)).sum())
    added = len(present) - len(known)
    if not missing and added > 0:
        return added
    seen = f"The run was on {before} images and data= now holds {now}"
    if missing:
        seen += f"; {missing} of those it knew are missing"
    elif now == before:
        seen += " of the same names, but their sizes or their order have changed"
    raise TrainingError(
        f"{seen}. Images may be added to a run, not changed or taken away: restore the data, or start a new run with "
        "init= set to this one."
    )


def _known(names: Path, count: int) -> UInt64[np.ndarray, " images"]:
    """The hashes of so many images."""
    cure = "Restore the images as they were at the start, or start a new run with init= set to this one."
    with reading(names, "the hashes of the images of this run", TrainingError, cure):
        known: UInt64[np.ndarray, " images"] = np.load(names, allow_pickle=False)
        if known.dtype != np.uint64 or known.shape != (count,):
            raise ValueError(f"expected {count} of 8 bytes, got {known.dtype} of shape {known.shape}")
    return known


def _hashes(source: ImageSource) -> UInt64[np.ndarray, " images"]:
    keys = (source.key(index).encode("utf-8", "surrogateescape") for index in range(len(source)))
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    return np.sort(np.frombuffer(digests, dtype=np.uint64))
