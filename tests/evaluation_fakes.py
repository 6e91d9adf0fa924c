"""Images in memory and a small random encoder for tests of the evaluation room."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from glocal.data.source import ImageSource
from glocal.errors import UnreadableImageError
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.models.vit import VisionTransformer


class MemorySource(ImageSource):
    """Images from an array (images, height, width, 3); those at `bad` can't be decoded."""

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray | None = None,
        class_names: list[str] | None = None,
        bad: tuple[int, ...] = (),
        name: str = "memory",
    ) -> None:
        self.pixels, self.class_names, self.bad, self.name = pixels, class_names, bad, name
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, index: int) -> str:
        return f"{index}.png"

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        self.reads += 1
        if index in self.bad:
            raise UnreadableImageError(f"{self.key(index)} is cut short")
        return Image.fromarray(self.pixels[index])

    def fingerprint(self) -> str:
        return f"{self.name}-{len(self.pixels)}-{int(self.pixels.astype(np.int64).sum())}"


def coloured(images: int, classes: int, seed: int = 0, side: int = 40, **settings: object) -> MemorySource:
    """Noisy images, each class around another colour, classes in turn; they overlap a little."""
    colours = np.random.default_rng(7).integers(40, 216, (classes, 3))
    generator = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    noise = generator.normal(0, 20, (images, side, side, 3)) + generator.normal(0, 12, (images, 1, 1, 3))
    pixels = np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
    return MemorySource(pixels, labels, **settings)  # type: ignore[arg-type]


class SameAtEveryLayer(nn.Module):
    """A backbone without weights whose layers all say the same."""

    def intermediate(self, pixels: torch.Tensor, layers: Sequence[int]) -> list[Features]:
        return [self(pixels) for _ in layers]


def encoder_of_raw_pixels(
    name: str, backbone: SameAtEveryLayer, embed_dim: int, patch_size: int, image_size: int
) -> Encoder:
    """The backbone sees pixels in [0, 1]."""
    return Encoder(name, backbone, embed_dim, patch_size, image_size, mean=(0, 0, 0), std=(1, 1, 1))


def small_encoder(seed: int = 0) -> Encoder:
    """A random ViT of width 64 and 4 blocks for 32-pixel images in 8-pixel patches."""
    torch.manual_seed(seed)
    backbone = VisionTransformer(BackboneConfig(size="micro", patch_size=8, image_size=32)).eval()
    return Encoder("random", backbone, embed_dim=64, patch_size=8, image_size=32)


class PatchPixels(nn.Module):
    """Patch embeddings that are the patches' pixels, wherever they lie; the class embedding is a fixed projection of all."""

    depth = 1

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = torch.randn(
            3 * 32 * 32, 3 * patch_size**2, generator=torch.Generator().manual_seed(0)
        )

    def forward(self, pixels: torch.Tensor) -> Features:
        patches = F.unfold(pixels, self.patch_size, stride=self.patch_size).transpose(1, 2)
        cls = (pixels - pixels.mean((2, 3), keepdim=True)).flatten(1) @ self.projection
        side = pixels.shape[2] // self.patch_size
        return Features(cls, patches, (side, side), patches)


def pixel_encoder(patch_size: int) -> Encoder:
    """A model of 32-pixel images whose patches are their pixels, centred at middle grey."""
    backbone = PatchPixels(patch_size).eval()
    return Encoder("patch pixels", backbone, 3 * patch_size**2, patch_size, 32, (0.5,) * 3, (1.0,) * 3)
