"""Times of matching, neighbours and memory, and how good the matches of both rules are.

    python -m benchmarks.bench_matching [--threads 2] [--device cpu]

Matching is timed for 64 images x 18 view pairs (2 teacher views against 2 global and 8 local student views), and set
against the backbone's part of a ViT-Ti/16 step on the same views: the teacher's forward of 2 views, forward and
backward of the student's 10 (4 images, scaled to 64). Neighbour selection is timed against the two plain ways to do it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.ratios import Ratio, Size
from benchmarks.ratios import device as default_device
from glocal.matching import bilinear_targets, match_patches, teacher_index
from glocal.matching.similar_patches import similar_patches
from glocal.objectives.by_contrast.ring_memory import RingMemory

IMAGES = 64


def milliseconds(
    device: torch.device, call: Callable[..., object], *args: object, repeats: int = 15
) -> float:
    """Median time of `call(*args)` after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call(*args)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def random_boxes(
    generator: np.random.Generator, shape: tuple[int, int], area: tuple[float, float]
) -> torch.Tensor:
    """Crops of a 256x256 source, as DINO draws them."""
    share = generator.uniform(*area, shape) * 256 * 256
    ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3), shape))
    height = np.clip(np.round(np.sqrt(share / ratio)), 1, 256)
    width = np.clip(np.round(np.sqrt(share * ratio)), 1, 256)
    top, left = (np.floor(generator.random(shape) * (257 - side)) for side in (height, width))
    return torch.from_numpy(np.stack([top, left, height, width], axis=-1)).float()


Geometry = tuple[torch.Tensor, torch.Tensor, tuple[int, int], torch.Tensor, torch.Tensor, tuple[int, int]]


