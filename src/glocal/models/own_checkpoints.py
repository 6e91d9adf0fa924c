"""Our own training checkpoints: read exactly as their configuration says, nothing inferred from shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from glocal.config import validate
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.errors import ModelError
from glocal.models.adaptation import AdaptConfig, fold_adapters
from glocal.models.backbone import BackboneConfig

_BACKBONE = "backbone."


@dataclass(frozen=True)
class OwnModel:
    """What an export or a checkpoint of ours holds of one backbone."""

    config: BackboneConfig
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    extra: Mapping[str, Any]


def is_own_checkpoint(raw: Any) -> bool:
    """Whether a file holds a training state of ours: a format number and both networks, backbone and heads apart."""
    return (
        isinstance(raw, Mapping)
        and isinstance(raw.get("format"), int)
        and all(
            isinstance(raw.get(network), Mapping) and any(str(n).startswith(_BACKBONE) for n in raw[network])
            for network in ("student", "teacher")
        )
    )


def read_own_checkpoint(raw: Mapping[str, Any], path: Path) -> OwnModel:
    """The teacher's backbone of a training state.

    From format 2 on the file carries its configuration and the pixels' statistics. Files of format 1 do not; they are
    read through the `config.yaml` of the run folder that they lie in, and where that names no statistics the run was
    trained on ImageNet's.

    Raises:
        ModelError: when a format-1 file lies outside its run folder.
    """
    config = raw.get("config")
    config = json.loads(config) if isinstance(config, str) else config
    if config is None:
        config = _run_configuration(path)
    backbone = validate(BackboneConfig, config["backbone"])
    sides = [side for group in config["views"].values() for side in _sides(group["size"])]
    state = {n.removeprefix(_BACKBONE): t for n, t in raw["teacher"].items() if n.startswith(_BACKBONE)}
    if any(name.endswith(".down") for name in state):
        adapted = validate(AdaptConfig, config["adapt"])
        state = fold_adapters(state, adapted.alpha / adapted.rank)
    return OwnModel(
        backbone,
        state,
        tuple(raw.get("mean") or config.get("mean") or IMAGENET_MEAN),
        tuple(raw.get("std") or config.get("std") or IMAGENET_STD),
        int(raw.get("image_size") or max(sides)),
        {"recipe": config.get("recipe"), "step": raw.get("step"), "data": config.get("data")},
    )


def find_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder or of its `checkpoints/`: last.pt, else the highest step."""
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if (inside / "last.pt").is_file():
        return inside / "last.pt"
    numbered = {
        int(file.stem.removeprefix("step-")): file
        for file in inside.glob("step-*.pt")
        if file.stem.removeprefix("step-").isdigit()
    }
    return numbered[max(numbered)] if numbered else None


def _run_configuration(path: Path) -> dict[str, Any]:
    file = path.resolve().parent.parent / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(
            f"{path} is a glocal checkpoint of format 1, which doesn't say what its backbone is, and {file} can't be "
            f"read ({type(error).__name__}). Put the file back into checkpoints/ of its run folder, or load that run's "
            "export/."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} holds no run configuration, which {path} needs.")
    return config


def _sides(size: int | list[int]) -> list[int]:
    return [size] if isinstance(size, int) else list(size)
