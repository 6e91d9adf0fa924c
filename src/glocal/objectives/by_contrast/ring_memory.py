"""The one ring-buffer memory behind every queue and every memory of recent embeddings (Mugs, Zhou et al. 2022)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from glocal.errors import ConfigError, DataError, TrainingError, nearest_name

StorageType = Literal["bf16", "fp32"]

STORAGE_TYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Nearest(NamedTuple):
    """Retrieved rows, most similar first. Where `valid` is False there is none: row 0, slot 0, similarity 0."""

    rows: Float[Tensor, "queries k dim"]
    slot: Int64[Tensor, "queries k"]
    valid: Bool[Tensor, "queries k"]
    similarity: Float[Tensor, "queries k"]


class RingMemory(nn.Module):
    """The last `capacity` embeddings, oldest overwritten first.

    One pointer and one copy of the rows. Rows that were never written are neither returned nor retrieved. The pointer
    and the number of filled rows are Python integers, so that writing never waits for a GPU; they travel in the
    checkpoint as extra state. All processes must write the same rows (gather them first with
    `glocal.distributed.all_gather_rows`), then all hold the same memory.

    Departures from the Mugs reference: one copy instead of three, bf16 storage, norms kept instead of recomputed, no
    noise in rows that were never written. The two settings at the end bring the reference's behaviour back.

    Args:
        capacity: number of rows.
        dim: width of a row.
        storage: `bf16` (half the memory) or `fp32`.
        unit_rows: store rows divided by their length, for a queue of keys.
        payload: keep one integer with each row (a label, an image's index).
        fill_random: start full of Gaussian noise that counts as rows, the same on every process.
        double_advance: move the pointer by twice the rows written unless the write wraps around, as the reference's
            memory does; needs `fill_random`, because whole stretches are then never written.

    Raises:
        ConfigError: for a capacity or width below 1, an unknown storage type, or `double_advance` on its own.

    >>> memory = RingMemory(capacity=4, dim=2, storage="fp32")
    >>> memory.write(torch.arange(6.0).view(3, 2)); memory.rows().shape, memory.filled
    (torch.Size([3, 2]), 3)
    """

    stored: Float[Tensor, "capacity dim"]
    inverse_norm: Float[Tensor, " capacity"]
    written_at: Int64[Tensor, " capacity"]
    payload: Int64[Tensor, " capacity"] | None

    def __init__(
        self,
        capacity: int,
        dim: int,
        storage: StorageType = "bf16",
        unit_rows: bool = False,
        payload: bool = False,
        fill_random: bool = False,
        double_advance: bool = False,
    ) -> None:
        super().__init__()
        if capacity < 1 or dim < 1:
            raise ConfigError(
                f"A memory of {capacity} rows of width {dim} holds nothing; both must be 1 or more."
            )
        if storage not in STORAGE_TYPES:
            hint = nearest_name(storage, STORAGE_TYPES)
            raise ConfigError(f"storage '{storage}' is unknown.{hint} Allowed: {', '.join(STORAGE_TYPES)}.")
        if double_advance and not fill_random:
            raise ConfigError("double_advance leaves rows that are never written; it needs fill_random=True.")
        self.capacity, self.dim = capacity, dim
        self.unit_rows, self.double_advance = unit_rows, double_advance
        self.pointer, self.filled, self.step = 0, 0, 0
        self.register_buffer("stored", torch.zeros(capacity, dim, dtype=STORAGE_TYPES[storage]))
        self.register_buffer("inverse_norm", torch.zeros(capacity))
        self.register_buffer("written_at", torch.full((capacity,), -1))
        self.register_buffer("payload", torch.full((capacity,), -1) if payload else None)
        if fill_random:
            # A generator of its own: every process draws the same noise, and the run's random numbers don't shift.
            self._store(
                0, torch.randn(capacity, dim, generator=torch.Generator().manual_seed(capacity * dim))
            )
            self.filled = capacity

    @torch.no_grad()
    def write(self, rows: Float[Tensor, "new dim"], payload: Int64[Tensor, " new"] | None = None) -> None:
        """Add one step's rows, oldest first. Of more rows than fit the last `capacity` stay, as in a bounded deque.

        A call without rows still counts as a step for `mean_age`.

        Raises:
            DataError: for rows of another width, or a payload that is missing, superfluous or of another length.
        """
        if rows.dim() != 2 or rows.shape[1] != self.dim:
            raise DataError(
                f"Rows have shape {tuple(rows.shape)}; this memory takes (any number, {self.dim})."
            )
        if (payload is None) != (self.payload is None) or (
            payload is not None and payload.shape != rows.shape[:1]
        ):
            seen = "none" if payload is None else f"shape {tuple(payload.shape)}"
            wanted = "none (made with payload=False)" if self.payload is None else f"shape ({rows.shape[0]},)"
            raise DataError(f"The payload is {seen}; this memory takes {wanted}.")
        count = rows.shape[0]
        surplus = max(count - self.capacity, 0)
        start = (self.pointer + surplus) % self.capacity
        before_wrap = min(count - surplus, self.capacity - start)
        for at, chosen in (
            (start, slice(surplus, surplus + before_wrap)),
            (0, slice(surplus + before_wrap, count)),
        ):
            if chosen.start < chosen.stop:
                self._store(at, rows[chosen])
                self.written_at[at : at + chosen.stop - chosen.start] = self.step
                if self.payload is not None and payload is not None:
                    self.payload[at : at + chosen.stop - chosen.start] = payload[chosen]
        wrapped = self.pointer + count > self.capacity
        self.pointer = (
            self.pointer + count * (2 if self.double_advance and not wrapped else 1)
        ) % self.capacity
        self.filled = min(self.filled + count, self.capacity)
        self.step += 1

    def rows(self) -> Float[Tensor, "filled dim"]:
        """The filled rows in storage type and in no particular order of age. A view: don't write to it."""
        return self.stored[: self.filled]

    @torch.no_grad()
    def nearest(
        self,
        queries: Float[Tensor, "queries dim"],
        k: int,
        exclude: Int64[Tensor, " queries"] | None = None,
        chunk: int = 8192,
    ) -> Nearest:
        """Retrieve for every query the `k` filled rows with the largest cosine similarity, as they were written.

        The memory is searched `chunk` rows at a time, so that (queries x capacity) similarities are never all held.
        Rows whose payload equals the query's `exclude` are passed over (an image's own rows). Where fewer than `k` rows
        are eligible, as in a run's first steps, the remaining places are invalid. No gradient flows; rows come back in
        the queries' type.

        Raises:
            ConfigError: when `k` is below 1 or above the capacity.
            TrainingError: when rows are to be excluded but the memory keeps no payload.
        """
        if not 1 <= k <= self.capacity:
            raise ConfigError(
                f"k is {k}; a memory of {self.capacity} rows can give 1 to {self.capacity} neighbours."
            )
        if exclude is not None and self.payload is None:
            raise TrainingError("Rows are excluded by their payload; make the memory with payload=True.")
        unit = F.normalize(queries.float(), dim=-1)
        best = unit.new_full((len(unit), k), -torch.inf)
        slot = torch.zeros((len(unit), k), dtype=torch.int64, device=unit.device)
        with torch.autocast(unit.device.type, enabled=False):
            for start in range(0, self.filled, chunk):
                stop = min(start + chunk, self.filled)
                similarity = unit @ self.stored[start:stop].float().T * self.inverse_norm[start:stop]
                if exclude is not None and self.payload is not None:
                    similarity.masked_fill_(exclude[:, None] == self.payload[start:stop], -torch.inf)
                top, position = similarity.topk(min(k, stop - start), dim=1)
                best, order = torch.cat([best, top], dim=1).topk(k, dim=1)
                slot = torch.cat([slot, position + start], dim=1).gather(1, order)
        valid = best > -torch.inf
        rows = self.stored[slot].to(queries.dtype) * valid[..., None]
        return Nearest(rows, slot * valid, valid, best.masked_fill(~valid, 0.0))

    def mean_age(self) -> Float[Tensor, ""]:
        """Mean number of `write` calls since a row was written, over the rows that were (0 right after one write)."""
        written = self.written_at >= 0
        age = (self.step - 1 - self.written_at) * written
        return age.sum() / written.sum().clamp(min=1)

    def get_extra_state(self) -> Int64[Tensor, " 3"]:
        """Pointer, filled rows and step, for the checkpoint."""
        return torch.tensor([self.pointer, self.filled, self.step])

    def set_extra_state(self, state: Int64[Tensor, " 3"]) -> None:
        """Take the pointer, filled rows and step of a checkpoint."""
        self.pointer, self.filled, self.step = (int(value) for value in state.tolist())

    def _store(self, at: int, rows: Tensor) -> None:
        """Put rows, which must fit, at a slot and keep one over their length."""
        kept = F.normalize(rows.float(), dim=-1) if self.unit_rows else rows
        target = self.stored[at : at + len(rows)]
        target.copy_(kept)
        self.inverse_norm[at : at + len(rows)] = 1 / target.float().norm(dim=-1).clamp(min=1e-12)
