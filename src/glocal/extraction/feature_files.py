"""Extracted features on disk: files that are whole or absent, under a folder named by what decides their content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

BadImages = list[tuple[int, str]]
"""Places of unreadable images, each with its reason."""


class FeatureFile(NamedTuple):
    """What one file holds: tensors by name, and the images that could not be read."""

    tensors: dict[str, Tensor]
    bad: BadImages


def key_of(deciding: Sequence[Any]) -> str:
    """A name for what depends on exactly these plain values."""
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:20]


def read_features(path: Path) -> FeatureFile | None:
    """Read a file; None when it is absent or broken, which both mean: compute it again."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return FeatureFile(
                tensors, [(int(i), str(text)) for i, text in json.loads(file.metadata()["bad"])]
            )
    except (SafetensorError, OSError):
        return None


def write_features(path: Path, tensors: Mapping[str, Tensor], bad: BadImages) -> None:
    """Write a file in one move, so that an interruption leaves none cut short."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    save_file({key: t.contiguous() for key, t in tensors.items()}, name, metadata={"bad": json.dumps(bad)})
    Path(name).replace(path)
