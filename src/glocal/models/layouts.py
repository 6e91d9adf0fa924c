"""How released checkpoints name and shape their weights, and what that says about the model.

`convert` turns any of the layouts below into ours (timm's names) and infers the configuration from shapes. Layouts:

dino, ibot      plain backbones; student/teacher files with `backbone.` and `head.`
dinov2          `register_tokens`, LayerScale, SwiGLU as w12/w3, blocks in chunks (`blocks.0.7.`)
dinov3          `storage_tokens`, rotary positions, a mask that silences the keys' bias, SwiGLU as w1/w2/w3
selfpatch       no class token, no final norm of its own; class attention, its query and its norm sit in the head, whose
                module names are not fixed: the list of blocks with `attn.q`, `attn.k`, `attn.v` is taken for it, the
                one (1, 1, dim) tensor beside it for the query, the `norm` beside it for the norm; without that head,
                patches are given as they are and their mean stands for the image
mugs            a ViT and a relation block (left out)
mae             fixed sine-cosine position table kept as weights; decoder left out
timm            VisionTransformer state dicts
transformers    ViT, Dinov2, Dinov2WithRegisters, DINOv3ViT
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glocal.config import validate
from glocal.errors import ModelError
from glocal.models.backbone import SIZES, BackboneConfig
from glocal.models.transformers_layouts import TRANSFORMERS_RULES, TRANSFORMERS_TYPES

State = dict[str, Tensor]


@dataclass(frozen=True)
class Convention:
    """What a layout's code does that its weights don't show, and names it may carry that a backbone does not need."""

    position_offset: float = 0.0
    position_antialias: bool = False
    norm_eps: float = 1e-6
    ignorable: tuple[str, ...] = ()


# DINO's code adds it to the grid before dividing, so a resized table is sampled slightly off-centre.
_DINO_OFFSET = 0.1
_HEADS = r"^\w*head\w*\."
_WITHOUT_HEAD = (
    "the file lacks SelfPatch's class-attention head, so patches are taken before the norm, as its dense evaluation "
    "takes them, and an image's embedding is their mean"
)

CONVENTIONS: dict[str, Convention] = {
    "dino": Convention(_DINO_OFFSET, ignorable=(_HEADS,)),
    "ibot": Convention(_DINO_OFFSET, ignorable=(_HEADS, r"^masked_embed$")),
    "dinov2": Convention(_DINO_OFFSET, ignorable=(_HEADS, r"^mask_token$")),
    "dinov2_registers": Convention(position_antialias=True, ignorable=(_HEADS, r"^mask_token$")),
    "dinov3": Convention(norm_eps=1e-5, ignorable=(_HEADS, r"^mask_token$", r"^local_cls_norm\.")),
    "selfpatch": Convention(_DINO_OFFSET, ignorable=(_HEADS,)),
    "mugs": Convention(_DINO_OFFSET, ignorable=(_HEADS, r"relation", r"queue", r"memory")),
    "mae": Convention(ignorable=(_HEADS, r"^decoder_", r"^mask_token$")),
    "timm": Convention(position_antialias=True, ignorable=(_HEADS,)),
    "vit": Convention(norm_eps=1e-12, ignorable=(r"^pooler\.", r"^classifier\.", r"mask_token$")),
    "dinov2_hf": Convention(ignorable=(r"^classifier\.", r"mask_token$")),
    "dinov2_with_registers_hf": Convention(
        position_antialias=True, ignorable=(r"^classifier\.", r"mask_token$")
    ),
    "dinov3_vit": Convention(norm_eps=1e-5, ignorable=(r"mask_token$",)),
}

_OWN_RULES = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"^(register_tokens|storage_tokens)$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.gate."),
    (r"\.mlp\.w2\.", ".mlp.up."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)


@dataclass(frozen=True)
class Converted:
    """A state in our names with the configuration that fits it. `ignored` are names left out on purpose."""

    layout: str
    config: BackboneConfig
    state: State
    ignored: tuple[str, ...] = field(default=())
    note: str = ""


def convert(state: Mapping[str, Tensor], layout: str, settings: Mapping[str, Any]) -> Converted:
    """Rename a released state, infer its configuration from shapes, and bring positions and tokens into our form.

    `settings` override what is inferred (heads are taken as 64 wide unless told). Names that stay unknown are kept, so
    that loading can name them.

    Raises:
        ModelError: for shapes that fit no supported model.
    """
    convention = CONVENTIONS[layout]
    rules = TRANSFORMERS_RULES if layout in TRANSFORMERS_TYPES.values() else _OWN_RULES
    renamed = {_rename(name, rules): tensor.float() for name, tensor in state.items()}
    if layout == "selfpatch":
        renamed = _place_aggregator(renamed)
    if "reg_token" in renamed and renamed["reg_token"].numel() == 0:
        del renamed["reg_token"]  # a class with registers that has none
    periods = renamed.pop("rope_embed.periods", None)
    ignored = [name for name in renamed if any(re.search(pattern, name) for pattern in convention.ignorable)]
    kept = {name: tensor for name, tensor in renamed.items() if name not in ignored}
    kept = _merge_projections(kept)
    inferred = _infer(kept, convention)
    if layout in ("dinov3", "dinov3_vit"):
        inferred |= _infer_rotary(periods, inferred)
    config = validate(BackboneConfig, {**inferred, **settings})
    note = _WITHOUT_HEAD if layout == "selfpatch" and config.pooling == "mean" else ""
    return Converted(layout, config, _fold_positions(kept, config), tuple(sorted(ignored)), note)


def detect(names: Iterable[str], *, wrapper: str = "", safetensors: bool = False) -> str:
    """Name the layout of a state by its parameter names and, where these leave it open, by how the file wraps them.

    A plain ViT looks alike in DINO and timm; files in safetensors or with a classifier are taken for timm's, those
    inside "model" for MAE's, others for DINO's. This decides only how positions are resized.

    Raises:
        ModelError: when this is no Vision Transformer that we know.
    """
    known = set(names)
    if not any(name.endswith("patch_embed.proj.weight") for name in known):
        raise ModelError(
            f"This is no Vision Transformer checkpoint that glocal knows: no patch_embed.proj.weight among its "
            f"{len(known)} names ({', '.join(sorted(known)[:5])}, ...). Known layouts: DINO, iBOT, DINOv2, DINOv3, "
            "SelfPatch, Mugs, MAE, timm; transformers models load as a folder with config.json."
        )
    if known & {"storage_tokens", "rope_embed.periods"}:
        return "dinov3"
    if any(name.endswith(".attn.q.weight") for name in known) or not known & {"cls_token", "norm.weight"}:
        return "selfpatch"
    if any("relation" in name for name in known):
        return "mugs"
    if any(name.startswith("decoder_") for name in known):
        return "mae"
    if "register_tokens" in known:
        return "dinov2_registers"
    if "mask_token" in known:
        return "dinov2"
    if "masked_embed" in known:
        return "ibot"
    if safetensors or "reg_token" in known or "head.weight" in known:
        return "timm"
    return "mae" if wrapper == "model" else "dino"


def _rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _place_aggregator(state: State) -> State:
    """Move SelfPatch's class attention, its query and its norm to our names, wherever they were."""
    first = next((re.match(r"^(.*\.)?(\w+)\.0\.attn\.q\.weight$", name) for name in sorted(state)
                  if name.endswith(".0.attn.q.weight")), None)  # fmt: skip
    if first is None:
        return state
    parent, blocks = first.group(1) or "", first.group(2)
    placed: State = {}
    for name, tensor in state.items():
        inside = name.removeprefix(parent) if name.startswith(parent) else None
        if inside is not None and inside.startswith(f"{blocks}."):
            placed["aggregator.blocks." + inside.removeprefix(f"{blocks}.")] = tensor
        elif inside is not None and inside.startswith("norm."):
            placed["aggregator." + inside] = tensor
        elif inside is not None and "." not in inside and tuple(tensor.shape[:-1]) == (1, 1):
            placed["aggregator.query"] = tensor
        else:
            placed[name] = tensor
    if "norm.weight" in placed and "aggregator.norm.weight" not in placed:
        placed |= {f"aggregator.norm.{kind}": placed.pop(f"norm.{kind}") for kind in ("weight", "bias")}
    return placed


