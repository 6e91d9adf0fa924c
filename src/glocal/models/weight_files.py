"""From one weight file to an encoder: all of its weights, or a sentence that says which do not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glocal.errors import ModelError
from glocal.models.backbone import Backbone
from glocal.models.build import build_backbone
from glocal.models.checkpoint_files import pick_state, read_pickle, read_state
from glocal.models.encoder import Encoder, LoadReport, shorten
from glocal.models.layouts import Converted, convert, detect
from glocal.models.own_checkpoints import OwnModel, is_own_checkpoint, read_own_checkpoint
from glocal.own_code import refuse_code_beside

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def load_file(path: Path, settings: Mapping[str, Any]) -> Encoder:
    """One weight file: a checkpoint of ours, or any layout that is known."""
    if path.suffix not in FILE_SUFFIXES:
        raise ModelError(
            f"'{path}' is no weight file that glocal reads ({', '.join(FILE_SUFFIXES)}) and no folder."
        )
    if path.suffix == ".safetensors":
        raw = read_state(path)
    else:
        content = read_pickle(path)
        if is_own_checkpoint(content):
            run = path.resolve().parent.parent.name if path.resolve().parent.name == "checkpoints" else ""
            name = f"{run}-{path.stem}" if run else path.stem
            return build_own(read_own_checkpoint(content, path), name, "glocal checkpoint", path)
        raw = pick_state(content, path)
    layout = detect(raw.state, wrapper=raw.network, safetensors=raw.safetensors)
    return build_encoder(convert(raw.state, layout, settings), path.stem, raw.network)


def build_encoder(converted: Converted, name: str, network: str) -> Encoder:
    """Make the backbone and fill it, all or nothing.

    Raises:
        ModelError: for weights of other shapes, missing or left over, by name.
    """
    config = converted.config
    # timm's models, and maybe a person's own, compute with numbers while they are made; the meta device has none.
    with torch.device("meta") if config.is_ours else contextlib.nullcontext():
        backbone = build_backbone(config)
    report = _compare(converted, backbone, network)
    if report.missing or report.unexpected:
        raise ModelError(f"'{name}' would load only in part, so it is refused. {report.summary()}.")
    backbone.load_state_dict(converted.state, assign=True)
    backbone.requires_grad_(False).eval()
    # DINOv2's tables cover 518 pixels, but that family is evaluated at 224.
    size = config.image_size if config.image_size <= 448 else 224 // config.patch_size * config.patch_size
    return Encoder(name, backbone, backbone.embed_dim, backbone.patch_size, size, report=report)


def build_own(saved: OwnModel, name: str, layout: str, place: Path) -> Encoder:
    """An encoder of what glocal itself wrote at `place`.

    Raises:
        ModelError: when it asks for code that lies there, too.
    """
    refuse_code_beside(saved.config.own, place)
    within = "model." if saved.config.timm is not None else ""
    state = {
        key if key.startswith(within) else within + key: tensor.float()
        if tensor.is_floating_point()
        else tensor
        for key, tensor in saved.state.items()
    }
    encoder = build_encoder(Converted(layout, saved.config, state), name, "")
    encoder.mean, encoder.std, encoder.image_size = saved.mean, saved.std, saved.image_size
    encoder.provenance = dict(saved.extra)
    return encoder


def _compare(converted: Converted, backbone: Backbone, network: str) -> LoadReport:
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
        note=converted.note,
    )
