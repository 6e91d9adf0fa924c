"""`load`: one entry for our own runs and for released weights in their own layout, with a counted report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glocal.config import validate
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.errors import ModelError
from glocal.models.checkpoint_files import RawState, read_folder_state, read_state
from glocal.models.encoder import Encoder, LoadReport, shorten
from glocal.models.layouts import Converted, convert, detect, transformers_layout
from glocal.models.position import resample_table
from glocal.models.vit import BackboneConfig, VisionTransformer

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def load(spec: str | Path, settings: Mapping[str, Any] | None = None) -> Encoder:
    """Load a frozen backbone in float32 on the CPU.

    Args:
        spec: a glocal run folder, an exported folder, a transformers or timm folder, a checkpoint file (.pth, .pt,
            .bin, .safetensors) in a layout of `glocal.models.layouts`, or `timm:NAME` (needs the timm extra).
        settings: `BackboneConfig` values that shapes don't show, such as {"num_heads": 8}.

    Raises:
        ModelError: when nothing is there, the layout is unknown, or any weight is missing or left over.
    """
    text = str(spec)
    if text.startswith("timm:"):
        from glocal.models.timm_backbone import load_timm

        return load_timm(text.removeprefix("timm:"))
    path = Path(spec).expanduser()
    if path.is_dir():
        return _load_folder(path, settings or {})
    if not path.exists():
        raise ModelError(
            f"There is no model at '{text}'. Give a run folder, an exported folder, a checkpoint file "
            f"({', '.join(FILE_SUFFIXES)}) or timm:NAME."
        )
    if path.suffix not in FILE_SUFFIXES:
        raise ModelError(
            f"'{text}' is no weight file that glocal reads ({', '.join(FILE_SUFFIXES)}) and no folder."
        )
    raw = read_state(path)
    layout = detect(raw.state, wrapper=raw.network, safetensors=raw.safetensors)
    return _build(convert(raw.state, layout, settings or {}), path.stem, raw.network)


def load_into(backbone: VisionTransformer, spec: str | Path) -> LoadReport:
    """Start a backbone from other weights, resizing the position table when its grid differs.

    Raises:
        ModelError: when architectures differ, naming what does.
    """
    encoder = load(spec)
    if not isinstance(encoder.backbone, VisionTransformer) or encoder.report is None:
        raise ModelError(f"Training can't start from '{spec}': its model is no glocal Vision Transformer.")
    state = encoder.backbone.state_dict()
    if backbone.pos_embed is not None and "pos_embed" in state:
        state["pos_embed"] = _fit_table(state["pos_embed"], encoder.backbone.config, backbone.config)
    own = backbone.state_dict()
    wrong = [n for n in {**own, **state} if n not in own or n not in state or own[n].shape != state[n].shape]
    if wrong:
        raise ModelError(
            f"'{spec}' has another architecture than this run's backbone; they differ in {shorten(sorted(wrong))}. "
            f"Its configuration: {encoder.backbone.config.model_dump(exclude_defaults=True)}."
        )
    backbone.load_state_dict(state)
    return encoder.report


def _load_folder(folder: Path, settings: Mapping[str, Any]) -> Encoder:
    if (folder / "export" / "config.json").is_file():
        return _load_folder(folder / "export", settings)
    if not (folder / "config.json").is_file():
        files = sorted(p.name for p in folder.iterdir() if p.suffix in FILE_SUFFIXES)
        hint = f" It holds {shorten(files)}: give one of these files." if files else ""
        raise ModelError(
            f"'{folder}' is no model folder: neither export/config.json nor config.json is there.{hint}"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{folder / 'config.json'} is no valid JSON: {error}.") from error
    name = folder.parent.name if folder.name == "export" else folder.name
    raw = read_folder_state(folder)
    if "glocal" in config:
        return _load_export(config["glocal"], raw, name, settings)
    if "model_type" in config:
        return _load_transformers(folder, config, raw, settings)
    encoder = _build(convert(raw.state, detect(raw.state, safetensors=True), settings), name, raw.network)
    pretrained = config.get("pretrained_cfg", config)
    encoder.mean, encoder.std = _statistics(pretrained.get("mean"), pretrained.get("std"))
    return encoder


def _load_export(config: Mapping[str, Any], raw: RawState, name: str, settings: Mapping[str, Any]) -> Encoder:
    """What `export_backbone` wrote."""
    backbone = validate(BackboneConfig, {**config["backbone"], **settings})
    state = {key: tensor.float() for key, tensor in raw.state.items()}
    encoder = _build(Converted("glocal", backbone, state), name, "")
    encoder.mean, encoder.std = _statistics(config.get("mean"), config.get("std"))
    encoder.image_size = int(config["image_size"])
    return encoder


def _load_transformers(
    folder: Path, config: Mapping[str, Any], raw: RawState, settings: Mapping[str, Any]
) -> Encoder:
    layout, stated = transformers_layout(config)
    encoder = _build(convert(raw.state, layout, {**stated, **settings}), folder.name, raw.network)
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        values = json.loads(processor.read_text(encoding="utf-8"))
        encoder.mean, encoder.std = _statistics(values.get("image_mean"), values.get("image_std"))
        size = values.get("crop_size") or values.get("size") or {}
        height = size.get("height") if isinstance(size, Mapping) else size
        if height and height % encoder.patch_size == 0:
            encoder.image_size = int(height)
    return encoder


def _build(converted: Converted, name: str, network: str) -> Encoder:
    """Make the backbone and fill it, all or nothing."""
    config = converted.config
    with torch.device("meta"):
        backbone = VisionTransformer(config)
    report = _compare(converted, backbone, network)
    if report.missing or report.unexpected:
        hint = ""
        if config.pooling == "class_attention" and any(n.startswith("aggregator.") for n in report.missing):
            hint = " The class-attention head is not in this file; load the full checkpoint that holds it."
        raise ModelError(f"'{name}' would load only in part, so it is refused. {report.summary()}.{hint}")
    backbone.load_state_dict(converted.state, assign=True)
    backbone.requires_grad_(False).eval()
    # DINOv2's tables cover 518 pixels, but that family is evaluated at 224.
    size = config.image_size if config.image_size <= 448 else 224 // config.patch_size * config.patch_size
    return Encoder(name, backbone, backbone.embed_dim, backbone.patch_size, size, report=report)


def _compare(converted: Converted, backbone: VisionTransformer, network: str) -> LoadReport:
    wanted, given = backbone.state_dict(), converted.state
    wrong = [f"{n} {tuple(given[n].shape)}, not {tuple(wanted[n].shape)}" for n in wanted
             if n in given and given[n].shape != wanted[n].shape]  # fmt: skip
    if wrong:
        raise ModelError(
            f"Weights have other shapes than the {converted.layout} layout says: {shorten(wrong)}."
        )
    return LoadReport(
        converted.layout,
        matched=tuple(n for n in wanted if n in given),
        missing=tuple(n for n in wanted if n not in given),
        unexpected=tuple(n for n in given if n not in wanted),
        ignored=converted.ignored,
        network=network,
    )


def _statistics(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(mean or IMAGENET_MEAN), tuple(std or IMAGENET_STD)


def _fit_table(table: Tensor, source: BackboneConfig, target: BackboneConfig) -> Tensor:
    """Resize a table's patch rows to the target's grid; class rows are kept."""
    old, new = source.image_size // source.patch_size, target.image_size // target.patch_size
    class_rows = table.shape[1] - old * old
    patches = resample_table(table[0, class_rows:].reshape(old, old, -1), (new, new)).reshape(
        1, new * new, -1
    )
    return torch.cat([table[:, :class_rows], patches], dim=1)
