"""From the workers' uint8 views to what the networks see: photometric operations and normalisation, on any device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.views.batch import ViewBatch, Views
from glocal.views.groups import Pipeline, ViewGroup
from glocal.views.photometric import apply_pipeline, apply_pipeline_both
from glocal.views.randomness import fold_in

# On a CPU, views are processed in portions of about this many bytes of float pixels. Temporary tensors then stay small
# enough to be recycled by the allocator: fresh memory costs 0.4 ms a megabyte in page faults on some virtual machines.
PORTION_BYTES = 8_000_000

# Which views of a group: all of them, one by number, or some by flat number (image * views + view).
Selection = int | Int64[Tensor, " rows"] | None


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

    >>> from glocal.views.boxes import draw_geometry  # doctest: +SKIP
    >>> augment(batch.views.to(device), config.views, patch_size=16).groups["global"].pixels.dtype  # doctest: +SKIP
    torch.float32
    """
    scale = 1.0 / torch.tensor(std).view(3, 1, 1)
    shift = -torch.tensor(mean).view(3, 1, 1) * scale
    normalisation = scale.to(views.device, non_blocking=True), shift.to(views.device, non_blocking=True)
    done = {}
    for number, (name, group) in enumerate(groups.items()):
        seeds = view_seeds(views.seed, number, group.count).to(views.device, non_blocking=True)
        done[name] = _augment_group(views.groups[name], group, seeds, patch_size, normalisation)
    return views.with_groups(done)


def view_seeds(seed: Int64[Tensor, " batch"], group: int, views: int) -> Int64[Tensor, "batch views"]:
    """Derive the seed of every view of group number `group` from the images' seeds."""
    return fold_in(fold_in(seed, group)[:, None], torch.arange(views, device=seed.device))


def _augment_group(
    batch: ViewBatch,
    group: ViewGroup,
    seeds: Int64[Tensor, "batch views"],
    patch_size: int,
    normalisation: tuple[Tensor, Tensor],
) -> ViewBatch:
    """Run every share of the group's views through its pipeline, in portions, and write the results in place."""
    shares = _shares(batch, group)
    student = torch.empty(batch.pixels.shape, dtype=torch.float32, device=batch.pixels.device)
    both = group.seen_by == "both" and any(
        op.seen_by == "student" for pipeline, _ in shares for op in pipeline
    )
    teacher = torch.empty_like(student) if both else None
    for pipeline, selection in shares:
        pixels, its_seeds = _select(batch.pixels, selection), _select(seeds, selection)
        portion = (
            max(1, PORTION_BYTES // (4 * pixels[0].numel())) if pixels.device.type == "cpu" else len(pixels)
        )
        for start in range(0, len(pixels), portion):
            part = slice(start, start + portion)
            if group.seen_by == "student":
                for_student = apply_pipeline(pixels[part], pipeline, its_seeds[part], patch_size)
                for_teacher: Tensor | None = None
            else:
                for_student, for_teacher = apply_pipeline_both(
                    pixels[part], pipeline, its_seeds[part], patch_size
                )
                if group.seen_by == "teacher" and for_teacher is not None:
                    for_student = for_teacher
            _write(for_student, normalisation, student, selection, part)
            if teacher is not None and for_teacher is not None:
                _write(for_teacher, normalisation, teacher, selection, part)
        if teacher is not None and not any(op.seen_by == "student" for op in pipeline):
            _copy(student, teacher, selection)
    return replace(batch, pixels=student, teacher_pixels=teacher)


def _shares(batch: ViewBatch, group: ViewGroup) -> list[tuple[Pipeline, Selection]]:
    """Pair pipelines with the views they apply to.

    Coins live on the CPU like all geometry, so that counting them takes no wait for the device.
    """
    per_view = group.photometric * (group.count // len(group.photometric))
    if group.strong is None:
        return (
            [(per_view[0], None)]
            if len(set(per_view)) == 1
            else [(p, view) for view, p in enumerate(per_view)]
        )
    strong = batch.strong.cpu()
    number = torch.arange(strong.numel()).view(strong.shape)
    shares = [(group.strong, number[strong])]
    for pipeline in dict.fromkeys(per_view):
        takes = torch.tensor([p == pipeline for p in per_view])
        shares.append((pipeline, number[takes & ~strong]))
    device = batch.pixels.device
    return [(pipeline, rows.to(device, non_blocking=True)) for pipeline, rows in shares if len(rows)]


def _select(x: Shaped[Tensor, "batch views *rest"], selection: Selection) -> Shaped[Tensor, rows * rest]:
    """The selected views along one axis; a view of `x` unless chosen by flat number."""
    if isinstance(selection, int):
        return x[:, selection]
    return x.flatten(0, 1) if selection is None else x.flatten(0, 1)[selection]


def _write(
    pixels: Float[Tensor, "rows 3 height width"],
    normalisation: tuple[Tensor, Tensor],
    out: Float[Tensor, "batch views 3 height width"],
    selection: Selection,
    part: slice,
) -> None:
    """Write (pixels - mean) / std to one portion of the selected views of `out`; overwrites `pixels`.

    Two passes, the first within the cache: `addcmul` with its two broadcast arguments is three times slower.
    """
    scale, shift = normalisation
    if isinstance(selection, Tensor):
        out.view(-1, *out.shape[2:])[selection[part]] = pixels.mul_(scale).add_(shift)
    else:
        torch.add(pixels.mul_(scale), shift, out=_select(out, selection)[part])


def _copy(
    source: Float[Tensor, "batch views 3 height width"],
    out: Float[Tensor, "batch views 3 height width"],
    selection: Selection,
) -> None:
    """Copy the selected views."""
    if isinstance(selection, Tensor):
        out.view(-1, *out.shape[2:])[selection] = _select(source, selection)
    else:
        _select(out, selection).copy_(_select(source, selection))
