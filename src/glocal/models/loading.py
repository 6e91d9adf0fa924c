"""`load`: one entry for our own runs and for released weights in their own layout, with a counted report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glocal.errors import ModelError
from glocal.models.adapter_files import is_adapter, load_adapter
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.device import choose_device
from glocal.models.encoder import Encoder, shorten
from glocal.models.model_folders import load_folder
from glocal.models.position import resample_table
from glocal.models.precision import AskedPrecision, settle_precision
from glocal.models.weight_files import FILE_SUFFIXES, load_file
from glocal.outside import given_path, reading


def load(spec: str | Path, settings: Mapping[str, Any] | None = None) -> Encoder:
    """Load a frozen backbone in float32 on the CPU.

    Args:
        spec: a glocal run folder, one of its checkpoints, an exported folder, an adapter file that `adapt=lora` left, a
            transformers or timm folder, a weight file (.pth, .pt, .bin, .safetensors) in a layout of
            `glocal.models.layouts`, or `timm:NAME` (needs the timm extra; `timm-untrained:NAME` for the
            architecture alone). A run's export goes before its checkpoints,
            and of a checkpoint's networks the teacher is taken.
        settings: `BackboneConfig` values that shapes don't show, such as {"num_heads": 8}; not for what glocal wrote,
            which says itself what it is.

    Raises:
        ModelError: when nothing is there, the layout is unknown, or any weight is missing or left over.

    >>> load("runs/a/checkpoints/step-500.pt").name  # doctest: +SKIP
    'a-step-500'
    """
    cure = "Its weights or its configuration are not what their names promise; fetch or export it again."
    with reading(spec, "a model", ModelError, cure):
        return _load(str(spec), settings or {})


def load_on(model: str | Path, device: str = "auto", precision: AskedPrecision = "float32") -> Encoder:
    """Load a frozen backbone to compute on this device, in this precision; auto: bfloat16 where it is native.

    Raises:
        ConfigError: when no such device is here; before the model is read.
        ModelError: as `load`.
    """
    place = choose_device(device)
    encoder = load(model)
    encoder.precision = settle_precision(precision, place)
    return encoder.to(place)


def load_into(backbone: Backbone, encoder: Encoder) -> None:
    """Start a backbone from other weights, resizing the position table when its grid differs.

    Raises:
        ModelError: when architectures differ, naming what does.
    """
    if not isinstance(encoder.backbone, Backbone):
        raise ModelError(f"Training can't start from '{encoder.name}': it is no backbone that glocal trains.")
    state = encoder.backbone.state_dict()
    if backbone.config.is_ours and backbone.config.position == "table" and "pos_embed" in state:
        state["pos_embed"] = _fit_table(state["pos_embed"], encoder.backbone.config, backbone.config)
    expected = backbone.state_dict()
    wrong = [
        n
        for n in {**expected, **state}
        if n not in expected or n not in state or expected[n].shape != state[n].shape
    ]
    if wrong:
        raise ModelError(
            f"'{encoder.name}' has another architecture than this run's backbone; they differ in "
            f"{shorten(sorted(wrong))}. Its configuration: {encoder.backbone.config.model_dump(exclude_defaults=True)}."
        )
    backbone.load_state_dict(state)


def _load(spec: str, settings: Mapping[str, Any]) -> Encoder:
    source, colon, name = spec.partition(":")
    if colon and source in ("timm", "timm-untrained"):
        from glocal.models.timm_loading import load_timm

        return load_timm(name, pretrained=source == "timm")
    path = given_path(spec, "model", ModelError)
    if path.is_dir():
        return load_folder(path, settings)
    if not path.exists():
        raise ModelError(
            f"There is no model at '{spec}'. Give a run folder, an exported folder, a checkpoint file "
            f"({', '.join(FILE_SUFFIXES)}) or timm:NAME."
        )
    if path.suffix == ".safetensors" and is_adapter(path):
        return load_adapter(path, load)
    return load_file(path, settings)


def _fit_table(table: Tensor, source: BackboneConfig, target: BackboneConfig) -> Tensor:
    """Resize a table's patch rows to the target's grid; class rows are kept."""
    old, new = source.image_size // source.patch_size, target.image_size // target.patch_size
    class_rows = table.shape[1] - old * old
    patches = resample_table(table[0, class_rows:].reshape(old, old, -1), (new, new)).reshape(
        1, new * new, -1
    )
    return torch.cat([table[:, :class_rows], patches], dim=1)
