"""Where figures go: JSON lines always, TensorBoard when it is installed, one line or a live bar on the terminal."""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from glocal.atomic_files import write_atomically


class MetricsLog:
    """`metrics.jsonl` and, when tensorboard can be imported, an event file beside it. Only the first process writes."""

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self.path, self.enabled = path, enabled
        self._board: Any = None
        if enabled:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(path.parent / "tensorboard"))

    def cut_after(self, step: int) -> None:
        """Drop records later than the checkpoint that a resumed run starts from, so that none appears twice."""
        if self.enabled and self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= step]
            write_atomically(self.path, lambda f: f.write("".join(f"{line}\n" for line in lines).encode()))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it must hold `step`."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self._board.add_scalar(key.replace(".", "/"), value, record["step"])

    def close(self) -> None:
        """Flush what TensorBoard buffers."""
        if self._board is not None:
            self._board.close()


class Stopwatch:
    """Images a second and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.waiting, self.images, self.start = 0.0, 0, time.perf_counter()

    @contextlib.contextmanager
    def wait(self):  # type: ignore[no-untyped-def]
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
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a process starts with the peak of the one that forked it.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def return_freed_memory() -> None:
    """Give the C library's free pages back to the system, where it can be asked to.

    The number of matched patches differs from step to step, so tensors' sizes do; glibc keeps the holes, and a run on a
    CPU was seen to grow from 0.7 to 2.6 GiB in 800 steps with 0.4 GiB in use. Some milliseconds.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Display:
    """A live bar on a terminal; plain lines elsewhere, so that logs stay readable."""

    def __init__(self, total: int, done: int, *, enabled: bool) -> None:
        self.console = Console(stderr=True, quiet=not enabled, soft_wrap=True)
        self.total = total
        self._live = enabled and self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=self.console, disable=not self._live,
        )  # fmt: skip
        self._task: TaskID = self._progress.add_task("pretraining", total=total, completed=done)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def advance(self, step: int) -> None:
        """One step is done."""
        self._progress.update(self._task, completed=step)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, style=style, highlight=False)

    def record(self, record: dict[str, Any]) -> None:
        """Show a record: in the bar's text, or as a line with the time left."""
        shown = f"loss {record['loss']:.3f} · {record['images_per_second']:.0f} img/s · waiting {record['waiting_share']:.0%} · {record['memory_gib']:.1f} GiB"
        if self._live:
            self._progress.update(self._task, description=shown)
        else:
            left = time.strftime("%H:%M:%S", time.gmtime(record["seconds_left"]))
            self.console.print(f"step {record['step']}/{self.total} · {shown} · {left} left", highlight=False)
