"""What a transformers config.json says of a Vision Transformer, and how its weights are named there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glocal.errors import ModelError

TRANSFORMERS_TYPES = {
    "vit": "vit",
    "dinov2": "dinov2_hf",
    "dinov2_with_registers": "dinov2_with_registers_hf",
    "dinov3_vit": "dinov3_vit",
}

TRANSFORMERS_RULES = (
    (r"^(vit|dinov2|dinov2_with_registers|dinov3_vit)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^((model|encoder)\.)*layer\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.gate."),
    (r"\.mlp\.up_proj\.", ".mlp.up."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)


def transformers_layout(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The layout and the settings that a transformers config.json states.

    Raises:
        ModelError: for a model type that is not one of ours.
    """
    kind = str(config.get("model_type"))
    if kind not in TRANSFORMERS_TYPES:
        raise ModelError(
            f"transformers model type '{kind}' is not supported; known: {', '.join(TRANSFORMERS_TYPES)}."
        )
    activation = "silu" if config.get("use_gated_mlp") else "gelu"
    if config.get("hidden_act", activation) != activation:
        raise ModelError(
            f"hidden_act '{config['hidden_act']}' is not supported for this model; known: {activation}."
        )
    settings: dict[str, Any] = {
        "num_heads": config["num_attention_heads"],
        "image_size": square_side(config["image_size"]),
    }
    if "layer_norm_eps" in config:
        settings["norm_eps"] = config["layer_norm_eps"]
    if kind == "dinov3_vit":
        parameters = config.get("rope_parameters") or {}
        settings["rope_base"] = config.get("rope_theta") or parameters.get("rope_theta", 100.0)
    return TRANSFORMERS_TYPES[kind], settings


def square_side(size: int | list[int]) -> int:
    """The side of a square image size, given as a number or a pair.

    Raises:
        ModelError: for a size that is no square.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ModelError(
            f"This model's position table is of images of {size} pixels; only tables of square images can be loaded. "
            "Take weights of a square size."
        )
    return sides.pop()
