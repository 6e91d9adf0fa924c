"""Extracted features on disk: files that are whole or absent, under a folder named by what decides their content."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glocal.atomic_files import write_atomically

BadImages = list[tuple[int, str]]
"""Places of unreadable images, each with its reason."""
KEPT = (".safetensors", ".jsonl")
"""Endings of what extraction keeps: features and journals."""

logger = logging.getLogger("glocal.extraction")


class FeatureFile(NamedTuple):
    """What one file holds: tensors by name, and the images that could not be read."""

    tensors: dict[str, Tensor]
    bad: BadImages


def key_of(deciding: Sequence[Any]) -> str:
    """A name for what depends on exactly these plain values."""
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:20]


def read_features(path: Path) -> FeatureFile | None:
    """Read a file; None when it is absent or damaged (which is said), which both mean: compute it again."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = file.metadata()
        bad = [(int(i), str(text)) for i, text in json.loads(metadata["bad"])]
        if metadata["checksum"] == _checksum(tensors, bad):
            return FeatureFile(tensors, bad)
        reason = "its checksum is another"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    logger.warning("%s is damaged (%s); its features are computed again", path, reason)
    return None


def write_features(path: Path, tensors: Mapping[str, Tensor], bad: BadImages) -> None:
    """Write a file in one move, with a checksum over all it holds."""
    from safetensors.torch import save

    whole = {key: t.contiguous() for key, t in tensors.items()}
    content = save(whole, metadata={"bad": json.dumps(bad), "checksum": _checksum(whole, bad)})
    write_atomically(path, lambda file: file.write(content))


def clear_kept(folder: Path) -> tuple[int, int]:
    """Remove the kept features and journals below a folder, and folders left empty; (files, bytes) that were there.

    Nothing else is touched. Point it at `OUT/features`, or at an `out=` that holds one.

    >>> clear_kept(Path("evaluation/a"))  # doctest: +SKIP
    (12, 104857600)
    """
    root = folder / "features" if (folder / "features").is_dir() else folder
    files = [path for path in root.rglob("*") if path.suffix in KEPT and path.is_file()]
    size = sum(path.stat().st_size for path in files)
    for path in files:
        path.unlink()
    for below in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
        if not any(below.iterdir()):
            below.rmdir()
    return len(files), size


def _checksum(tensors: Mapping[str, Tensor], bad: BadImages) -> str:
    """Hash of names, shapes, types and bytes: 1 GB/s, a tenth of what decoding to them would take."""
    digest = hashlib.blake2b(json.dumps(bad).encode(), digest_size=12)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
