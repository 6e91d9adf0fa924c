"""The ring memory against a bounded deque, its retrieval against brute force, its state against a checkpoint."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowing import present
from torch.multiprocessing.spawn import spawn

from glocal.distributed import all_gather_rows
from glocal.errors import ConfigError, DataError, TrainingError
from glocal.objectives.by_contrast.ring_memory import RingMemory, StorageType

sizes = st.lists(st.integers(0, 12), max_size=12)


def numbered(start: int, count: int) -> torch.Tensor:
    """Rows that tell which they are."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None] + torch.tensor([1.0, 1000.0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), sizes)
def test_holds_what_a_bounded_deque_holds(capacity: int, counts: list[int]) -> None:
    memory = RingMemory(capacity, 2, storage="fp32", payload=True)
    model: deque[tuple[float, int, int]] = deque(maxlen=capacity)
    start = 0
    for step, count in enumerate(counts):
        rows = numbered(start, count)
        memory.write(rows, torch.arange(start, start + count))
        model.extend((float(row[0]), start + i, step) for i, row in enumerate(rows))
        start += count
        held = zip(
            memory.rows()[:, 0].tolist(),
            present(memory.payload).tolist(),
            memory.written_at.tolist(),
            strict=False,
        )
        assert Counter(held) == Counter(model)
        assert memory.filled == len(memory.rows()) == len(model)
        age = [step - written for _, _, written in model]
        assert memory.mean_age().item() == pytest.approx(np.mean(age) if age else 0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), sizes)
def test_the_oldest_rows_are_overwritten_first(capacity: int, counts: list[int]) -> None:
    """Chronological order is the slots from the pointer on, once the memory is full."""
    memory = RingMemory(capacity, 2, storage="fp32")
    total = 0
    for count in counts:
        memory.write(numbered(total, count))
        total += count
    held = memory.rows()[:, 0]
    if memory.filled == capacity:
        held = held.roll(-memory.pointer)
    assert held.tolist() == [i + 1.0 for i in range(total)][-capacity:]


def test_rows_are_a_view_and_bf16_halves_the_memory() -> None:
    memory = RingMemory(16, 4)
    memory.write(torch.ones(3, 4))
    assert memory.rows().data_ptr() == memory.stored.data_ptr()
    assert memory.rows().dtype == torch.bfloat16
    assert RingMemory(16, 4, storage="fp32").stored.dtype == torch.float32


