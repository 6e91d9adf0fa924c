"""SelfPatch's class attention: a learnt query gathers an image's patches, or one patch's neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from glocal.models.blocks import Mlp, attend, attention_weights


class KeysValues(NamedTuple):
    """Keys and values of every patch for one block, split into heads."""

    key: Float[Tensor, "batch patches heads head_dim"]
    value: Float[Tensor, "batch patches heads head_dim"]


class ClassAttention(nn.Module):
    """Attention in which only the query slot queries, over itself and its context."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def keys_values(self, x: Float[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor]:
        """Keys and values split into (heads, head_dim)."""
        return self.split(self.k(x)), self.split(self.v(x))

    def split(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch heads head_dim"]:
        """Split the last axis into heads."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


class ClassAttentionBlock(nn.Module):
    """Refines a query by attention over [query; context] and an MLP. The context itself never changes."""

    def __init__(self, dim: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = ClassAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, 4 * dim)

    def context(self, tokens: Float[Tensor, "batch patches dim"]) -> KeysValues:
        """Keys and values of the patches: they depend on the patch alone, so every query shares them."""
        return KeysValues(*self.attn.keys_values(self.norm1(tokens)))

    def forward(self, query: Float[Tensor, "batch dim"], context: KeysValues) -> Float[Tensor, "batch dim"]:
        """One query an image, over all its patches."""
        normed = self.norm1(query)
        own_key, own_value = self.attn.keys_values(normed)
        key = torch.cat([own_key[:, None], context.key], dim=1).transpose(1, 2)
        value = torch.cat([own_value[:, None], context.value], dim=1).transpose(1, 2)
        gathered = attend(self.attn.split(self.attn.q(normed))[:, :, None], key, value)
        return self._finish(query, gathered.flatten(1))

    def weights(
        self, query: Float[Tensor, "batch dim"], context: KeysValues
    ) -> Float[Tensor, "batch heads patches"]:
        """Attention of the image's query to its patches (the share of the query slot itself is left out)."""
        normed = self.norm1(query)
        key = torch.cat([self.attn.split(self.attn.k(normed))[:, None], context.key], dim=1).transpose(1, 2)
        return attention_weights(self.attn.split(self.attn.q(normed))[:, :, None], key)[:, :, 0, 1:]

    def local(
        self,
        query: Float[Tensor, "batch patches dim"],
        context: KeysValues,
        index: Int64[Tensor, "batch patches k"],
        valid: Bool[Tensor, "batch patches k"],
    ) -> Float[Tensor, "batch patches dim"]:
        """One query a patch, over itself and the patches at `index`."""
        normed = self.norm1(query)
        own_key, own_value = self.attn.keys_values(normed)
        q = self.attn.split(self.attn.q(normed))
        image = torch.arange(index.shape[0], device=index.device)[:, None, None]
        key, value = (
            context.key[image, index],
            context.value[image, index],
        )  # (batch, patches, k, heads, head_dim)
        scores = torch.cat([(q * own_key).sum(-1)[:, :, None], (q[:, :, None] * key).sum(-1)], dim=2)
        seen = torch.cat([valid.new_ones(*valid.shape[:2], 1), valid], dim=2)
        scores = (scores * q.shape[-1] ** -0.5).float().masked_fill(~seen[..., None], float("-inf"))
        share = scores.softmax(dim=2).to(value.dtype)[..., None]
        gathered = share[:, :, 0] * own_value + (share[:, :, 1:] * value).sum(dim=2)
        return self._finish(query, gathered.flatten(2))

    def _finish(self, query: Tensor, gathered: Tensor) -> Tensor:
        query = query + self.attn.proj(gathered)
        return query + self.mlp(self.norm2(query))  # type: ignore[no-any-return]


class Aggregator(nn.Module):
    """Two class-attention blocks over one learnt query, and a final norm (Yun et al. 2022, SelfPatch, section 3).

    As an image's pooling the query attends to every patch; as a patch's teacher it attends to that patch's positives.
    Both use the same weights, and keys and values are computed once a patch and block. No LayerScale, as in the
    reference. Its input is the backbone's last residual stream, before any norm.

    >>> Aggregator(64, num_heads=4)(torch.randn(2, 49, 64)).shape
    torch.Size([2, 64])
    """

    def __init__(self, dim: int, num_heads: int, depth: int = 2, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.blocks = nn.ModuleList(ClassAttentionBlock(dim, num_heads, norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self, tokens: Float[Tensor, "batch patches dim"], contexts: list[KeysValues] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """The image's embedding. Pass `contexts(tokens)` when local queries use them too."""
        query = self.query[0].expand(tokens.shape[0], -1)
        for block, context in zip(self._blocks(), contexts or self.contexts(tokens), strict=True):
            query = block(query, context)
        return self.norm(query)  # type: ignore[no-any-return]

    def contexts(self, tokens: Float[Tensor, "batch patches dim"]) -> list[KeysValues]:
        """Keys and values of every patch, for each block: all that queries need of the tokens."""
        return [block.context(tokens) for block in self._blocks()]

    def aggregate_neighbours(
        self,
        tokens: Float[Tensor, "batch patches dim"],
        index: Int64[Tensor, "batch chosen k"],
        valid: Bool[Tensor, "batch chosen k"],
        contexts: list[KeysValues] | None = None,
    ) -> Float[Tensor, "batch chosen dim"]:
        """The embedding of each patch's positives. Pass `contexts(tokens)` when the image's query uses them too.

        `index` names patches of the same image; entries whose `valid` is false are not attended to (any in-range index
        may stand there). A patch without any valid positive gets the query's own embedding.
        """
        query = self.query.expand(*index.shape[:2], -1)
        for block, context in zip(self._blocks(), contexts or self.contexts(tokens), strict=True):
            query = block.local(query, context, index, valid)
        return self.norm(query)  # type: ignore[no-any-return]

    def attention(self, tokens: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch heads patches"]:
        """The last block's attention of the image's query to the patches."""
        query = self.query[0].expand(tokens.shape[0], -1)
        *first, last = self._blocks()
        for block in first:
            query = block(query, block.context(tokens))
        return last.weights(query, last.context(tokens))

    def _blocks(self) -> list[ClassAttentionBlock]:
        return [block for block in self.blocks if isinstance(block, ClassAttentionBlock)]
