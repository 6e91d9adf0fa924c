"""Folders that hold a model: our runs and exports, timm's, transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glocal.config import validate
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.errors import ModelError
from glocal.models.backbone import BackboneConfig
from glocal.models.checkpoint_files import RawState, read_folder_state, read_json
from glocal.models.encoder import Encoder, shorten
from glocal.models.layouts import convert, detect
from glocal.models.own_checkpoints import OwnModel, find_checkpoint
from glocal.models.transformers_layouts import square_side, transformers_layout
from glocal.models.weight_files import FILE_SUFFIXES, build_encoder, build_own, load_file


def load_folder(folder: Path, settings: Mapping[str, Any]) -> Encoder:
    """The model of a folder, by what its config.json says; a run's export before its checkpoints.

    Raises:
        ModelError: when no file in it says what the model is.
    """
    if (folder / "export" / "config.json").is_file():
        return load_folder(folder / "export", settings)
    if not (folder / "config.json").is_file():
        checkpoint = find_checkpoint(folder)
        if checkpoint is not None:
            return load_file(checkpoint, settings)
        files = sorted(p.name for p in folder.iterdir() if p.suffix in FILE_SUFFIXES)
        hint = f" It holds {shorten(files)}: give one of these files." if files else ""
        raise ModelError(
            f"'{folder}' is no model folder: neither export/config.json nor config.json nor checkpoints/ is there.{hint}"
        )
    config = read_json(folder / "config.json")
    name = folder.resolve().parent.name if folder.name == "export" else folder.resolve().name
    raw = read_folder_state(folder)
    if "glocal" in config:
        return build_own(_read_export(config["glocal"], raw), name, "glocal", folder)
    if "model_type" in config:
        return _load_transformers(folder, config, raw, name, settings)
    return _load_timm_folder(config, raw, name, settings)


def _read_export(config: Mapping[str, Any], raw: RawState) -> OwnModel:
    """What `export_backbone` wrote."""
    return OwnModel(
        validate(BackboneConfig, config["backbone"]),
        raw.state,
        *_statistics(config.get("mean"), config.get("std")),
        int(config["image_size"]),
        config.get("extra") or {},
    )


def _load_timm_folder(
    config: Mapping[str, Any], raw: RawState, name: str, settings: Mapping[str, Any]
) -> Encoder:
    pretrained = config.get("pretrained_cfg", config)
    if "input_size" in pretrained:
        square_side(list(pretrained["input_size"])[-2:])
    stated = {"num_heads": heads} if (heads := config.get("model_args", {}).get("num_heads")) else {}
    try:
        layout = detect(raw.state, safetensors=True)
        encoder = build_encoder(convert(raw.state, layout, {**stated, **settings}), name, raw.network)
    except ModelError:
        if "architecture" not in config:
            raise
        from glocal.models.timm_loading import load_timm_state

        arguments = config.get("model_args", {})
        encoder = load_timm_state(config["architecture"], arguments, raw.state, name)
    encoder.mean, encoder.std = _statistics(pretrained.get("mean"), pretrained.get("std"))
    encoder.provenance = {"architecture": config.get("architecture"), "licence": pretrained.get("license")}
    return encoder


def _load_transformers(
    folder: Path, config: Mapping[str, Any], raw: RawState, name: str, settings: Mapping[str, Any]
) -> Encoder:
    layout, stated = transformers_layout(config)
    encoder = build_encoder(convert(raw.state, layout, {**stated, **settings}), name, raw.network)
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        values = read_json(processor)
        encoder.mean, encoder.std = _statistics(values.get("image_mean"), values.get("image_std"))
        size = values.get("crop_size") or values.get("size") or {}
        height = size.get("height") if isinstance(size, Mapping) else size
        if height and height % encoder.patch_size == 0:
            encoder.image_size = int(height)
    encoder.provenance = {"architecture": config["model_type"], "licence": _card_licence(folder)}
    return encoder


def _card_licence(folder: Path) -> str | None:
    """The licence that a model card's front matter names."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("license:")), None)


def _statistics(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of a channel's pixels; ImageNet's where a folder doesn't say."""
    means = tuple(float(value) for value in mean or IMAGENET_MEAN)
    deviations = tuple(float(value) for value in std or IMAGENET_STD)
    if min(deviations) <= 0:
        raise ModelError(
            f"A deviation of {deviations} can't be divided by; mend std in the model's configuration."
        )
    return means, deviations
