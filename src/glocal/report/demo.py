"""What the demo asks of a model, in words a visitor understands; and the same asked of raw pixels and random weights.

Global: tiles of 18 photographs are the gallery; a distorted crop of a tile (a part of it, mirrored or not, recoloured,
blurred) is the query. From which photograph does the nearest tile come? Local: the same of a single patch of the crop,
searched among all patches of all tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from glocal.data import ImageSource, open_source
from glocal.models.encoder import Encoder
from glocal.models.loading import load
from glocal.models.vit import VisionTransformer
from glocal.recipes import configure
from glocal.report.page import Shown, write_report
from glocal.training.config import RunConfig
from glocal.views.augment import augment
from glocal.views.groups import ViewGroup
from glocal.views.loader import ViewDataset
from glocal.views.photometric.blur import GaussianBlur
from glocal.views.photometric.colour import ColorJitter
from glocal.views.randomness import hash_seed
from glocal.views.sampling import BatchKey

Pixels = UInt8[Tensor, "images 3 side side"]
Embed = Callable[[Pixels], Tensor]


class Retrieval(NamedTuple):
    """Nearest gallery tiles of every query, and the share whose nearest tile is of the right photograph (0..1)."""

    nearest: Int64[Tensor, "queries shown"]
    right: Float[Tensor, "queries shown"]
    accuracy: float


class Answers(NamedTuple):
    """The table of the demo, and what its pictures show."""

    columns: tuple[str, ...]
    rows: list[tuple[str, list[float]]]
    queries: Pixels
    tiles: Pixels
    found: dict[str, Retrieval]
    trained: Encoder


# Two minutes of two cores; on a slower machine the run is shorter, not later.
SETTINGS = (
    "training.minutes=1.75",
    "training.batch_size=128",
    "training.log_every=50",
    "probe.enabled=false",
)


SHOWN_PATCHES = 32
"""Patches on a photograph's side: about the scale at which tiles of 84 pixels were learnt."""


