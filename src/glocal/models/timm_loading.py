"""timm's models as encoders: by name, or from a folder of weights; plain Vision Transformers become ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glocal.errors import ModelError
from glocal.models.encoder import Encoder, LoadReport
from glocal.models.layouts import convert
from glocal.models.timm_backbone import TimmBackbone, create_timm
from glocal.models.weight_files import build_encoder

# Tried in turn: how timm's families are told to take images of any size.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def load_timm(name: str, pretrained: bool = True) -> Encoder:
    """Load timm's model of this name (timm may download its weights: that is what the name asks for).

    A plain Vision Transformer becomes ours when it gives equal features; everything else stays timm's, wrapped.

    Raises:
        ModelError: when timm is absent, the name unknown, or the model gives no grid of patches.
    """
    model, arguments = _create_for_any_size(name, pretrained)
    wrapped = TimmBackbone(model, name, arguments).eval().requires_grad_(False)
    import timm

    data: dict[str, Any] = timm.data.resolve_model_data_config(model)
    said = f"timm:{name}" if pretrained else f"timm-untrained:{name}"
    report = LoadReport("timm", tuple(wrapped.state_dict()), note=f"trained as timm's {type(model).__name__}")
    encoder = _as_ours(wrapped, said) or Encoder(
        said, wrapped, wrapped.embed_dim, wrapped.patch_size, 0, report=report
    )
    encoder.image_size = max(1, int(data["input_size"][-1]) // encoder.patch_size) * encoder.patch_size
    encoder.mean, encoder.std = tuple(data["mean"]), tuple(data["std"])
    about = getattr(model, "pretrained_cfg", None) or {}
    encoder.provenance = {"architecture": name, "licence": about.get("license") if pretrained else None}
    return encoder


def load_timm_state(
    name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor], said: str
) -> Encoder:
    """A timm folder's weights in the architecture that it names.

    Raises:
        ModelError: when timm is absent, or weights are missing or left over.
    """
    backbone = TimmBackbone(create_timm(name, False, arguments), name, arguments)
    wanted = backbone.model.state_dict()
    given = {n: t for n, t in state.items() if n in wanted or not n.startswith(("head.", "fc."))}
    wrong = sorted(wanted.keys() ^ given.keys())
    if wrong:
        raise ModelError(
            f"'{said}' doesn't hold the weights of timm's {name}; they differ in {', '.join(wrong[:4])}."
        )
    backbone.model.load_state_dict({n: t.to(wanted[n].dtype) for n, t in given.items()})
    backbone.eval().requires_grad_(False)
    size = 224 // backbone.patch_size * backbone.patch_size
    report = LoadReport("timm", tuple(given), note=f"timm's {type(backbone.model).__name__}")
    return Encoder(said, backbone, backbone.embed_dim, backbone.patch_size, size, report=report)


def _create_for_any_size(name: str, pretrained: bool) -> tuple[Any, dict[str, Any]]:
    for arguments in ANY_SIZE:
        try:
            return create_timm(name, pretrained, arguments), dict(arguments)
        except TypeError:
            continue
    raise ModelError(f"timm can't make '{name}' without a classifier. Choose a vision backbone.")


def _as_ours(wrapped: TimmBackbone, said: str) -> Encoder | None:
    """The same weights in our Vision Transformer, or None where that isn't the same model."""
    model = wrapped.model
    if type(model).__name__ != "VisionTransformer":
        return None
    settings = {"num_heads": model.blocks[0].attn.num_heads, "norm_eps": getattr(model.norm, "eps", 1e-6)}
    try:
        encoder = build_encoder(convert(model.state_dict(), "timm", settings), said, "")
    except (ModelError, ValueError, KeyError):
        return None
    side = 3 * wrapped.patch_size
    for size in ((side, side), (side, 2 * side)):
        pixels = torch.randn(
            1, model.patch_embed.proj.weight.shape[1], *size, generator=torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            ours, theirs = encoder.backbone(pixels), wrapped(pixels)
        if not all(torch.allclose(a, b, atol=1e-4, rtol=1e-4)
                   for a, b in ((ours.cls, theirs.cls), (ours.patches, theirs.patches))):  # fmt: skip
            return None
    return encoder
