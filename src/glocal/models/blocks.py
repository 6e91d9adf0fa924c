"""The pre-norm transformer block: attention chosen for speed, MLP or SwiGLU, LayerScale, stochastic depth by subset."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.models.position import rotate

Rotary = tuple[Float[Tensor, "*batch tokens head_dim"], Float[Tensor, "*batch tokens head_dim"]]
"""Cosines and sines: one table for all images, or (batch, 1, tokens, head_dim) when each kept other patches."""

# On a CPU the written-out form is faster forwards and several times faster backwards in float32 "medium" and bfloat16,
# and equal in float32 "highest". Beyond this length the (tokens x tokens) matrices cost too much memory.
_EXPLICIT_TOKENS = 640


class KeptSamples(NamedTuple):
    """Which samples run through the two residual branches of one block in this step."""

    attention: Int64[Tensor, " kept"]
    mlp: Int64[Tensor, " kept"]


def attend(
    query: Float[Tensor, "*batch queries head_dim"],
    key: Float[Tensor, "*batch tokens head_dim"],
    value: Float[Tensor, "*batch tokens head_dim"],
) -> Float[Tensor, "*batch queries head_dim"]:
    """softmax(Q K^T / sqrt(head_dim)) V, written out or fused, whichever is faster for this device and length."""
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
        kept: KeptSamples | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Run both branches, on all samples or on those kept (see `draw_kept`)."""
        if kept is not None and rotary is not None and rotary[0].ndim == 4:
            rotary = rotary[0][kept.attention], rotary[1][kept.attention]
        x = _add_branch(x, lambda z: self.ls1(self.attn(self.norm1(z), rotary)), kept and kept.attention)
        return _add_branch(x, lambda z: self.ls2(self.mlp(self.norm2(z))), kept and kept.mlp)

    def draw_kept(self, batch: int, device: torch.device) -> KeptSamples | None:
        """Draw which samples each branch runs on, or None for all: in eval mode, at rate 0, or when rounding keeps all.

        How many are kept follows from the batch size and the rate alone, so nothing waits for the device.
        """
        kept = max(1, round(batch * (1.0 - self.drop_path)))
        if not self.training or self.drop_path == 0.0 or kept == batch:
            return None
        return KeptSamples(
            torch.randperm(batch, device=device)[:kept], torch.randperm(batch, device=device)[:kept]
        )


def _add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], kept: Tensor | None) -> Tensor:
    """Add a residual branch; on a subset it is scaled by batch / kept, so that its mean is that of the whole."""
    if kept is None:
        return x + branch(x)
    update = branch(x.index_select(0, kept))
    return x.index_add(0, kept, update.to(x.dtype), alpha=x.shape[0] / kept.shape[0])
