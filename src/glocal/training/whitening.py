"""A patch embedding that starts from the images themselves: its outputs are uncorrelated over the run's own patches."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data import ImageSource
from glocal.models.initialisation import whiten
from glocal.models.vit import PatchEmbed
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation
from glocal.views.augment import augment
from glocal.views.groups import ViewGroup
from glocal.views.loader import make_loader
from glocal.views.randomness import hash_seed

MOST_IMAGES = 4000
MOST_PATCHES = 2**18
_PIECE = 256


class PatchMoments(NamedTuple):
    """Mean and covariance of flattened patches, float64, and over how many they were taken."""

    mean: Float[Tensor, " pixels"]
    covariance: Float[Tensor, "pixels pixels"]
    patches: int


def start_whitened(model: SelfDistillation, source: ImageSource, config: RunConfig) -> None:
    """Whiten both networks' patch embedding over a sample of the run's images.

    The sample is a function of the run's seed, so every process computes the same weights. Costs one reading of up to
    4,000 images (fewer of large ones, 2**18 patches in all): two seconds for CIFAR-10.
    With fewer patches than a patch has numbers, directions that no patch shows take the least variance that is raised.
    """
    embed, theirs = model.student.backbone.patch_embed, model.teacher.backbone.patch_embed
    assert isinstance(embed, PatchEmbed)
    moments = patch_moments(source, config, embed)
    generator = torch.Generator().manual_seed(_seed(config))
    whiten(embed.proj, moments.mean, moments.covariance, generator)
    theirs.load_state_dict(embed.state_dict())


def patch_moments(source: ImageSource, config: RunConfig, embed: PatchEmbed) -> PatchMoments:
    """Moments over whole images at the size of the largest views, normalised as the networks see them."""
    largest = max(config.views.values(), key=lambda group: math.prod(group.height_width))
    height, width = largest.height_width
    whole = {
        "whole": ViewGroup(
            count=1, size=(height, width), area=(1.0, 1.0), aspect=(width / height, width / height), flip=0.0
        )
    }
    patches = height * width // config.backbone.patch_size**2
    images = min(len(source), MOST_IMAGES, max(1, MOST_PATCHES // patches))
    pieces = math.ceil(images / _PIECE)
    loader = make_loader(
        source, whole, batch_size=images // pieces, seed=_seed(config), workers=0, total_steps=pieces,
        at_least=config.speed.decode_at_least, keep_bytes=0,
    )  # fmt: skip
    device = embed.proj.weight.device
    numbers = embed.proj.weight[0].numel()
    total = torch.zeros(numbers, dtype=torch.float64, device=device)
    products = torch.zeros(numbers, numbers, dtype=torch.float64, device=device)
    count = 0
    for loaded in loader:
        views = augment(loaded.views.to(device), whole, config.backbone.patch_size, config.mean, config.std)
        piece = embed.cut(views.groups["whole"].pixels.flatten(0, 1)).flatten(0, 1).double()
        total += piece.sum(dim=0)
        products += piece.T @ piece
        count += len(piece)
    mean = total / count
    return PatchMoments(mean, products / count - mean.outer(mean), count)


def _seed(config: RunConfig) -> int:
    return hash_seed(config.seed, *b"whitened") & (2**63 - 1)
