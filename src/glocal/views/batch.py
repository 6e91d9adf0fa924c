"""Views that know their geometry: pixels of one batch by group, with the box, the flip and the seed they came from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ViewBatch:
    """The views of one group.

    `pixels` is uint8 from the workers and normalised float after `augment`. `box` is (top, left, height, width) in
    source-image pixels. A view shows its box mirrored left-right where `flip` is set. `strong` says which views took
    the group's strong pipeline. `teacher_pixels` is set only when some operation is kept from the teacher; otherwise
    both networks see `pixels`.
    """

    pixels: UInt8[Tensor, "batch views 3 height width"] | Float[Tensor, "batch views 3 height width"]
    box: Float[Tensor, "batch views 4"]
    flip: Bool[Tensor, "batch views"]
    strong: Bool[Tensor, "batch views"]
    teacher_pixels: Float[Tensor, "batch views 3 height width"] | None = None

    @property
    def for_teacher(self) -> Float[Tensor, "batch views 3 height width"]:
        """What a teacher sees: the views without what is meant for the student only."""
        return self.pixels if self.teacher_pixels is None else self.teacher_pixels


@dataclass(frozen=True)
class Views:
    """All views of one batch of source images, by group name, and what is needed to draw everything else about them.

    `seed` (one 64-bit integer an image, a pure function of run seed, epoch and image) is the only source of randomness
    of the photometric operations: an image's augmentation depends neither on its batch, nor on the worker, the device
    or the number of processes. `index` is the image's position in its data set; `source_size` (height, width) the size
    in which boxes are given.
    """

    groups: dict[str, ViewBatch]
    seed: Int64[Tensor, " batch"]
    index: Int64[Tensor, " batch"]
    source_size: Int64[Tensor, "batch 2"]

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def to(self, device: torch.device) -> Views:
        """Move pixels, asynchronously from pinned memory. Geometry and seeds stay on the CPU: matching runs there in
        milliseconds and so knows its counts without waiting for the device.
        """
        groups = {
            name: replace(group, pixels=group.pixels.to(device, non_blocking=True))
            for name, group in self.groups.items()
        }
        return replace(self, groups=groups)

    def pin_memory(self) -> Views:
        """Pin what `to` moves; called by the data loader."""
        groups = {
            name: replace(group, pixels=group.pixels.pin_memory()) for name, group in self.groups.items()
        }
        return replace(self, groups=groups)

    @property
    def device(self) -> torch.device:
        """Where the pixels are."""
        return next(iter(self.groups.values())).pixels.device

    def split(self, parts: int) -> list[Views]:
        """Cut the batch into equal parts of consecutive images (micro-batches), without copying."""
        if parts == 1:
            return [self]
        size = len(self) // parts
        return [self._rows(slice(start, start + size)) for start in range(0, size * parts, size)]

    def _rows(self, rows: slice | Int64[Tensor, " chosen"]) -> Views:
        groups = {
            name: ViewBatch(
                g.pixels[rows],
                g.box[rows],
                g.flip[rows],
                g.strong[rows],
                None if g.teacher_pixels is None else g.teacher_pixels[rows],
            )
            for name, g in self.groups.items()
        }
        return Views(groups, self.seed[rows], self.index[rows], self.source_size[rows])