def _merge_projections(state: State) -> State:
    """Join separate queries, keys, values into qkv and gate, up into fc1; a missing bias among them is zero."""
    merged = dict(state)
    for name in [n for n in state if n.endswith(".attn.query.weight")]:
        prefix = name.removesuffix("query.weight")
        parts = ("query", "key", "value")
        weights = [merged.pop(f"{prefix}{letter}.weight") for letter in parts]
        biases = [merged.pop(f"{prefix}{letter}.bias", None) for letter in parts]
        merged[f"{prefix}qkv.weight"] = torch.cat(weights)
        if any(bias is not None for bias in biases):
            zeros = torch.zeros(weights[0].shape[0])
            merged[f"{prefix}qkv.bias"] = torch.cat([zeros if bias is None else bias for bias in biases])
    for name in [n for n in state if ".mlp.up." in n]:
        up = merged.pop(name)
        gate = merged.pop(name.replace(".up.", ".gate."), None)
        merged[name.replace(".up.", ".fc1.")] = up if gate is None else torch.cat([gate, up])
    for name in [n for n in state if n.endswith(".qkv.bias_mask")]:
        del merged[name]  # It silences the keys' third of the bias; files hold ones and zeros there, or NaN.
        bias = merged[name.removesuffix("_mask")].clone()
        third = bias.shape[0] // 3
        bias[third : 2 * third] = 0.0
        merged[name.removesuffix("_mask")] = bias
    return merged


