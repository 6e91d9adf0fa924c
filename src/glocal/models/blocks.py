"""The pre-norm transformer block: attention chosen for speed, MLP or SwiGLU, LayerScale, stochastic depth."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.models.position import rotate

Rotary = tuple[Float[Tensor, "*batch tokens head_dim"], Float[Tensor, "*batch tokens head_dim"]]
"""Cosines and sines: one table for all images, or (batch, 1, tokens, head_dim) when each kept other patches."""

BranchFactors = Float[Tensor, "2 batch 1 1"]
"""What stochastic depth multiplies the attention branch and the feed-forward branch of every sample with."""

# On a CPU the written-out form is faster forwards and several times faster backwards in float32 "medium" and bfloat16,
# and equal in float32 "highest". Beyond this length the (tokens x tokens) matrices cost too much memory.
_EXPLICIT_TOKENS = 640


def attend(
    query: Float[Tensor, "*batch queries head_dim"],
    key: Float[Tensor, "*batch tokens head_dim"],
    value: Float[Tensor, "*batch tokens head_dim"],
) -> Float[Tensor, "*batch queries head_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V, written out or fused, whichever is faster for this device and length."""
    if torch.compiler.is_exporting():  # the length may be a symbol, which can't decide anything
        return F.scaled_dot_product_attention(query, key, value)
    if query.device.type == "cpu" and key.shape[-2] <= _EXPLICIT_TOKENS:
        return attention_weights(query, key) @ value
    return F.scaled_dot_product_attention(query, key, value)


def attention_weights(
    query: Float[Tensor, "*batch queries head_dim"], key: Float[Tensor, "*batch tokens head_dim"]
) -> Float[Tensor, "*batch queries tokens"]:
    """softmax(Q K^T / sqrt(head_dim))."""
    scale: float = query.shape[-1] ** -0.5
    return ((query * scale) @ key.transpose(-2, -1)).softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], rotary: Rotary | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attend over all tokens."""
        query, key, value = self.queries_keys_values(x)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def queries_keys_values(self, x: Float[Tensor, "batch tokens dim"]) -> tuple[Tensor, Tensor, Tensor]:
        """Each (batch, heads, tokens, head_dim), before any rotation."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        return query, key, value


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Apply to every token."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class SwiGlu(nn.Module):
    """Gated MLP (Shazeer 2020): fc1 holds gate and value in one matrix, gate first; fc2(silu(gate) * value)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Apply to every token."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learnt factor for each channel of a residual branch (Touvron et al. 2021)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Scale."""
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); parameter names are timm's."""

    def __init__(
        self, dim: int, num_heads: int, hidden: int, *, swiglu: bool = False, qkv_bias: bool = True,
        layer_scale: float | None = None, norm_eps: float = 1e-6, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = SwiGlu(dim, hidden) if swiglu else Mlp(dim, hidden)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        rotary: Rotary | None = None,
        factors: BranchFactors | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Run both branches, each sample's times its factor (see `draw_factors`)."""
        attention, mlp = (None, None) if factors is None else factors
        x = _add(x, self.ls1(self.attn(self.norm1(x), rotary)), attention)
        return _add(x, self.ls2(self.mlp(self.norm2(x))), mlp)

    def draw_factors(self, batch: int, device: torch.device) -> BranchFactors | None:
        """Stochastic depth: draw for each branch and sample 0 with probability `drop_path`, else 1 / (1 - drop_path).

        None in eval mode and at rate 0. Every sample for itself, as published: a fixed number of samples would have to be
        rounded, and drops nothing at all in small batches. Dropped branches are computed and weighted with 0: leaving
        their samples out saves `drop_path` of a block, loses as much again to gathering, and gives every block another
        shape to compile for.
        """
        if not self.training or self.drop_path == 0.0:
            return None
        keep = 1.0 - self.drop_path
        return torch.rand(2, batch, 1, 1, device=device).lt(keep).float().div_(keep)


def _add(x: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    """Add a residual branch, each sample's times its factor, in one pass."""
    return x + branch if factor is None else torch.addcmul(x, branch, factor)
