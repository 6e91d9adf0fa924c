"""SelfPatch's class attention against a loop over patches written from the specification."""

from __future__ import annotations

import copy

import pytest
import torch
from narrowing import of_kind
from torch import Tensor
from torch.nn import functional as F

from glocal.models.aggregator import Aggregator, ClassAttentionBlock
from glocal.models.backbone import BackboneConfig
from glocal.models.vit import VisionTransformer


def random_aggregator(dim: int = 24, heads: int = 3) -> Aggregator:
    torch.manual_seed(0)
    aggregator = Aggregator(dim, heads)
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return aggregator


def slow(aggregator: Aggregator, context: Tensor) -> Tensor:
    """One query over one context (k, dim), as the specification says it: everything recomputed, head by head."""
    query = aggregator.query[0]
    for module in aggregator.blocks:
        block = of_kind(ClassAttentionBlock, module)
        z = F.layer_norm(torch.cat([query, context]), (24,), block.norm1.weight, block.norm1.bias, 1e-6)
        q, k, v = block.attn.q(z[:1]), block.attn.k(z), block.attn.v(z)
        heads = []
        for h in range(3):
            part = slice(8 * h, 8 * h + 8)
            weights = torch.exp(q[:, part] @ k[:, part].T / 8**0.5)
            heads.append(weights / weights.sum() @ v[:, part])
        query = query + block.attn.proj(torch.cat(heads, dim=1))
        z = F.layer_norm(query, (24,), block.norm2.weight, block.norm2.bias, 1e-6)
        query = query + block.mlp.fc2(F.gelu(block.mlp.fc1(z)))
    return F.layer_norm(query, (24,), aggregator.norm.weight, aggregator.norm.bias, 1e-6)[0]


@pytest.mark.parametrize("grid", [(6, 6), (7, 11)])
def test_global_and_local_queries_equal_the_loop(grid: tuple[int, int]) -> None:
    aggregator = random_aggregator()
    patches = grid[0] * grid[1]
    tokens = torch.randn(2, patches, 24)
    index = torch.randint(patches, (2, patches, 4))
    valid = torch.rand(2, patches, 4) < 0.7
    contexts = aggregator.contexts(tokens)
    image = aggregator(tokens, contexts)
    local = aggregator.aggregate_neighbours(tokens, index, valid, contexts)
    for b in range(2):
        torch.testing.assert_close(image[b], slow(aggregator, tokens[b]), atol=1e-5, rtol=1e-5)
        for i in range(patches):
            expected = slow(aggregator, tokens[b, index[b, i][valid[b, i]]])
            torch.testing.assert_close(local[b, i], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(aggregator(tokens), image)
    torch.testing.assert_close(aggregator.aggregate_neighbours(tokens, index, valid), local)


def test_a_patch_without_positives_has_finite_gradients() -> None:
    aggregator = random_aggregator()
    tokens = torch.randn(1, 9, 24, requires_grad=True)
    nothing = torch.zeros(1, 9, 4, dtype=torch.bool)
    out = aggregator.aggregate_neighbours(tokens, torch.zeros(1, 9, 4, dtype=torch.int64), nothing)
    torch.testing.assert_close(out, slow(aggregator, torch.zeros(0, 24)).expand(1, 9, 24))
    out.sum().backward()
    assert tokens.grad is not None and float(tokens.grad.abs().max()) == 0


def test_size_is_that_of_the_reference() -> None:
    aggregator = Aggregator(384, 6)
    assert sum(p.numel() for p in aggregator.parameters()) == 3_550_080
    assert sum(p.numel() for p in aggregator.blocks[0].parameters()) == 1_774_464


def test_as_pooling_its_norm_is_the_backbones_also_in_a_copy() -> None:
    config = BackboneConfig(size="micro", patch_size=8, image_size=32, pooling="class_attention")
    model = copy.deepcopy(VisionTransformer(config)).eval()
    assert model.aggregator is not None and model.norm is model.aggregator.norm
    pixels = torch.randn(2, 3, 16, 32)
    features = model(pixels)
    torch.testing.assert_close(features.cls, model.aggregator(features.tokens_before_norm))
    torch.testing.assert_close(features.patches, model.aggregator.norm(features.tokens_before_norm))
    attention = model.last_attention(pixels)
    assert attention.shape == (2, 4, 8) and bool((attention.sum(-1) < 1).all())
