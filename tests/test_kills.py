"""Runs killed at random moments and continued are those that were never stopped: the same bits, complete records."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import config_for, noisy_pictures, records

from glocal import load
from glocal.training import loop, saving
from glocal.training.checkpoint import read_checkpoint
from glocal.training.config import RunConfig
from glocal.training.records import Records
from glocal.verdict.examination import Examination

KILLS = 40
MAY_DIFFER = {"images_per_second", "waiting_share", "memory_gib", "seconds_left", "unreadable"}
"""Speeds; and images that a killed run found unreadable, which stay known when it goes back to before it met them."""
PLACES: dict[str, tuple[Any, str]] = {
    "a step": (loop, "backward"),
    "a checkpoint": (saving, "write_atomically"),
    "an export": (saving, "export_teacher"),
    "the last export": (loop, "export_teacher"),
    "a record": (Records, "write"),
    "a probe": (Records, "_probe"),
    "the verdict's figures": (Examination, "figures"),
}
"""Where a run may be killed, by name, and the function that is under way there."""


def killed_in(place: str | None, call: int, share: float, config: RunConfig, resume: bool) -> None:
    """Train in this process, which dies by SIGKILL some way into the call-th call of a place; None: it lives.

    A thread kills it after a share of the time that the first call took, so it dies within what runs, C code included.
    """
    if place is not None:
        owner, name = PLACES[place]
        setattr(owner, name, _deadly(getattr(owner, name), call, share))
    loop.pretrain(config, resume=resume)


def _deadly(function: Callable[..., Any], call: int, share: float) -> Callable[..., Any]:
    seen = {"calls": 0, "seconds": 0.01}

    def wrapped(*arguments: Any, **named: Any) -> Any:
        seen["calls"] += 1
        if seen["calls"] >= call:
            delay = share * seen["seconds"]
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        begin = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seen["seconds"] = time.perf_counter() - begin

    return wrapped


def in_a_process(*arguments: Any) -> int:
    """`killed_in` in a process that never ran autograd and has all modules imported; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=killed_in, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def told(out: Path) -> list[dict[str, object]]:
    """What its records say."""
    return [{key: value for key, value in record.items() if key not in MAY_DIFFER} for record in records(out)]


def same(one: object, other: object) -> bool:
    """Equal, bit for bit where it is tensors."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.slow
def test_killed_runs_continue_bit_for_bit(tmp_path: Path) -> None:
    """Forty kills, up to six a run, each at a random call of a random place; then the run is let live."""
    folder = noisy_pictures(tmp_path / "images")
    more = (
        "training.steps=12", "training.log_every=2", "training.checkpoint_every=3", "training.keep_every=6",
        "probe.enabled=true", "probe.every=4", "verdict.enabled=true", "verdict.every=4", "verdict.images=16",
    )  # fmt: skip
    whole = tmp_path / "whole"
    assert in_a_process(None, 0, 0.0, config_for(folder, whole, *more), False) == 0
    draw, killed, runs = random.Random(0), dict.fromkeys(PLACES, 0), 0
    while sum(killed.values()) < KILLS:
        runs += 1
        out = tmp_path / f"killed-{runs}"
        config = config_for(folder, out, *more)
        for _ in range(6):
            place = draw.choice(list(PLACES))
            begun = (out / "config.yaml").exists()
            if in_a_process(place, draw.randint(1, 2), draw.random(), config, begun) == 0:
                break
            killed[place] += 1
        assert in_a_process(None, 0, 0.0, config, True) == 0
        assert told(out) == told(whole)
        assert [
            r["unreadable"] for r in (*records(out), *records(whole)) if r.get("loss") and r["step"] == 12
        ] == [1, 1]
        for name in ("last.pt", "previous.pt", "step-6.pt", "step-12.pt"):
            states = [read_checkpoint(run / "checkpoints" / name) for run in (out, whole)]
            for state in states:
                del state["seconds"], state["config"]
            assert same(*states), (out, name)
        for export in ("", "best", "step-6", "step-12"):
            weights = [load(run / "export" / export).backbone.state_dict() for run in (out, whole)]
            assert same(*weights), (out, export)
        assert (out / "unreadable.txt").read_text() == (whole / "unreadable.txt").read_text()
    print(f"{sum(killed.values())} kills of {runs} runs: {killed}")
    assert all(killed.values()), killed
