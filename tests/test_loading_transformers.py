"""Features of transformers' models, built with random weights and saved by themselves, equal ours to 1e-5."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glocal.errors import ModelError
from glocal.models.loading import load

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 40,
}
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "vit": ("ViTConfig", "ViTModel", {"intermediate_size": 128}, {"interpolate_pos_encoding": True}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {}, {}),
    "dinov2_swiglu": ("Dinov2Config", "Dinov2Model", {"use_swiglu_ffn": True}, {}),
    "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {}, {}),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {"intermediate_size": 128, "num_register_tokens": 2}, {}),
    "dinov3_gated": (
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        {"intermediate_size": 96, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        {},
    ),
}


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter away from its special initial value, so that a lost one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = (
                0.5
                if parameter.dim() < 2 or "token" in name or "position" in name
                else parameter.shape[-1] ** -0.5
            )
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(40, 40), (24, 56)], ids=["square", "other"])
def test_features_equal_the_original(case: str, size: tuple[int, int], tmp_path: Path) -> None:
    config_name, model_name, extra, call = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, config_name)(**SHAPE, **extra)
        original: Any = randomise(getattr(transformers, model_name)(config))
        original.save_pretrained(tmp_path)
        pixels = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = original(pixels, **call).last_hidden_state
    encoder = load(tmp_path)
    found = encoder.features(pixels)
    prefix = 1 + extra.get("num_register_tokens", 4 if case == "registers" else 0)
    assert found.grid == (size[0] // 8, size[1] // 8)
    torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patches, expected[:, prefix:], atol=1e-5, rtol=1e-5)
    assert encoder.report is not None and not encoder.report.missing and not encoder.report.unexpected


def test_an_unknown_model_type_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.ViTModel(transformers.ViTConfig(**SHAPE))
        model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"vit"', '"swin"'))
    with pytest.raises(ModelError, match="'swin' is not supported; known: vit, dinov2"):
        load(tmp_path)
