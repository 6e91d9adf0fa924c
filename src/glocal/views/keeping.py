"""Token dropping: which patches of a view the networks see."""

from __future__ import annotations

from jaxtyping import Int64
from torch import Tensor

from glocal.views.augment import view_seeds
from glocal.views.groups import ViewGroup
from glocal.views.randomness import fold_in, uniforms

_SALT = sum(b"kept patches")


def kept_patches(
    seed: Int64[Tensor, " batch"], number: int, group: ViewGroup, patches: int
) -> Int64[Tensor, "rows kept"] | None:
    """Draw the patch numbers that stay in every view of group number `number`, ascending: a row for image * views + view.
    None when all stay.

    Every view has its own random subset, a function of its image's seed alone, and all subsets are of one size, so that
    shapes are static. On the CPU, as geometry is: matching needs the numbers without waiting for the device.

    >>> group = ViewGroup(count=2, size=32, area=(0.4, 1.0), keep_patches=0.5)
    >>> kept_patches(torch.tensor([7, 8]), 0, group, patches=16).shape  # doctest: +SKIP
    torch.Size([4, 8])
    """
    kept = max(1, round(group.keep_patches * patches))
    if kept >= patches:
        return None
    drawn = uniforms(fold_in(view_seeds(seed, number, group.count), _SALT).flatten(), patches)
    return drawn.argsort(dim=1, stable=True)[:, :kept].sort(dim=1).values
