"""Which image comes when: batches as a pure function of (seed, step), so that a position is just a step number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from glocal.errors import ConfigError, TrainingError
from glocal.views.randomness import fold_in_array, hash_seed, mix_array, uniform_array

_ROUNDS = 6
_WEIGHTED = 1
"""Tells the seed of an epoch's draw from that of its order."""


class BatchKey(NamedTuple):
    """One process's part of one batch: `indices` into the source and one 64-bit seed an image, both int64 (images,)."""

    indices: NDArray[np.int64]
    seeds: NDArray[np.int64]


class EpochSampler(Sampler[BatchKey]):
    """The batches of steps `start_step` to `total_steps - 1`, as this process sees them.

    Every epoch visits the images in its own random order; what doesn't fill a batch at its end is left out. The global
    batch of a step depends on (seed, step) alone, and process `rank` of `world_size` takes its contiguous part: one and
    several processes train on the same batches, and a run continues at any step with any number of workers and
    processes. Nothing has to be stored but the step. This departs from the plan to store the state of torchdata's
    StatefulDataLoader: that state belongs to one rank and one number of workers.

    The order is computed position by position (see `shuffled`), so an epoch of fifty million images costs neither
    memory nor a pause at its start. An image's seed is hashed from (seed, epoch, image); with `shared="batch"` all
    images of a global batch get one seed hashed from (seed, step), hence equal colours and, where their sizes are
    equal, equal crops (the PW-Self reference; there, images were first squashed to one size).

    With `weights`, an epoch draws as many images, image i `length * weights[i]` times on average: systematic sampling over
    a new random order of the images every epoch, so that an image's count is its expectation rounded up or down. Nothing
    is copied; an epoch's order takes 16 bytes an image and is made at its first batch.

    Raises:
        TrainingError: when the batch is larger than the data set.
        ConfigError: when the batch doesn't split over the processes.

    >>> [key.indices.tolist() for key in EpochSampler(length=6, batch_size=3, seed=0, total_steps=2)]
    [[4, 2, 5], [1, 0, 3]]
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shared: Literal["image", "batch"] = "image",
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if batch_size > length:
            raise TrainingError(
                f"training.batch_size={batch_size} is larger than the data set ({length} images). "
                f"Set training.batch_size to at most {length}."
            )
        if batch_size % world_size:
            raise ConfigError(
                f"training.batch_size={batch_size} can't be split over {world_size} processes. "
                f"Choose a multiple of {world_size}."
            )
        self.length, self.batch_size, self.seed, self.shared = length, batch_size, seed, shared
        self.start_step, self.total_steps = start_step, total_steps
        self._weights = weights
        self._drawn: tuple[int, NDArray[np.int64]] | None = None
        share = batch_size // world_size
        self._own_positions = np.arange(rank * share, (rank + 1) * share, dtype=np.int64)

    def __len__(self) -> int:
        return max(0, self.total_steps - self.start_step)

    def __iter__(self) -> Iterator[BatchKey]:
        return (self.at(step) for step in range(self.start_step, self.total_steps))

    def at(self, step: int) -> BatchKey:
        """Return the batch of one step."""
        epoch, batch = divmod(step, self.length // self.batch_size)
        indices = shuffled(
            batch * self.batch_size + self._own_positions, self.length, hash_seed(self.seed, epoch)
        )
        if self._weights is not None:
            indices = self._weighted(self._weights, epoch)[indices]
        if self.shared == "batch":
            return BatchKey(indices, np.full(len(indices), hash_seed(self.seed, step), dtype=np.int64))
        of_epoch = np.array([hash_seed(self.seed, epoch)], dtype=np.int64).view(np.uint64)
        drawn = indices.view(np.uint64)
        if self._weights is not None:
            # An image may come twice in an epoch: its place in the epoch tells its two views' seeds apart.
            place = (batch * self.batch_size + self._own_positions).view(np.uint64)
            of_epoch = fold_in_array(of_epoch, place)
        return BatchKey(indices, fold_in_array(of_epoch, drawn).view(np.int64))

    def _weighted(self, weights: NDArray[np.float64], epoch: int) -> NDArray[np.int64]:
        """The images that an epoch draws, `length` of them, in any order: a function of (seed, epoch)."""
        if self._drawn is None or self._drawn[0] != epoch:
            seed = hash_seed(self.seed, epoch, _WEIGHTED)
            order = shuffled(np.arange(self.length), self.length, seed)
            reached = np.cumsum(weights[order])
            offset = uniform_array(np.array([seed], np.int64).view(np.uint64), 1)[0, 0]
            places = (np.arange(self.length) + offset) / self.length * reached[-1]
            self._drawn = (
                epoch,
                order[np.searchsorted(reached, places, side="right").clip(max=self.length - 1)],
            )
        return self._drawn[1]


def shuffled(positions: NDArray[np.int64], length: int, seed: int) -> NDArray[np.int64]:
    """Return what stands at `positions` in a pseudorandom permutation of 0 .. length-1, without making all of it.

    A Feistel network of six rounds on the smallest even number of bits that holds `length`, repeated on numbers that
    fall outside until they fall inside (cycle walking, Black and Rogaway 2002): at most four expected repeats.

    >>> sorted(shuffled(np.arange(5), 5, seed=3).tolist())
    [0, 1, 2, 3, 4]
    """
    half = np.uint64(max(1, (max(1, length - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.array([hash_seed(seed, number) for number in range(_ROUNDS)], dtype=np.int64).view(np.uint64)
    result = positions.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        left, right = result[outside] >> half, result[outside] & mask
        for key in keys:
            left, right = right, left ^ (mix_array(right + key) & mask)
        result[outside] = (left << half) | right
        outside = outside[result[outside] >= length]
    return result.astype(np.int64)