def demo_configuration(out: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The flagship on tiles of the bundled photographs, for two cores and two minutes."""
    return configure(
        "glocal", data="photos-tiles", out=out, preset="cifar", overrides=[*SETTINGS, *overrides]
    )


def free_folder(wanted: Path) -> Path:
    """The folder, or its first free numbered sibling, so that the demo can be run again."""
    path, number = wanted, 2
    while path.exists() and any(path.iterdir()):
        path, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return path


def measure(config: RunConfig) -> Answers:
    """Ask raw pixels, a model of random weights and the trained model both questions; figures in per cent."""
    source = open_source(config.data)
    assert source.labels is not None
    side = config.backbone.image_size
    tiles, queries = gallery(source, side), distorted(source, side)
    trained, untrained = load(config.out), _random_encoder(config)
    embeds: dict[str, Embed] = {
        "raw pixels": raw_pixels,
        "random weights": by_encoder(untrained),
        "trained": by_encoder(trained),
    }
    retrievals = {name: retrieve(embed, queries, tiles, source.labels) for name, embed in embeds.items()}
    patch_embeds = {
        "raw pixels": raw_patches(config.backbone.patch_size),
        "random weights": patches_by_encoder(untrained),
        "trained": patches_by_encoder(trained),
    }
    one_patch = [
        100 * retrieve_patches(embed, queries, tiles, source.labels) for embed in patch_embeds.values()
    ]
    rows = [
        (
            "global: which of 18 photographs is this distorted crop from?",
            [100 * r.accuracy for r in retrievals.values()],
        ),
        ("local: which of 18 photographs is this one patch of the crop from?", one_patch),
    ]
    return Answers(tuple(embeds), rows, queries, tiles, retrievals, trained)


TITLE = "What was learnt (per cent right)"


def write_demo_page(config: RunConfig, answers: Answers) -> Path:
    """One page of the run: whole photographs to click, a map of all tiles, the model before training beside it."""
    rows = [[question, *(f"{value:.1f}" for value in row)] for question, row in answers.rows]
    table = {"title": TITLE, "columns": ["question", *answers.columns], "rows": rows}
    shown = Shown(
        images=500, samples=12, samples_from="photos", size=SHOWN_PATCHES * config.backbone.patch_size
    )
    return write_report(config.out, shown=shown, extra={"table": table})


def _random_encoder(config: RunConfig) -> Encoder:
    """The run's architecture before any training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = VisionTransformer(config.backbone)
    return Encoder(
        "random weights", backbone, backbone.embed_dim, config.backbone.patch_size, config.backbone.image_size
    )


def gallery(source: ImageSource, side: int) -> Pixels:
    """Every tile, whole, at this size."""
    return _views(source, ViewGroup(count=1, size=side, area=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0))


def distorted(source: ImageSource, side: int, seed: int = 7) -> Pixels:
    """A distorted crop of every tile: 45 to 85 % of it, mirrored or not, recoloured, blurred."""
    colours = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    group = ViewGroup(
        count=1,
        size=side,
        area=(0.45, 0.85),
        photometric=((colours, GaussianBlur(sigma=(0.1, 1.0), probability=0.5)),),
    )
    return _views(source, group, seed)


def retrieve(
    embed: Embed, queries: Pixels, tiles: Pixels, photographs: Int64[np.ndarray, " tiles"], shown: int = 4
) -> Retrieval:
    """Nearest tiles by cosine; a query's own tile is in the gallery, as in any search for a picture's source."""
    similarity = F.normalize(embed(queries), dim=1) @ F.normalize(embed(tiles), dim=1).T
    nearest = similarity.topk(shown, dim=1).indices
    labels = torch.from_numpy(photographs)
    right = (labels[nearest] == labels[:, None]).float()
    return Retrieval(nearest, right, float(right[:, 0].mean()))


def retrieve_patches(
    embed: Embed, queries: Pixels, tiles: Pixels, photographs: Int64[np.ndarray, " tiles"], each: int = 2
) -> float:
    """Take `each` patches of every query; share whose nearest patch, among all patches of all tiles, is of the right
    photograph (0..1). Patches of a query's own tile are in the gallery, as its tile is for whole images.
    """
    ours, theirs = (F.normalize(embed(pixels), dim=-1) for pixels in (queries, tiles))
    patches = ours.shape[1]
    chosen = torch.tensor(
        [[hash_seed(image, k) % patches for k in range(each)] for image in range(len(ours))]
    )
    asked = ours[torch.arange(len(ours))[:, None], chosen].flatten(0, 1)
    table = theirs.flatten(0, 1).T
    nearest = torch.cat([(portion @ table).argmax(dim=1) for portion in torch.split(asked, 256)]) // patches
    labels = torch.from_numpy(photographs)
    return float((labels[nearest] == labels.repeat_interleave(each)).float().mean())


def raw_patches(patch: int) -> Embed:
    """The pixels of every patch as vectors, their mean taken off."""

    def embed(pixels: Pixels) -> Float[Tensor, "images patches dim"]:
        cells = F.unfold(pixels.float(), patch, stride=patch).transpose(1, 2)
        return cells - cells.mean(dim=2, keepdim=True)

    return embed


def patches_by_encoder(encoder: Encoder, batch: int = 256) -> Embed:
    """The patch embeddings of a model."""

    def embed(pixels: Pixels) -> Float[Tensor, "images patches dim"]:
        return torch.cat(
            [
                encoder.features(encoder.normalise(portion.to(encoder.device))).patches.float().cpu()
                for portion in torch.split(pixels, batch)
            ]
        )

    return embed


def raw_pixels(pixels: Pixels) -> Float[Tensor, "images dim"]:
    """The picture itself as a vector, its mean taken off so that cosine is correlation."""
    flat = pixels.flatten(1).float()
    return flat - flat.mean(dim=1, keepdim=True)


def by_encoder(encoder: Encoder, batch: int = 256) -> Embed:
    """The class embedding of a model."""

    def embed(pixels: Pixels) -> Float[Tensor, "images dim"]:
        return torch.cat(
            [
                encoder.features(encoder.normalise(portion.to(encoder.device))).cls.float().cpu()
                for portion in torch.split(pixels, batch)
            ]
        )

    return embed


def _views(source: ImageSource, group: ViewGroup, seed: int = 0) -> Pixels:
    """One view of every image through the training pipeline, back as bytes."""
    indices = np.arange(len(source), dtype=np.int64)
    seeds = np.array([hash_seed(seed, int(i)) for i in indices], dtype=np.int64)
    loaded = ViewDataset(source, {"view": group}).render(BatchKey(indices, seeds))
    pixels = (
        augment(loaded.views, {"view": group}, 1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        .groups["view"]
        .pixels
    )
    return (pixels[:, 0] * 255).round().clamp(0, 255).byte()
