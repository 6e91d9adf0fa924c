"""From the workers' uint8 views to what the networks see: photometric operations and normalisation, on any device.

Three layers: `augment` goes through groups and pieces of their views; `photometric.pipeline` draws and applies the
steps of one pipeline; `photometric.operation` and its neighbours change pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.views.batch import ViewBatch, Views
from glocal.views.groups import Pipeline, ViewGroup
from glocal.views.photometric.pipeline import draw_steps, pieces, run_for_both
from glocal.views.randomness import fold_in

Rows = Int64[Tensor, " rows"] | slice
"""Some views of a group by flat number, image * views + view."""


def augment(
    views: Views,
    groups: Mapping[str, ViewGroup],
    patch_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Views:
    """Turn uint8 views into normalised float32 ones, each through its own pipeline.

    A view's random numbers come from `fold_in(fold_in(seed, number of its group), number of the view)`: pure in the
    image's seed, whatever the batch, the device or the process. Where an operation is meant for the student only,
    `teacher_pixels` holds the view without it, all other operations drawn alike; a group that only the teacher sees
    goes without such operations altogether. `patch_size` is the cell of operations with `unit: patch`.

    >>> augment(batch.views.to(device), config.views, patch_size=16).groups["global"].pixels.dtype  # doctest: +SKIP
    torch.float32
    """
    normalise = Normalisation(mean, std, views.device)
    augmented = {}
    for number, (name, group) in enumerate(groups.items()):
        seeds = view_seeds(views.seed, number, group.count).to(views.device, non_blocking=True)
        augmented[name] = _augment_group(views.groups[name], group, seeds.flatten(), patch_size, normalise)
    return replace(views, groups=augmented)


def view_seeds(seed: Int64[Tensor, " batch"], group: int, views: int) -> Int64[Tensor, "batch views"]:
    """Derive the seed of every view of group number `group` from the images' seeds."""
    return fold_in(fold_in(seed, group)[:, None], torch.arange(views, device=seed.device))


class Normalisation:
    """(pixels - mean) / std by channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        scale = 1.0 / torch.tensor(std).view(3, 1, 1)
        shift = -torch.tensor(mean).view(3, 1, 1) * scale
        self._scale, self._shift = scale.to(device, non_blocking=True), shift.to(device, non_blocking=True)

    def write(
        self,
        pixels: Float[Tensor, "piece 3 height width"],
        out: Float[Tensor, "views 3 height width"],
        rows: Rows,
        piece: slice,
    ) -> None:
        """Write to one piece of the chosen rows of `out`; overwrites `pixels`.

        Two passes, the first within the cache: `addcmul` with its two broadcast arguments is three times slower.
        """
        if isinstance(rows, slice):
            torch.add(pixels.mul_(self._scale), self._shift, out=out[rows][piece])
        else:
            out[rows[piece]] = pixels.mul_(self._scale).add_(self._shift)


def _augment_group(
    batch: ViewBatch,
    group: ViewGroup,
    seeds: Int64[Tensor, " views"],
    patch_size: int,
    normalise: Normalisation,
) -> ViewBatch:
    """Run the group's views through their pipelines, piece by piece."""
    pixels = batch.pixels.flatten(0, 1)
    height, width = pixels.shape[-2:]
    shares = _shares(batch, group)
    student = torch.empty(batch.pixels.shape, dtype=torch.float32, device=batch.pixels.device)
    differs = any(operation.seen_by == "student" for pipeline, _ in shares for operation in pipeline)
    teacher = torch.empty_like(student) if differs and group.seen_by == "both" else None
    for pipeline, rows in shares:
        chosen = pixels[rows]
        steps = draw_steps(pipeline, seeds[rows], patch_size, (height, width))
        if group.seen_by == "teacher":
            steps = [step for step in steps if step.seen_by == "both"]
        for piece in pieces(chosen):
            for_student, for_teacher = run_for_both(steps, chosen[piece], piece, patch_size)
            if teacher is not None:
                seen = for_student.clone() if for_teacher is None else for_teacher
                normalise.write(seen, teacher.flatten(0, 1), rows, piece)
            normalise.write(for_student, student.flatten(0, 1), rows, piece)
    return replace(batch, pixels=student, teacher_pixels=teacher)


def _shares(batch: ViewBatch, group: ViewGroup) -> list[tuple[Pipeline, Rows]]:
    """Pair pipelines with the views they apply to.

    Coins live on the CPU like all geometry, so that counting them takes no wait for the device.
    """
    per_view = group.photometric * (group.count // len(group.photometric))
    pipelines = list(dict.fromkeys(per_view))
    if group.strong is None:
        if len(pipelines) == 1:
            return [(pipelines[0], slice(None))]
        return [(pipeline, slice(view, None, group.count)) for view, pipeline in enumerate(per_view)]
    strong = batch.strong.cpu()
    number = torch.arange(strong.numel()).view(strong.shape)
    shares = [(group.strong, number[strong])]
    for pipeline in pipelines:
        takes = torch.tensor([of_view == pipeline for of_view in per_view])
        shares.append((pipeline, number[takes & ~strong]))
    device = batch.pixels.device
    return [(pipeline, rows.to(device, non_blocking=True)) for pipeline, rows in shares if len(rows)]
