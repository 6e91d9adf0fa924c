"""A backbone as a folder that transformers' AutoModel and AutoImageProcessor read, without code of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glocal.atomic_files import allow_readers
from glocal.errors import ModelError
from glocal.models.adaptation import merge_adapters
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.export_check import Embeddings

State = dict[str, Tensor]


def save_transformers(encoder: Encoder, folder: Path) -> Callable[[Tensor], Embeddings]:
    """Write configuration, weights and image processor; return the model as AutoModel reads it.

    Tables resampled with antialiasing are Dinov2WithRegisters (with registers or without), others Dinov2, rotary
    positions DINOv3ViT; a missing LayerScale is one of ones. Plain models are not written as ViT, whose class adds a
    pooler that nobody trained.

    Raises:
        ModelError: when transformers is absent, or has no class for this model.
    """
    backbone = encoder.backbone
    if not isinstance(backbone, Backbone) or not backbone.config.is_ours:
        raise ModelError(
            "transformers has no class of its own for a timm model. Export to=timm, onnx or program."
        )
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            "to=transformers needs transformers. Install it: pip install 'glocal[hf]'."
        ) from error
    kind, settings = _class_for(backbone.config)
    state = _state(merge_adapters(backbone).state_dict(), backbone.config, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))
        mask = {name: t for name, t in model.state_dict().items() if name.endswith("mask_token")}
        model.load_state_dict(state | mask)
        model.save_pretrained(folder)
        _processor(transformers, encoder).save_pretrained(folder)
        for path in folder.iterdir():
            allow_readers(path)
        reloaded = transformers.AutoModel.from_pretrained(folder).eval()
    prefix = 1 + backbone.config.registers

    def run(pixels: Tensor) -> Embeddings:
        with torch.no_grad():
            tokens = reloaded(pixels).last_hidden_state
        return tokens[:, 0], tokens[:, prefix:]

    return run


def _class_for(config: BackboneConfig) -> tuple[str, dict[str, Any]]:
    """The class and its configuration.

    Raises:
        ModelError: when no class computes the same.
    """
    dim, depth, heads = config.dimensions
    if not config.class_token or not config.final_norm:
        raise ModelError(
            f"transformers has no class for pooling={config.pooling}: its models have a class token and a final norm. "
            "Export to=onnx or program, or load the weights with glocal."
        )
    settings: dict[str, Any] = {
        "hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": heads, "patch_size": config.patch_size,
        "image_size": config.image_size, "num_channels": config.channels, "layer_norm_eps": config.norm_eps,
    }  # fmt: skip
    gated = config.ffn == "swiglu"
    if config.position == "rope":
        settings |= {"intermediate_size": config.hidden, "use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu",
                     "num_register_tokens": config.registers, "rope_theta": config.rope_base,
                     "query_bias": config.qkv_bias, "key_bias": config.qkv_bias, "value_bias": config.qkv_bias}  # fmt: skip
        return "DINOv3ViT", settings
    expected = ((8 * dim) // 3 + 7) // 8 * 8 if gated else config.hidden // dim * dim
    if config.hidden != expected:
        raise ModelError(
            f"transformers' Dinov2 can't have a feed-forward width of {config.hidden}; export to=timm or onnx."
        )
    ratio = 4 if gated else config.hidden // dim
    settings |= {"qkv_bias": config.qkv_bias, "use_swiglu_ffn": gated, "mlp_ratio": ratio}
    if not config.position_antialias and not config.registers:
        return "Dinov2", settings
    return "Dinov2WithRegisters", settings | {"num_register_tokens": config.registers}


def _state(state: State, config: BackboneConfig, kind: str) -> State:
    """The weights under transformers' names."""
    dim, depth, _ = config.dimensions
    blocks, last = ("model.layer", "norm") if kind == "DINOv3ViT" else ("encoder.layer", "layernorm")
    patches = "embeddings.patch_embeddings" + ("" if kind == "DINOv3ViT" else ".projection")
    renamed = {f"{patches}.{name}": state[f"patch_embed.proj.{name}"] for name in ("weight", "bias")}
    renamed |= {f"{last}.{name}": state[f"norm.{name}"] for name in ("weight", "bias")}
    renamed["embeddings.cls_token"] = state["cls_token"]
    if kind != "Dinov2":
        renamed["embeddings.register_tokens"] = state.get("reg_token", torch.zeros(1, 0, dim))
    if config.position == "table":
        table = state["pos_embed"]
        rows = [] if config.table_has_class_row else [torch.zeros(1, 1, dim)]
        renamed["embeddings.position_embeddings"] = torch.cat([*rows, table], dim=1)
    for number in range(depth):
        renamed |= _block(state, f"blocks.{number}.", f"{blocks}.{number}.", config.ffn == "swiglu")
    return renamed


def _block(state: State, ours: str, theirs: str, gated: bool) -> State:
    renamed: State = {}
    for kind in ("weight", "bias"):
        for norm in ("norm1", "norm2"):
            renamed[f"{theirs}{norm}.{kind}"] = state[f"{ours}{norm}.{kind}"]
        if f"{ours}attn.qkv.{kind}" in state:
            for name, chunk in zip("qkv", state[f"{ours}attn.qkv.{kind}"].chunk(3), strict=True):
                renamed[f"{theirs}attention.{name}_proj.{kind}"] = chunk.contiguous()
        renamed[f"{theirs}attention.o_proj.{kind}"] = state[f"{ours}attn.proj.{kind}"]
        first, second = state[f"{ours}mlp.fc1.{kind}"], state[f"{ours}mlp.fc2.{kind}"]
        if gated:
            gate, up = first.chunk(2)
            names = {"gate_proj": gate.contiguous(), "up_proj": up.contiguous(), "down_proj": second}
        else:
            rope = theirs.startswith("model.")
            names = {"up_proj" if rope else "fc1": first, "down_proj" if rope else "fc2": second}
        renamed |= {f"{theirs}mlp.{name}.{kind}": tensor for name, tensor in names.items()}
    for number in (1, 2):
        ones = torch.ones_like(state[f"{ours}norm1.weight"])
        renamed[f"{theirs}layer_scale{number}.lambda1"] = state.get(f"{ours}ls{number}.gamma", ones)
    return renamed


def _processor(transformers: Any, encoder: Encoder) -> Any:
    """Shorter side, centre crop, the model's own mean and deviation."""
    side = encoder.image_size
    settings = {
        "size": {"shortest_edge": round(side / 0.875)}, "crop_size": {"height": side, "width": side}, "resample": 3,
        "image_mean": list(encoder.mean), "image_std": list(encoder.std), "do_convert_rgb": True,
    }  # fmt: skip
    # The class without torchvision, where there is one.
    kind = getattr(transformers, "BitImageProcessorPil", None) or transformers.BitImageProcessor
    return kind(**settings)
