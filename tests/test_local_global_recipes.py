"""The reference recipes of Local-Global and PW-Self, and DINO's, against the published codes' settings of the backbone."""

from __future__ import annotations

import pytest
import torch
from narrowing import present

from glocal.models.vit import VisionTransformer
from glocal.recipes import configure


@pytest.mark.parametrize(
    ("recipe", "preset"),
    [("dino", "imagenet"), ("local-global", "imagenet"), ("pw-self", "imagenet"),
     ("local-global-reference", "cifar10"), ("pw-self-reference", "imagenet100")],
)  # fmt: skip
def test_positions_are_resized_as_in_dinos_code(recipe: str, preset: str) -> None:
    backbone = configure(recipe, data="DATA", out="RUN", preset=preset).backbone
    assert (backbone.position_offset, backbone.position_antialias) == (0.1, False)


@pytest.mark.parametrize("recipe", ["local-global-reference", "pw-self-reference"])
@pytest.mark.parametrize("preset", ["cifar10", "imagenet1k"])
def test_small_reference_backbones_start_as_published(recipe: str, preset: str) -> None:
    config = configure(recipe, data="DATA", out="RUN", preset=preset).backbone
    torch.manual_seed(0)
    model = VisionTransformer(config)
    assert present(model.pos_embed).std().item() == pytest.approx(0.02, rel=0.02)
    assert model.get_parameter("blocks.0.attn.qkv.weight").std().item() == pytest.approx(0.02, rel=0.02)
