"""From an image source to batches of views: what the worker processes do."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from glocal.data.readable import first_readable
from glocal.errors import GlocalError, TrainingError, UnreadableImageError
from glocal.views.batch import ViewBatch, Views
from glocal.views.boxes import GeometryLaw
from glocal.views.decoded import KEEP_BYTES, DecodedImages
from glocal.views.groups import ViewGroup
from glocal.views.render import Box, crop_and_resize
from glocal.views.sampling import BatchKey, EpochSampler
from glocal.views.worker_deaths import DeathRegister, ReadingNow, dead_workers, deaths_seen_by_polling

if TYPE_CHECKING:
    from glocal.data import ImageSource

PREFETCH = 2
PIECE = 16
"""Images decoded, placed and cropped together: enough to share the fixed cost of placing, few enough for the cache."""
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class LoadedBatch:
    """One batch of views, (key, reason) of every image that could not be decoded while it was made, and `notes`:
    sentences about worker processes that died on the way.
    """

    views: Views
    unreadable: list[tuple[str, str]]
    notes: tuple[str, ...] = ()

    def pin_memory(self) -> LoadedBatch:
        """Called by the data loader."""
        return replace(self, views=self.views.pin_memory())


class ViewDataset(Dataset[LoadedBatch | GlocalError]):
    """Renders whole batches: a `BatchKey` gives a `LoadedBatch`, a pure function of the key and the source.

    A batch at a time, because then random numbers are drawn for all its images at once and every view is written
    straight to its place: nothing is collated. An unreadable image is replaced by the next readable one in the
    source's order, which takes over the seed, and is reported with the batch.

    An error of ours is returned, not raised, so that it crosses the process border as it is, without the wrapping that
    a DataLoader gives to exceptions of its workers; `ViewLoader` raises it.
    """

    def __init__(
        self,
        source: ImageSource,
        groups: Mapping[str, ViewGroup],
        at_least: int | None = None,
        keep_bytes: int = 0,
        workers: int = 0,
    ) -> None:
        self.source, self.groups = source, dict(groups)
        if at_least is not None:
            # A reduced image must not be enlarged again by a view that the whole one could have filled.
            at_least = max(at_least, *(group.source_side for group in groups.values()))
        self.decoded = DecodedImages(source, at_least, keep_bytes)
        self.law = GeometryLaw(groups)
        self.reading = ReadingNow(workers)
        self.left_out: dict[int, str] = {}

    def __getitem__(self, key: BatchKey) -> LoadedBatch | GlocalError:
        try:
            return self.render(key)
        except GlocalError as error:
            return error

    def render(self, key: BatchKey) -> LoadedBatch:
        """Decode, crop and resize one batch.

        Raises:
            DataError: when 32 images in a row can't be decoded.
        """
        draws = self.law.draw(key.seeds)
        images, views = draws.flip.shape
        pixels = {name: _empty_bytes(images, g.count, 3, *g.height_width) for name, g in self.groups.items()}
        box = np.empty((images, views, 4), dtype=np.float32)
        index, size = key.indices.copy(), np.empty((images, 2), dtype=np.int64)
        unreadable: list[tuple[str, str]] = []
        for start in range(0, images, PIECE):
            rows = slice(start, start + PIECE)
            index[rows], sources = zip(
                *(first_readable(self.source, i, self._decode, unreadable) for i in index[rows].tolist()),
                strict=True,
            )
            size[rows] = [source.shape[:2] for source in sources]
            boxes = self.law.place(draws, size[rows], start)
            self._crop(sources, boxes.tolist(), draws.flip[rows].tolist(), rows, pixels)
            box[rows] = boxes
        groups = {
            name: ViewBatch(
                pixels[name],
                torch.from_numpy(np.ascontiguousarray(box[:, of_group])),
                torch.from_numpy(np.ascontiguousarray(draws.flip[:, of_group])),
                torch.from_numpy(np.ascontiguousarray(draws.strong[:, of_group])),
            )
            for name, of_group in self.law.slices.items()
        }
        seed = torch.from_numpy(key.seeds.copy())
        return LoadedBatch(Views(groups, seed, torch.from_numpy(index), torch.from_numpy(size)), unreadable)

    def _crop(
        self,
        sources: Sequence[Tensor],
        boxes: list[list[Box]],
        flips: list[list[bool]],
        rows: slice,
        pixels: dict[str, Tensor],
    ) -> None:
        """Write the views of some images to `rows` of every group."""
        for name, of_group in self.law.slices.items():
            size = self.groups[name].height_width
            for slots, source, placed, mirrored in zip(
                pixels[name][rows], sources, boxes, flips, strict=True
            ):
                for slot, box, flip in zip(slots, placed[of_group], mirrored[of_group], strict=True):
                    slot.copy_(crop_and_resize(source, box, size, flip))

    def _decode(self, position: int) -> Tensor:
        if position in self.left_out:
            raise UnreadableImageError(self.left_out[position])
        with self.reading.at(position):
            return torch.from_numpy(self.decoded.read(position))


class ViewLoader(DataLoader[LoadedBatch]):
    """A DataLoader that raises what `ViewDataset` returns as an error, ends its workers at once then, and outlives theirs.

    Workers live as long as one pass, which is a whole run. Kept alive beyond it (`persistent_workers`), they would
    outlast an error through the loader that its traceback holds. When one dies, all are started anew at the first batch
    that has not come: batches are a pure function of their key, so the run is the same bit for bit, but for an image that
    killed two of them (see `DeathRegister`).
    """

    def __iter__(self) -> Iterator[LoadedBatch]:  # type: ignore[override]
        deaths, came = DeathRegister(), 0
        notes: list[str] = []
        order, dataset = cast("EpochSampler", self.sampler), cast("ViewDataset", self.dataset)
        first = order.start_step
        while True:
            order.start_step = first + came
            with deaths_seen_by_polling():
                batches = super().__iter__()
            order.start_step = first
            try:
                for batch in batches:
                    if isinstance(batch, GlocalError):
                        raise batch
                    came += 1
                    deaths.a_batch_came()
                    yield replace(batch, notes=tuple(notes))
                    notes = []
                return
            except (RuntimeError, OSError, EOFError):
                died = dead_workers(batches)
                if not died:
                    raise
                for worker, code in died:
                    position = dataset.reading.position(worker)
                    name = "" if position is None else dataset.source.key(position)
                    notes.append(deaths.note(position, code, name))
                dataset.left_out = dict(deaths.left_out)
            finally:
                # The iterator ends its workers when it is freed; the frame of a traceback must not hold it.
                del batches


def make_loader(
    source: ImageSource,
    groups: Mapping[str, ViewGroup],
    *,
    batch_size: int,
    seed: int,
    workers: int,
    total_steps: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    shared: Literal["image", "batch"] = "image",
    at_least: int | None = None,
    keep_bytes: int = KEEP_BYTES,
    pin_memory: bool = False,
    weights: NDArray[np.float64] | None = None,
) -> ViewLoader:
    """Load the batches of steps `start_step` to `total_steps - 1`; `batch_size` counts images over all processes.

    The batches are the same bit for bit whatever `workers` is (0: in this process). Each worker makes whole batches and
    works on one thread. The global random generator is left alone: neither loading nor resuming changes what the
    training step draws from it. `at_least` lets JPEGs be decoded at a smaller scale, boxes
    then refer to that size; it is raised to what keeps the views' smallest boxes from being enlarged.
    `weights` say how often each image is drawn; null: once an epoch.
    Images of a small set are decoded once and kept in up to `keep_bytes` (see `DecodedImages`).

    Raises:
        TrainingError: the batch is larger than the data set, or the batches on their way from the workers don't fit
            into shared memory.
        ConfigError: the batch doesn't split over the processes.
    """
    sampler = EpochSampler(
        len(source), batch_size, seed,
        total_steps=total_steps, start_step=start_step, rank=rank, world_size=world_size, shared=shared, weights=weights,
    )  # fmt: skip
    if workers:
        _check_shared_memory(groups, batch_size // world_size, workers)
    return ViewLoader(
        cast("Dataset[LoadedBatch]", ViewDataset(source, groups, at_least, keep_bytes, workers)),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_parent,
        # A loader draws a seed for its workers when iterated; from the global generator if it has none of its own.
        generator=torch.Generator(),
    )


def _empty_bytes(*shape: int) -> Tensor:
    """An uint8 tensor to fill; in a worker, memory that the main process reads without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore the signals that ask a run to stop, and SIGTERM unless this worker's own parent sent it.

    Schedulers and terminals signal the whole process group. A worker that died of it would cost the run some batches
    before its checkpoint is written. But a parent that exits with a loader still alive ends its workers by SIGTERM and
    waits for them, so that ignoring the signal altogether would keep the parent from ever exiting.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where workers die of SIGTERM
        # Threads made from here on inherit the mask, so the one that waits is the only one to get the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _check_shared_memory(groups: Mapping[str, ViewGroup], images: int, workers: int) -> None:
    """Refuse what would end in a bus error: containers often give shared memory 64 MB."""
    if not _SHARED_MEMORY.is_dir():
        return
    per_image = sum(
        3 * group.count * group.height_width[0] * group.height_width[1] for group in groups.values()
    )
    needed = per_image * images * (workers * PREFETCH + 1)
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise TrainingError(
            f"{workers} workers need {needed / 2**20:.0f} MB of shared memory for batches on their way, "
            f"{_SHARED_MEMORY} has {free / 2**20:.0f} MB free. Enlarge it (docker: --shm-size), "
            f"or set speed.workers to {_most_workers(free, per_image * images)}."
        )


def _most_workers(free: int, batch_bytes: int) -> int:
    return max(0, (free // max(1, batch_bytes) - 1) // PREFETCH)
