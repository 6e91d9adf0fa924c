"""The Vision Transformer: shapes, positions, stochastic depth, attention, checkpointing, initialisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from narrowing import of_kind, present
from torch.nn import functional as F

from glocal.config import validate
from glocal.errors import ConfigError, ModelError
from glocal.models.backbone import BackboneConfig
from glocal.models.blocks import Block, attention_weights
from glocal.models.initialisation import mimic_trained_attention
from glocal.models.position import resample_table, rotary_table, rotate
from glocal.models.vit import PatchEmbed, VisionTransformer


def micro(**settings: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        BackboneConfig.model_validate({"size": "micro", "patch_size": 8, "image_size": 32} | settings)
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"registers": 4},
        {"position": "rope"},
        {"pooling": "class_attention"},
        {"ffn": "swiglu", "layer_scale": 1e-5},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(32, 32), (16, 56)])
def test_any_size_gives_features_and_gradients_everywhere(
    settings: dict[str, object], size: tuple[int, int]
) -> None:
    model = micro(**settings)
    features = model(torch.randn(2, 3, *size))
    patches = size[0] * size[1] // 64
    class_tokens = int(model.config.class_token)
    assert features.grid == (size[0] // 8, size[1] // 8)
    assert features.cls.shape == (2, 64) and features.patches.shape == (2, patches, 64)
    assert features.tokens_before_norm.shape == (2, patches + class_tokens, 64)
    torch.testing.assert_close(model.norm(features.tokens_before_norm)[:, class_tokens:], features.patches)
    (features.cls.square().sum() + features.patches.pow(3).sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def test_layers_are_counted_from_the_end_and_come_in_the_order_asked() -> None:
    model = micro().eval()
    pixels = torch.randn(2, 3, 32, 32)
    last, first, again = model.intermediate(pixels, [-1, 0, 3])
    torch.testing.assert_close(last.cls, model(pixels).cls)
    torch.testing.assert_close(again.cls, last.cls)
    assert not torch.allclose(first.cls, last.cls)
    with pytest.raises(ModelError, match="no layer 4: the backbone has 4 blocks"):
        model.intermediate(pixels, [4])


def test_attention_and_keys_are_those_of_the_last_block() -> None:
    for settings in ({"registers": 2}, {"position": "rope"}):
        model = micro(**settings).eval()
        pixels = torch.randn(2, 3, 32, 16)
        seen: dict[str, torch.Tensor] = {}
        block = model.blocks[-1]
        assert isinstance(block, Block)
        handle = block.attn.qkv.register_forward_hook(lambda _m, _i, out: seen.update(qkv=out))  # noqa: B023
        attention = model.last_attention(pixels)
        handle.remove()
        keys = seen["qkv"][:, model.prefix_tokens :, 64:128]
        torch.testing.assert_close(model.last_keys(pixels), keys)
        assert attention.shape == (2, 4, 8)
        assert bool((attention.sum(-1) < 1).all())
        if model.config.position == "table":  # The class token's row, written out.
            query = seen["qkv"][:, 0, :64].reshape(2, 4, 16)
            key = seen["qkv"][:, :, 64:128].reshape(2, -1, 4, 16)
            expected = torch.einsum("bhd,bnhd->bhn", query / 4, key).softmax(-1)[:, :, model.prefix_tokens :]
            torch.testing.assert_close(attention, expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("grid", [(3, 7), (5, 8), (1, 2), (9, 9)])
def test_position_table_is_resized_like_interpolate(antialias: bool, grid: tuple[int, int]) -> None:
    table = torch.randn(5, 5, 4, requires_grad=True)
    expected = F.interpolate(table.permute(2, 0, 1)[None], size=grid, mode="bicubic", antialias=antialias)
    found = resample_table(table, grid, antialias=antialias)
    torch.testing.assert_close(found, expected[0].permute(1, 2, 0), atol=1e-6, rtol=1e-5)


def test_position_matrices_made_in_inference_mode_serve_training() -> None:
    table = torch.randn(11, 11, 4, requires_grad=True)
    with torch.inference_mode():
        resample_table(table, (6, 13))
        rotary_table((6, 13), 16, 1, 100.0, torch.device("cpu"))
    resample_table(table, (6, 13)).sum().backward()
    assert table.grad is not None


def test_rotation_equals_the_formula() -> None:
    rows, columns, dim = 2, 3, 16
    table = rotary_table((rows, columns), dim, 1, 100.0, torch.device("cpu"))
    x = torch.randn(1 + rows * columns, dim, dtype=torch.float64)
    found = rotate(x, table).numpy()
    np.testing.assert_allclose(found[0], x[0].numpy())
    for row in range(rows):
        for column in range(columns):
            token = 1 + row * columns + column
            for i in range(dim // 2):
                centre = (row + 0.5) / rows if i < dim // 4 else (column + 0.5) / columns
                frequency = 100.0 ** (-2 * (i % (dim // 4)) / (dim / 2))
                angle = 2 * math.pi * frequency * (2 * centre - 1)
                a, b = float(x[token, i]), float(x[token, i + dim // 2])
                np.testing.assert_allclose(
                    found[token, i], a * math.cos(angle) - b * math.sin(angle), atol=1e-5
                )
                np.testing.assert_allclose(
                    found[token, i + dim // 2], b * math.cos(angle) + a * math.sin(angle), atol=1e-5
                )


def test_written_out_attention_equals_the_fused_one() -> None:
    query, key, value = torch.randn(3, 2, 4, 37, 16).unbind(0)
    found = attention_weights(query, key) @ value
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value), atol=1e-6, rtol=1e-5)


def test_stochastic_depth_is_drawn_for_every_sample_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = Block(16, 2, 32, drop_path=0.25)
    assert block.eval().draw_factors(64, torch.device("cpu")) is None
    factors = block.train().draw_factors(20_000, torch.device("cpu"))
    assert factors is not None
    assert factors.unique().tolist() == pytest.approx([0.0, 4 / 3])
    torch.testing.assert_close(factors.mean((1, 2, 3)), torch.ones(2), atol=0.02, rtol=0)
    # The two branches are drawn apart: both are dropped in a sixteenth of the samples.
    assert float((factors == 0).all(0).float().mean()) == pytest.approx(1 / 16, abs=0.01)
    # Small batches lose as much: no count is rounded.
    few = torch.cat([present(block.draw_factors(2, torch.device("cpu"))) for _ in range(2000)], dim=1)
    assert float((few == 0).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_a_dropped_branch_leaves_its_sample_alone() -> None:
    block = Block(16, 2, 32, drop_path=0.5)
    x = torch.randn(3, 5, 16)
    factors = torch.tensor([[0.0, 2.0, 2.0], [0.0, 0.0, 2.0]])[:, :, None, None]
    with torch.no_grad():
        after = block(x, None, factors)
        attended = x + 2 * block.attn(block.norm1(x), None)
        both = attended + 2 * block.mlp(block.norm2(attended))
    assert torch.equal(after[0], x[0])
    torch.testing.assert_close(after[1], attended[1])
    torch.testing.assert_close(after[2], both[2])


def test_drop_path_grows_linearly_and_stops_in_eval_mode() -> None:
    model = micro(drop_path=0.3)
    assert [round(b.drop_path, 6) for b in model.blocks if isinstance(b, Block)] == [0.0, 0.1, 0.2, 0.3]
    pixels = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(pixels).cls, model(pixels).cls)
    model.eval()
    torch.testing.assert_close(model(pixels).cls, micro().eval()(pixels).cls)


def test_checkpointing_changes_memory_only() -> None:
    gradients = []
    pixels = torch.randn(8, 3, 32, 32)
    for recompute in (False, True):
        model = micro(drop_path=0.3)
        model.checkpoint_blocks = recompute
        torch.manual_seed(1)
        model(pixels).cls.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=0, rtol=0)


def test_bfloat16_autocast_stays_close() -> None:
    model = micro().eval()
    pixels = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        exact = model(pixels).cls
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(pixels).cls
    assert float(F.cosine_similarity(exact, rough.float()).min()) > 0.999


def test_patch_embedding_equals_its_convolution() -> None:
    model = micro(channels=2)
    pixels = torch.randn(2, 2, 24, 40)
    expected = of_kind(PatchEmbed, model.patch_embed).proj(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patch_embed(pixels), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("size", "scheme"), [("tiny", "fan_in"), ("small", "trunc_normal")])
def test_auto_initialisation_follows_the_width(size: str, scheme: str) -> None:
    model = VisionTransformer(BackboneConfig(size=size, depth=1))
    block = model.blocks[0]
    assert isinstance(block, Block) and model.pos_embed is not None
    expected = model.embed_dim**-0.5 if scheme == "fan_in" else 0.02
    assert float(block.attn.qkv.weight.detach().std()) == pytest.approx(expected, rel=0.05)
    assert float(model.pos_embed.detach().std()) == pytest.approx(
        0.3 if scheme == "fan_in" else 0.02, rel=0.05
    )
    assert not block.attn.qkv.bias.any()


def test_wrong_input_is_explained() -> None:
    model = micro()
    with pytest.raises(ModelError, match=r"36x40 image can't be cut into 8-pixel patches.*32x40"):
        model(torch.randn(1, 3, 36, 40))
    with pytest.raises(ModelError, match="takes 3 channels; the pixels have 1"):
        model(torch.randn(1, 1, 32, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 225}, "225 must be a multiple of patch_size 16"),
        ({"num_heads": 5}, "num_heads 5 must divide the width 384"),
        ({"pooling": "class_attention", "registers": 4}, "class_attention has no registers"),
        ({"embed_dim": 36, "num_heads": 6, "position": "rope"}, "4 divides"),
        ({"sise": "small"}, "Did you mean 'size'"),
    ],
)
def test_wrong_settings_are_explained(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(BackboneConfig, settings)


def test_mimetic_attention_looks_like_trained_attention() -> None:
    """One head's product of queries and keys is 0.7 (Z + I) whole; narrower heads take its strongest directions."""
    torch.manual_seed(0)
    dim = 48
    qkv, projection = torch.zeros(3 * dim, dim), torch.zeros(dim, dim)
    mimic_trained_attention(qkv, projection, 1)
    query, key, value = qkv.chunk(3)
    assert abs(float((query.T @ key).trace()) / dim - 0.7) < 0.1
    assert abs(float((projection @ value).trace()) / dim + 0.4) < 0.1
    off_diagonal = (query.T @ key - 0.7 * torch.eye(dim)) / 0.7
    assert abs(float(off_diagonal.std()) * dim**0.5 - 1) < 0.1
    mimic_trained_attention(qkv, projection, 4)
    query, key, _ = qkv.chunk(3)
    for head in range(4):
        rows = slice(12 * head, 12 * head + 12)
        product = query[rows].T @ key[rows]
        strengths = torch.linalg.svdvals(product)
        assert torch.linalg.matrix_rank(product) == 12
        # The strongest of 48 directions of I + Z are far above the mean strength of the whole.
        assert float(strengths[11]) > 0.7


def test_a_mimetic_backbone_trains_and_loads() -> None:
    model = micro(attention_init="mimetic")
    assert not torch.equal(
        model.get_parameter("blocks.0.attn.qkv.weight"), micro().get_parameter("blocks.0.attn.qkv.weight")
    )
    with torch.device("meta"):
        VisionTransformer(model.config).load_state_dict(model.state_dict(), assign=True)