def view_pairs(patch: int, device: torch.device, images: int = IMAGES) -> list[Geometry]:
    """Teacher views against the global and against the local student views; leading axes (images, 2, views)."""
    generator = np.random.default_rng(0)
    big, small = (224 // patch, 224 // patch), (96 // patch, 96 // patch)
    views = []
    for count, area in ((2, (0.4, 1.0)), (8, (0.05, 0.4))):
        boxes = random_boxes(generator, (images, count), area).to(device)
        views.append((boxes, torch.from_numpy(generator.random((images, count)) < 0.5).to(device)))
    (boxes, flips), (local_boxes, local_flips) = views
    other, other_flips = boxes.flip(1), flips.flip(1)  # A global view is matched with the other one only.
    return [
        (boxes[:, :, None], flips[:, :, None], big, other[:, :, None], other_flips[:, :, None], big),
        (boxes[:, :, None], flips[:, :, None], big, local_boxes[:, None], local_flips[:, None], small),
    ]


def flattened(pair: Geometry) -> Geometry:
    """The same pairs with all leading axes in one."""
    boxes_a, flips_a, grid_a, boxes_b, flips_b, grid_b = pair
    boxes_a, boxes_b = torch.broadcast_tensors(boxes_a, boxes_b)
    flips_a, flips_b = torch.broadcast_tensors(flips_a, flips_b)
    return boxes_a.flatten(0, 2), flips_a.flatten(), grid_a, boxes_b.flatten(0, 2), flips_b.flatten(), grid_b


def for_all(function: Callable[..., object], pairs: list[Geometry], **options: object) -> None:
    """Match the global-global and then the global-local pairs: one call each."""
    for pair in pairs:
        function(*pair, **options)


def bench_matching(device: torch.device) -> None:
    """Print the time of every form and rule."""
    print(f"matching, {IMAGES} images x 18 view pairs (ms)")
    for patch in (16, 8):
        pairs = view_pairs(patch, device)
        flat = [flattened(pair) for pair in pairs]
        for rule in ("center", "paper"):
            options = {"rule": rule, "weight": "overlap"}
            dense = milliseconds(device, partial(for_all, teacher_index, pairs, **options))
            lists = milliseconds(device, partial(for_all, match_patches, flat, **options))
            print(f"  patch {patch:2}  rule {rule:6}  teacher_index {dense:6.2f}  match_patches {lists:6.2f}")
        soft = milliseconds(device, for_all, bilinear_targets, pairs)
        print(f"  patch {patch:2}  bilinear_targets {soft:6.2f}")


def quality() -> None:
    """Print pairs and overlap per view pair, to be held against the specification's table (section 6)."""
    print("quality at patch 16: pairs per view pair, mean overlap, share without overlap")
    for name, pair in zip(
        ("global-global", "global-local"), view_pairs(16, torch.device("cpu"), 1500), strict=True
    ):
        for rule in ("paper", "center"):
            found = match_patches(*flattened(pair), rule=rule, weight="overlap")
            per_pair = len(found.image) / (pair[0][..., 0] + pair[3][..., 0]).numel()
            none = (found.weight == 0).float().mean()
            print(f"  {name:13}  {rule:6}  {per_pair:6.1f}  {found.weight.mean():.2f}  {none:.1%}")


def step_share(device: torch.device, images: int = 4) -> tuple[float, float, float]:
    """Milliseconds of a ViT-Ti/16 step's backbones for all images, of matching, and the share of this."""
    from glocal.models.backbone import BackboneConfig
    from glocal.models.vit import VisionTransformer

    student, teacher = (VisionTransformer(BackboneConfig(size="tiny")).to(device) for _ in range(2))
    views = torch.randn(images * 2, 3, 224, 224, device=device)
    local = torch.randn(images * 8, 3, 96, 96, device=device)

    def step() -> None:
        with torch.no_grad():
            teacher(views)
        (student(views).cls.sum() + student(local).cls.sum()).backward()

    whole = milliseconds(device, step, repeats=3) * IMAGES / images
    matching = milliseconds(device, partial(for_all, teacher_index, view_pairs(16, device), weight="overlap"))
    return whole, matching, matching / whole


def bench_step_share(device: torch.device) -> None:
    """Print the share of a ViT-Ti/16 step that matching takes."""
    whole, matching, share = step_share(device)
    print(
        f"ViT-Ti/16 backbones, {IMAGES} images: {whole:.0f} ms a step; matching {matching:.2f} ms = {share:.3%}"
    )


def whole_matrix(tokens: torch.Tensor) -> torch.Tensor:
    """Cosine of all patches with all others."""
    unit = F.normalize(tokens, dim=-1)
    return unit @ unit.transpose(1, 2)


def shifted_maps(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """Products of the token map with itself rolled by the four offsets of a 3x3 window that aren't opposites."""
    field = F.normalize(tokens, dim=-1).unflatten(1, (side, side))
    return torch.stack(
        [(field * field.roll(offset, (1, 2))).sum(-1) for offset in ((0, 1), (1, -1), (1, 0), (1, 1))]
    )


def bench_neighbours(device: torch.device) -> None:
    """Print the time of neighbour selection, and of the similarities alone by the two plain ways."""
    print("neighbours, window 3, k 4 (ms): whole selection | similarities only: all x all, shifted maps")
    for batch, side, dim in ((64, 6, 192), (64, 14, 192), (32, 14, 384), (8, 28, 384), (2, 56, 384)):
        tokens = torch.randn(batch, side * side, dim, device=device)
        ours = milliseconds(device, similar_patches, tokens, (side, side), 4)
        dense = milliseconds(device, whole_matrix, tokens)
        shifted = milliseconds(device, shifted_maps, tokens, side)
        print(f"  {batch:2} x {side}x{side} x {dim}: {ours:7.2f} | {dense:7.2f} {shifted:7.2f}")


def bench_memory(device: torch.device) -> None:
    """Print the times of a full memory at the Mugs recipe's size."""
    memory = RingMemory(65536, 384).to(device)
    memory.write(torch.randn(65536, 384, device=device))
    rows, queries = torch.randn(1024, 384, device=device), torch.randn(IMAGES * 12, 384, device=device)
    size = sum(b.numel() * b.element_size() for b in memory.buffers()) / 2**20
    write = milliseconds(device, memory.write, rows)
    read = milliseconds(device, memory.nearest, queries, 8, repeats=3)
    print(
        f"memory 65,536 x 384 bf16: {size:.0f} MiB; write 1,024 rows {write:.2f} ms; 768 queries, k 8: {read:.0f} ms"
    )


def ratios(size: Size) -> list[Ratio]:
    """Matching as a share of a ViT-Ti/16 step's backbones."""
    shares = [
        step_share(default_device(), images=4 if size == "full" else 1)[2]
        for _ in range(3 if size == "full" else 1)
    ]
    return [Ratio("matching / backbones of a ViT-Ti step", tuple(shares), 0.02)]


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    bench_matching(device)
    quality()
    bench_neighbours(device)
    bench_memory(device)
    bench_step_share(device)


if __name__ == "__main__":
    main()
