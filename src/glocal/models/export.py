"""Weights leave here: a folder that glocal and timm both load, compared with the model before it counts as written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from glocal.atomic_files import allow_readers
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.errors import ModelError
from glocal.models.adaptation import merge_adapters
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.loading import load


def export_backbone(
    backbone: Backbone,
    folder: str | Path,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    image_size: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model.safetensors` (timm names) and `config.json`; return the folder.

    Each file is written beside its place, flushed to disk and renamed, so an interrupted export leaves the old one.
    The folder is then loaded again and must give the same features within 1e-5; low-rank adapters are merged. timm loads it by
    `timm.create_model("local-dir:FOLDER")` when the model is one of timm's (class token and a position table).

    Args:
        backbone: the model; its mode and device are left as they are.
        folder: where to; made when absent.
        mean: of the pixels the model was trained on.
        std: of the same.
        image_size: side for evaluation; by default that of the position table.
        extra: anything JSON holds, kept in `config.json` under `glocal.extra`.

    Raises:
        ModelError: when the reloaded model differs or the disk refuses the files.
    """
    folder = Path(folder)
    size = image_size or backbone.config.image_size
    fields = {
        "format": 1,
        "backbone": backbone.config.model_dump(mode="json"),
        "mean": list(mean),
        "std": list(std),
        "image_size": size,
        "extra": dict(extra or {}),
    }
    text = json.dumps({"glocal": fields, **_timm_fields(backbone.config, fields)}, indent=2) + "\n"
    ordinary = merge_adapters(backbone)
    # Under timm's own names, which a wrapped model has behind `model.`.
    within = "model." if backbone.config.timm is not None else ""
    state = {n.removeprefix(within): t.detach().cpu().contiguous() for n, t in ordinary.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))
        _replace(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"The export to {folder} failed: {error}. Free space or choose another folder."
        ) from error
    _verify(backbone, folder, size)
    return folder


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        allow_readers(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _verify(backbone: Backbone, folder: Path, size: int) -> None:
    """Compare features of the reloaded model on one fixed input."""
    size = min(size, 4 * backbone.patch_size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, backbone.config.channels, size, size, generator=generator)
    original = Encoder("original", backbone, backbone.embed_dim, backbone.patch_size, size)
    device, dtype = original.device, next(backbone.parameters()).dtype
    seen = original.features(pixels.to(device, dtype))
    reloaded = load(folder).to(device)
    reloaded.backbone.to(dtype)
    again = reloaded.features(pixels.to(device, dtype))
    difference = max(
        float((a.float() - b.float()).abs().max())
        for a, b in ((seen.cls, again.cls), (seen.patches, again.patches))
    )
    if not difference <= 1e-5:
        raise ModelError(
            f"The exported model in {folder} differs from the one in memory by {difference:.2e}. Do not use it; "
            "check the disk, and that no weight is NaN."
        )


def _timm_fields(config: BackboneConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What timm reads to rebuild the model; nothing for models that timm has no class for."""
    if config.timm is not None:
        return {
            "architecture": config.timm,
            "num_classes": 0,
            "num_features": config.embed_dim,
            "model_args": config.timm_arguments,
            "pretrained_cfg": _pretrained_fields(config, fields),
        }
    if (
        not config.is_ours
        or config.pooling != "class_token"
        or config.position != "table"
        or config.norm_eps != 1e-6
    ):
        return {}
    dim, depth, heads = config.dimensions
    swiglu = config.ffn == "swiglu"
    arguments: dict[str, Any] = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.channels,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": config.hidden * (2 if swiglu else 1) / dim,
        "qkv_bias": config.qkv_bias,
        "init_values": config.layer_scale,
        "reg_tokens": config.registers,
        "no_embed_class": not config.table_has_class_row,
    }
    return {
        "architecture": "vit_giant_patch14_dinov2" if swiglu else "vit_small_patch16_224",
        "num_classes": 0,
        "num_features": dim,
        "global_pool": "token",
        "model_args": arguments,
        "pretrained_cfg": _pretrained_fields(config, fields)
        | {"first_conv": "patch_embed.proj", "classifier": "head"},
    }


def _pretrained_fields(config: BackboneConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_classes": 0,
        "input_size": [config.channels, config.image_size, config.image_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": fields["mean"],
        "std": fields["std"],
    }
