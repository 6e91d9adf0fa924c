"""A loaded model that teaches and never changes, whatever its width, patches and pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.models.loading import load
from glocal.models.teacher import freeze


class FrozenTeacher(nn.Module):
    """Features of a loaded model for pixels that were normalised for another one.

    Pixels are brought to the teacher's own mean and deviation, and bicubically to sides that its patches divide: the
    nearest ones, or, with `size`, so that the longer side has about so many pixels. Patches keep their places in the
    view, so that the matcher needs the grid alone.

    >>> teacher = FrozenTeacher(load("runs/large"), mean, std, size=224)  # doctest: +SKIP
    >>> teacher(views).grid  # doctest: +SKIP
    (16, 16)
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, encoder: Encoder, mean: tuple[float, ...], std: tuple[float, ...], size: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = freeze(encoder.backbone)
        self.name, self.embed_dim, self.patch_size, self.size = (
            encoder.name,
            encoder.embed_dim,
            encoder.patch_size,
            size,
        )
        ours, theirs = (
            torch.tensor([m, s])[:, :, None, None] for m, s in ((mean, std), (encoder.mean, encoder.std))
        )
        self.register_buffer("scale", ours[1] / theirs[1], persistent=False)
        self.register_buffer("shift", (ours[0] - theirs[0]) / theirs[1], persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Features:
        """Embed pixels that are normalised for the student."""
        if self.scale.device != pixels.device:
            self.to(pixels.device)
        height, width = pixels.shape[2:]
        ratio = 1.0 if self.size is None else self.size / max(height, width)
        rows, columns = (max(1, round(side * ratio / self.patch_size)) for side in (height, width))
        fitting = (rows * self.patch_size, columns * self.patch_size)
        if fitting != (height, width):
            pixels = F.interpolate(pixels, fitting, mode="bicubic", antialias=True)
        features: Features = self.backbone(pixels * self.scale + self.shift)
        return features


def load_frozen(
    spec: str, mean: tuple[float, ...], std: tuple[float, ...], size: int | None = None
) -> FrozenTeacher:
    """Load a model as a frozen teacher.

    Raises:
        ModelError: as `load`.
    """
    return FrozenTeacher(load(spec), mean, std, size).eval()