def test_unit_rows_are_stored_at_length_one() -> None:
    memory = RingMemory(8, 3, storage="fp32", unit_rows=True)
    memory.write(torch.tensor([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]]))
    assert torch.allclose(memory.rows(), torch.tensor([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]]))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(0, 40),
    st.integers(1, 9),
    st.sampled_from(["fp32", "bf16"]),
    st.integers(0, 99),
)
def test_nearest_equals_brute_force(
    capacity: int, written: int, chunk: int, storage: StorageType, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    memory = RingMemory(capacity, 6, storage=storage, payload=True)
    label = torch.randint(0, 3, (written,), generator=generator)
    memory.write(torch.randn(written, 6, generator=generator) * 5, label)
    queries, exclude = torch.randn(4, 6, generator=generator), torch.randint(0, 3, (4,), generator=generator)
    k = min(4, capacity)
    found = memory.nearest(queries, k, exclude=exclude, chunk=chunk)
    held, labels = memory.rows().double().numpy(), present(memory.payload)[: memory.filled].numpy()
    for i in range(4):
        query = queries[i].double().numpy()
        cosine = held @ query / np.linalg.norm(held, axis=1).clip(1e-12) / np.linalg.norm(query)
        eligible = [j for j in np.argsort(-cosine) if labels[j] != exclude[i]][:k]
        assert found.valid[i].tolist() == [True] * len(eligible) + [False] * (k - len(eligible))
        assert found.slot[i].tolist() == eligible + [0] * (k - len(eligible))
        assert found.similarity[i].tolist() == pytest.approx(
            [*cosine[eligible], *[0] * (k - len(eligible))], abs=1e-5
        )
        assert torch.equal(found.rows[i][: len(eligible)], memory.rows()[eligible].float())
        assert (found.rows[i][len(eligible) :] == 0).all()


def test_rows_never_written_are_not_retrieved() -> None:
    memory = RingMemory(100, 4, storage="fp32")
    assert not memory.nearest(torch.ones(2, 4), 5).valid.any()
    memory.write(-torch.ones(2, 4))
    found = memory.nearest(torch.ones(2, 4), 5)
    assert found.valid.tolist() == [[True, True, False, False, False]] * 2
    assert found.similarity[:, :2].tolist() == [[-1.0, -1.0]] * 2


def test_random_fill_counts_as_rows_and_is_the_same_everywhere() -> None:
    before = torch.random.get_rng_state()
    memory, other = (RingMemory(64, 8, storage="fp32", fill_random=True) for _ in range(2))
    assert torch.equal(memory.rows(), other.rows()) and len(memory.rows()) == 64
    assert memory.rows().std().item() == pytest.approx(1, abs=0.2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert memory.mean_age() == 0
    unit = RingMemory(64, 8, storage="fp32", fill_random=True, unit_rows=True)
    assert torch.allclose(unit.rows().norm(dim=1), torch.ones(64))


@pytest.mark.parametrize(("batch", "share"), [(4, 0.5), (8, 0.5), (20, 0.9), (7, 1.0)])
def test_double_advance_leaves_the_references_share_of_noise(batch: int, share: float) -> None:
    """Half of the memory is never written when the batch divides it evenly; a tenth at the ViT-L recipe's ratio."""
    capacity = {20: 2048}.get(batch, 64)
    memory = RingMemory(capacity, 2, storage="fp32", fill_random=True, double_advance=True)
    slot, covered = 0, np.zeros(capacity, dtype=bool)
    for _ in range(4 * capacity):
        memory.write(torch.full((batch, 2), 7.0))
        covered[(slot + np.arange(batch)) % capacity] = True
        slot = (slot + 2 * batch) % capacity if slot + batch <= capacity else slot + batch - capacity
        assert memory.pointer == slot
    assert (memory.written_at >= 0).tolist() == covered.tolist()
    assert covered.mean() == pytest.approx(share, abs=0.005)


def test_a_checkpoint_carries_the_pointer(tmp_path: Path) -> None:
    memory = RingMemory(5, 2, payload=True)
    for count in (3, 3):
        memory.write(torch.randn(count, 2), torch.arange(count))
    torch.save(memory.state_dict(), tmp_path / "state.pt")
    other = RingMemory(5, 2, payload=True)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    new, numbers = torch.randn(2, 2), torch.tensor([8, 9])
    memory.write(new, numbers)
    other.write(new, numbers)
    assert (
        (other.pointer, other.filled, other.step) == (memory.pointer, memory.filled, memory.step) == (3, 5, 3)
    )
    assert all(torch.equal(a, b) for a, b in zip(memory.buffers(), other.buffers(), strict=True))
    assert memory.state_dict().keys() == other.state_dict().keys()


def _write_on_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        memory = RingMemory(6, 2, storage="fp32", payload=True)
        memory.write(numbered(50, 1), torch.tensor([50]))
        for step in range(3):
            # Rank 0 gives two rows, rank 1 gives one.
            own = torch.arange(3 * step + 2 * rank, 3 * step + 2 + rank)
            memory.write(all_gather_rows(numbered(int(own[0]), len(own))), all_gather_rows(own))
        torch.save(memory.state_dict(), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_hold_what_one_holds(tmp_path: Path) -> None:
    spawn(_write_on_two, (str(tmp_path),), nprocs=2)
    alone = RingMemory(6, 2, storage="fp32", payload=True)
    alone.write(numbered(50, 1), torch.tensor([50]))
    for step in range(3):
        alone.write(numbered(3 * step, 3), torch.arange(3 * step, 3 * step + 3))
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items())


UNKNOWN_STORAGE: Any = {"storage": "fp16"}


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: RingMemory(0, 4), ConfigError, "0 rows of width 4"),
        (lambda: RingMemory(4, 4, **UNKNOWN_STORAGE), ConfigError, "'fp16' is unknown. Did you mean"),
        (lambda: RingMemory(4, 4, double_advance=True), ConfigError, "needs fill_random"),
        (
            lambda: RingMemory(4, 4).write(torch.ones(2, 3)),
            DataError,
            r"\(2, 3\); this memory takes \(any number, 4\)",
        ),
        (lambda: RingMemory(4, 4).write(torch.ones(2, 4), torch.ones(2).long()), DataError, "payload=False"),
        (lambda: RingMemory(4, 4, payload=True).write(torch.ones(2, 4)), DataError, "payload is none"),
        (lambda: RingMemory(4, 4).nearest(torch.ones(1, 4), 5), ConfigError, "k is 5; a memory of 4 rows"),
        (
            lambda: RingMemory(4, 4).nearest(torch.ones(1, 4), 1, torch.ones(1).long()),
            TrainingError,
            "payload=True",
        ),
    ],
)
def test_bad_input_is_named(
    unchecked: None, call: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call()
