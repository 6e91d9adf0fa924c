"""Worker processes that die (killed, out of memory, a segmentation fault in a decoder): at which image, and what follows."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import get_worker_info

from glocal.errors import TrainingError

MOST_IN_A_ROW = 8
"""Deaths at no image in particular, without a single batch in between, after which loading gives up."""
_NOTHING = -1


class ReadingNow:
    """Which image each worker is at, in memory that outlives the worker. Costs a store before and after each decoding."""

    def __init__(self, workers: int) -> None:
        self._position = torch.full((max(1, workers),), _NOTHING).share_memory_()

    @contextlib.contextmanager
    def at(self, position: int) -> Iterator[None]:
        """The body reads the image at this position."""
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        self._position[number] = position
        yield
        self._position[number] = _NOTHING

    def position(self, worker: int) -> int | None:
        """Where a worker was when it died; then forgotten."""
        position = int(self._position[worker])
        self._position[worker] = _NOTHING
        return None if position == _NOTHING else position


class DeathRegister:
    """Counts deaths by image. A first death at an image may be chance (a person, the system out of memory) and the batch
    is made again; at the second the image is left out, for good in this run.
    """

    def __init__(self) -> None:
        self.left_out: dict[int, str] = {}
        self._struck: set[int] = set()
        self._in_a_row = 0

    def a_batch_came(self) -> None:
        """Something works."""
        self._in_a_row = 0

    def note(self, position: int | None, exit_code: int | None, name: str) -> str:
        """Take in one death and say what follows from it.

        Raises:
            TrainingError: when workers do nothing but die, at no image in particular.
        """
        cause = _cause(exit_code)
        if position is None:
            self._in_a_row += 1
            if self._in_a_row >= MOST_IN_A_ROW:
                raise TrainingError(
                    f"{self._in_a_row} worker processes died one after the other ({cause}) without making a batch. Most "
                    "likely memory ran out: lower speed.workers or speed.keep_decoded_mb, or set speed.workers=0."
                )
            return f"A worker process died ({cause}); another one takes over."
        if position in self._struck:
            self.left_out[position] = f"Two processes died while they decoded it (the last: {cause})."
            return f"A worker process died ({cause}) while it decoded '{name}', for the second time; the image is left out."
        self._struck.add(position)
        return f"A worker process died ({cause}) while it decoded '{name}'; another one tries again."


def dead_workers(batches: Any) -> list[tuple[int, int | None]]:
    """(number, exit code) of the workers of a DataLoader's iterator that have ended, after a moment's grace."""
    processes: Sequence[Any] = getattr(batches, "_workers", ())
    for process in processes:
        process.join(timeout=0.2)
    return [(number, p.exitcode) for number, p in enumerate(processes) if not p.is_alive()]


@contextlib.contextmanager
def deaths_seen_by_polling() -> Iterator[None]:
    """Around the making of a DataLoader's iterator: torch's own watch raises an error wherever the program happens to be,
    in the middle of an optimiser's step too. Without it a death is seen where the next batch is waited for, within 5 s.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    of_torch = getattr(before, "__module__", "").startswith("torch")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL if of_torch or before is None else before)


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "cause unknown"
    if exit_code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"
