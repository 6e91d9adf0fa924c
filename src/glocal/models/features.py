"""What a backbone gives: one embedding of the image and one of every patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from glocal.errors import ModelError


def layer_number(layer: int, depth: int) -> int:
    """A block's number from 0, given that or, below 0, its place from the end.

    Raises:
        ModelError: when there is no such block.

    >>> layer_number(-1, 12)
    11
    """
    if not -depth <= layer < depth:
        raise ModelError(
            f"There is no layer {layer}: the backbone has {depth} blocks (0 to {depth - 1}, or -1 to -{depth} from the end)."
        )
    return layer % depth


class Masks(NamedTuple):
    """Patches to be hidden (on the CPU), and the learnt vector that stands for them."""

    hidden: Bool[Tensor, "batch patches"]
    vector: Float[Tensor, "1 dim"]


@dataclass(frozen=True)
class Features:
    """Embeddings of a batch of views. `...` is (batch,) from a backbone and (batch, views) inside the training step.

    `cls` and `patches` come after the final norm, of one width but in baselines; patches lie row-major on `grid`. `tokens_before_norm` is the last
    block's residual stream, class token first when the backbone has one (no registers), for the objectives whose paper
    reads it there (SelfPatch matches on it, Mugs averages it). It shares memory with what the norm's backward keeps.
    `kept` (on the CPU) is set when patches were dropped: `patches` then holds these numbers of the grid's only. `masked`
    (on the CPU) says which patches of the grid were hidden behind a learnt vector; None: none was.
    """

    cls: Float[Tensor, "... dim"]
    patches: Float[Tensor, "... patches patch_dim"]
    grid: tuple[int, int]
    tokens_before_norm: Float[Tensor, "... tokens token_dim"]
    kept: Int64[Tensor, "... patches"] | None = None
    masked: Bool[Tensor, "... grid"] | None = None

    def unflatten(self, views: int) -> Features:
        """Split a leading (batch*views) axis into (batch, views)."""
        cls, patches, tokens = (
            torch.unflatten(t, 0, (-1, views)) for t in (self.cls, self.patches, self.tokens_before_norm)
        )
        kept = None if self.kept is None else torch.unflatten(self.kept, 0, (-1, views))
        masked = None if self.masked is None else torch.unflatten(self.masked, 0, (-1, views))
        return Features(cls, patches, self.grid, tokens, kept, masked)
