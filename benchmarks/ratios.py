"""What a benchmark measures: ratios of two things that take turns, so that a machine that slows down slows both."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch

Size = Literal["tiny", "full"]
"""`tiny` runs the same code in seconds, for tests; its figures mean nothing."""


class Ratio(NamedTuple):
    """What something costs against something else; lower is better."""

    name: str
    values: tuple[float, ...]
    """One a round."""
    bar: float | None = None
    """What it is held to, at most."""

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """Median, spread and bar."""
        return {"median": self.median, "low": min(self.values), "high": max(self.values), "bar": self.bar}


def device() -> torch.device:
    """The one that DEVICE names, else the GPU where there is one."""
    return torch.device(os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))


def seconds() -> float:
    """CPU time of this process, or on a GPU the clock when its work is done."""
    if device().type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case in each round, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            began = seconds()
            case()
            if turn:
                times[name].append(seconds() - began)
    return times


def ratio(
    name: str, times: Mapping[str, list[float]], of: str, against: str, bar: float | None = None
) -> Ratio:
    """What one case takes of another's time, round by round."""
    return Ratio(name, tuple(a / b for a, b in zip(times[of], times[against], strict=True)), bar)


def in_a_process(code: str) -> float:
    """The number that Python code prints last, run in a process of its own: peaks of memory don't mix."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{code}\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def machine() -> str:
    """The hardware and the torch that a record is of: records of others don't compare."""
    processor = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            processor = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    name = torch.cuda.get_device_name() if device().type == "cuda" else processor
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__.partition('+')[0]}"


def print_ratios(measure: Callable[[Size], list[Ratio]]) -> None:
    """What `python -m benchmarks.bench_X [tiny]` does: measure, print a line each, and all as JSON at the end."""
    found = measure("tiny" if "tiny" in sys.argv[1:] else "full")
    for entry in found:
        bar = "" if entry.bar is None else f" (bar {entry.bar:g})"
        print(f"{entry.name}: {entry.median:.3f}, {min(entry.values):.3f} to {max(entry.values):.3f}{bar}")
    print(json.dumps({entry.name: entry.to_json() for entry in found}))
