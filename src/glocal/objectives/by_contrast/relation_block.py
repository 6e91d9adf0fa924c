"""Mugs' relation block: a token that stands for an image looks at its nearest neighbours in a memory."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.config import Config
from glocal.models.backbone import BackboneConfig
from glocal.models.blocks import Block
from glocal.models.features import Features
from glocal.models.initialisation import initialise


class ImageToken(Config):
    """One vector for an image: of which of its tokens it is the mean, and in which space."""

    norm: Literal["before", "after"] = "after"
    """Tokens of the last block's residual stream, or behind the backbone's final norm."""
    tokens: Literal["patches", "class", "all"] = "patches"
    """The patches, the class token alone, or both together."""

    def of(self, features: Features) -> Float[Tensor, "*batch dim"]:
        """The mean. Before the norm a class token must exist to be asked for; it is the first."""
        count = features.patches.shape[-2]
        if self.norm == "before":
            tokens = features.tokens_before_norm
            if self.tokens == "class":
                return tokens[..., 0, :]
            return (tokens if self.tokens == "all" else tokens[..., -count:, :]).mean(dim=-2)
        if self.tokens == "class":
            return features.cls
        if self.tokens == "patches":
            return features.patches.mean(dim=-2)
        return (features.patches.sum(dim=-2) + features.cls) / (count + 1)

    def needs_class_token(self) -> bool:
        """Whether a backbone without a class token among its tokens can't give this vector."""
        return self.tokens == "all" or (self.tokens == "class" and self.norm == "before")


class RelationBlock(nn.Module):
    """One transformer block over [query; neighbours] without positions, of which only the query's output is wanted.

    The block is the backbone's own kind (width, heads, feed-forward part, LayerScale) with stochastic depth 0. Since
    only the first token's output is used, only its query, its projection and its feed-forward part are computed: the
    same result at about a quarter of the cost with eight neighbours. Neighbours that don't exist are not attended to.

    Args:
        config: of the backbone.

    >>> block = RelationBlock(BackboneConfig(size="micro"))
    >>> block(torch.randn(5, 64), torch.randn(5, 8, 64), torch.ones(5, 8, dtype=torch.bool)).shape
    torch.Size([5, 64])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        dim, _, heads = config.dimensions
        self.block = Block(
            dim, heads, config.hidden, swiglu=config.ffn == "swiglu", qkv_bias=config.qkv_bias,
            layer_scale=config.layer_scale, norm_eps=config.norm_eps,
        )  # fmt: skip
        initialise(self.block, "fan_in" if config.init == "auto" and dim < 384 else config.init)

    def forward(
        self,
        query: Float[Tensor, "batch dim"],
        neighbours: Float[Tensor, "batch k dim"],
        valid: Bool[Tensor, "batch k"],
    ) -> Float[Tensor, "batch dim"]:
        """The query's token behind the block, before any final norm."""
        block, dim = self.block, query.shape[-1]
        tokens = block.norm1(torch.cat([query[:, None], neighbours.to(query.dtype)], dim=1))
        attention, heads = block.attn, block.attn.num_heads
        weight, bias = attention.qkv.weight, attention.qkv.bias
        q = F.linear(tokens[:, 0], weight[:dim], None if bias is None else bias[:dim])
        kv = F.linear(tokens, weight[dim:], None if bias is None else bias[dim:])
        batch, count, _ = tokens.shape
        key, value = kv.view(batch, count, 2, heads, dim // heads).permute(2, 0, 3, 1, 4)
        q = q.view(batch, heads, 1, dim // heads) * (dim // heads) ** -0.5
        logits = q @ key.transpose(-2, -1)
        hidden = torch.cat([valid.new_zeros(len(valid), 1), ~valid], dim=1)
        attended = (
            logits.masked_fill(hidden[:, None, None], -torch.inf).softmax(dim=-1).to(value.dtype) @ value
        )
        x = query + block.ls1(attention.proj(attended.flatten(1)))
        return x + block.ls2(block.mlp(block.norm2(x)))  # type: ignore[no-any-return]