def _infer(state: State, convention: Convention) -> dict[str, Any]:
    """The configuration that shapes show."""
    try:
        projection = state["patch_embed.proj.weight"]
        dim, channels, side, _ = projection.shape
        numbers = [int(match.group(1)) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))]
        depth = max(numbers) + 1
        fc1, fc2 = state["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc2.weight"]
    except (KeyError, ValueError) as error:
        raise ModelError(f"The checkpoint lacks what every backbone has ({error}).") from error
    heads = max(1, dim // 64)
    named = [size for size, known in SIZES.items() if known == (dim, depth, heads)]
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    has_class, has_attention = "cls_token" in state, "aggregator.query" in state
    inferred: dict[str, Any] = {
        "size": named[0] if named else "small",
        "embed_dim": None if named else dim,
        "depth": None if named else depth,
        "num_heads": None if named else heads,
        "patch_size": side,
        "channels": channels,
        "pooling": "class_token" if has_class else "class_attention" if has_attention else "mean",
        "final_norm": has_class or has_attention or "norm.weight" in state,
        "registers": registers,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in state else None,
        "ffn": "swiglu" if fc1.shape[0] == 2 * fc2.shape[1] else "mlp",
        "ffn_hidden": fc2.shape[1],
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "position_offset": convention.position_offset,
        "position_antialias": convention.position_antialias,
        "norm_eps": convention.norm_eps,
    }
    if "pos_embed" in state:
        rows = state["pos_embed"].shape[1]
        grid_side = math.isqrt(rows - _prefix_rows(rows, int(has_class), registers))
        inferred["image_size"] = grid_side * side
    return inferred


def _infer_rotary(periods: Tensor | None, inferred: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings; the periods base**(2 i / (head_dim / 2)) also show the width of a head."""
    settings: dict[str, Any] = {"position": "rope", "image_size": 14 * inferred["patch_size"]}
    if periods is None or periods.shape[0] < 2:
        return settings
    quarter = periods.shape[0]
    base = float(periods[-1].double() ** (quarter / (quarter - 1)))
    settings["rope_base"] = float(round(base)) if abs(base - round(base)) < 0.02 * base else base
    dim = inferred["embed_dim"] or SIZES[inferred["size"]].embed_dim
    settings["num_heads"] = dim // (4 * quarter)
    return settings


def _prefix_rows(rows: int, class_tokens: int, registers: int) -> int:
    """How many rows of a position table belong to no patch: 0, the class token's, or also the registers'."""
    for extra in dict.fromkeys((class_tokens, 0, class_tokens + registers)):
        if math.isqrt(rows - extra) ** 2 == rows - extra:
            return extra
    raise ModelError(f"A position table of {rows} rows fits no square grid of patches.")


def _fold_positions(state: State, config: BackboneConfig) -> State:
    """Give the table the rows our model has, adding the positions of tokens that have none here to the tokens."""
    table = state.get("pos_embed")
    if table is None or config.position == "rope":
        return state
    extra = _prefix_rows(table.shape[1], int(config.class_token), config.registers)
    prefix, patches = table[:, :extra], table[:, extra:]
    folded = dict(state)
    if config.table_has_class_row:
        folded["pos_embed"] = table if extra else torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
        return folded
    folded["pos_embed"] = patches
    if extra:
        folded["cls_token"] = state["cls_token"] + prefix[:, :1]
    if extra > 1:
        folded["reg_token"] = state["reg_token"] + prefix[:, 1:]
    return folded
