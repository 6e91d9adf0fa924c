"""How fast a run goes and how much memory it takes."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch


class Stopwatch:
    """Images a second and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.waiting, self.images, self.start = 0.0, 0, time.perf_counter()

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Count the body as waiting for data."""
        before = time.perf_counter()
        yield
        self.waiting += time.perf_counter() - before

    def read(self) -> dict[str, float]:
        """`images_per_second`, `waiting_share` and `memory_gib` (peak); then start anew."""
        seconds = time.perf_counter() - self.start
        figures = {
            "images_per_second": self.images / seconds,
            "waiting_share": self.waiting / seconds,
            "memory_gib": peak_memory_gib(),
        }
        self.waiting, self.images, self.start = 0.0, 0, time.perf_counter()
        return figures


def peak_memory_gib() -> float:
    """Peak memory of the device, or of this process on a CPU, in GiB."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a process starts with the peak of the one that forked it.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
