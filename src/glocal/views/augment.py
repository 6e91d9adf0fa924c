"""From the workers' uint8 views to what the networks see: photometric operations and normalisation, on any device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from glocal.views.batch import ViewBatch, Views
from glocal.views.groups import Pipeline, ViewGroup
from glocal.views.photometric import apply_pipeline, apply_pipeline_both
from glocal.views.randomness import fold_in

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# On a CPU, views pass through a pipeline in portions whose float pixels take about this much, so that every operation
# finds them in the second-level cache.
CHUNK_BYTES = 1_200_000


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
    goes without such operations altogether.

    Views of one pipeline are processed together; `patch_size` is the cell of operations with `unit: patch`.

    >>> from glocal.views.groups import ViewGroup
    >>> # augment(loaded.views.to(device), {"global": ViewGroup(count=2, size=224, area=(0.4, 1.0))}, patch_size=16)
    """
    done = {}
    for number, (name, group) in enumerate(groups.items()):
        batch = views.groups[name]
        seeds = _view_seeds(views.seed, number, group.count).to(batch.pixels.device)
        done[name] = _augment_group(batch, group, seeds, patch_size, _Normalisation(mean, std, batch.pixels.device))
    return views.with_groups(done)


class _Normalisation:
    """(pixels - mean) / std, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.scale = (1.0 / torch.tensor(std)).view(3, 1, 1).to(device, non_blocking=True)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1).to(device, non_blocking=True)

    def write(self, pixels: Float[Tensor, "n 3 height width"], out: Float[Tensor, "n 3 height width"]) -> None:
        torch.addcmul(self.shift, pixels, self.scale, out=out)


def _view_seeds(seed: Int64[Tensor, " batch"], group: int, views: int) -> Int64[Tensor, "batch views"]:
    of_group = fold_in(seed, group)
    return fold_in(of_group[:, None], torch.arange(views, device=seed.device)[None, :])


def _augment_group(
    batch: ViewBatch, group: ViewGroup, seeds: Int64[Tensor, "batch views"], patch_size: int, norm: _Normalisation
) -> ViewBatch:
    pixels = batch.pixels.flatten(0, 1)
    student = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
    both = group.seen_by == "both" and any(op.seen_by == "student" for pipeline in _pipelines(group) for op in pipeline)
    teacher = torch.empty_like(student) if both else None
    for pipeline, rows in _shares(batch, group):
        if rows is None:
            _run(pixels, pipeline, seeds.flatten(), patch_size, norm, group.seen_by, student, teacher)
            continue
        some = torch.empty((len(rows), *pixels.shape[1:]), dtype=torch.float32, device=pixels.device)
        some_teacher = torch.empty_like(some) if both else None
        rows = rows.to(pixels.device, non_blocking=True)
        _run(pixels[rows], pipeline, seeds.flatten()[rows], patch_size, norm, group.seen_by, some, some_teacher)
        student[rows] = some
        if teacher is not None and some_teacher is not None:
            teacher[rows] = some_teacher
    shape = batch.pixels.shape
    return replace(batch, pixels=student.view(shape), teacher_pixels=None if teacher is None else teacher.view(shape))


def _pipelines(group: ViewGroup) -> list[Pipeline]:
    return [*group.photometric, *([group.strong] if group.strong is not None else [])]


def _shares(batch: ViewBatch, group: ViewGroup) -> list[tuple[Pipeline, Int64[Tensor, " rows"] | None]]:
    """Every distinct pipeline with the flat numbers of its views; None stands for all of them.

    Coins live on the CPU like all geometry, so that counting takes no wait for the device.
    """
    per_view = group.photometric * (group.count // len(group.photometric))
    if group.strong is None and len(set(per_view)) == 1:
        return [(per_view[0], None)]
    strong = batch.strong.cpu()
    number = torch.arange(strong.numel()).view(strong.shape)
    shares = []
    for pipeline in dict.fromkeys(_pipelines(group)):
        weak = torch.tensor([p == pipeline for p in per_view])
        taken = (weak & ~strong) | (strong if pipeline == group.strong else torch.zeros_like(strong))
        if taken.any():
            shares.append((pipeline, number[taken]))
    return shares


def _run(
    pixels: UInt8[Tensor, "n 3 height width"],
    pipeline: Pipeline,
    seeds: Int64[Tensor, " n"],
    patch_size: int,
    norm: _Normalisation,
    seen_by: str,
    student: Float[Tensor, "n 3 height width"],
    teacher: Float[Tensor, "n 3 height width"] | None,
) -> None:
    """One pipeline on its views, written normalised to `student` and, where it differs, to `teacher`."""
    student_only = any(op.seen_by == "student" for op in pipeline)
    chunk = max(1, CHUNK_BYTES // (4 * pixels[0].numel())) if pixels.device.type == "cpu" else len(pixels)
    for start in range(0, len(pixels), chunk):
        rows = slice(start, start + chunk)
        unit = pixels[rows].to(torch.float32).mul_(1 / 255)
        if student_only and seen_by != "student":
            for_student, for_teacher = apply_pipeline_both(unit, pipeline, seeds[rows], patch_size)
            norm.write(for_teacher if seen_by == "teacher" else for_student, student[rows])
        else:
            for_student = for_teacher = apply_pipeline(unit, pipeline, seeds[rows], patch_size)
            norm.write(for_student, student[rows])
        if teacher is not None:
            norm.write(for_teacher, teacher[rows])
