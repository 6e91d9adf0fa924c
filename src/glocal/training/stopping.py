"""Signals that ask a run to stop: they raise a flag, and the loop stops where a checkpoint is whole."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import torch
from lightning_fabric import Fabric


class StopFlag:
    """Whether a signal asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_requested() -> Iterator[StopFlag]:
    """A flag that SIGTERM raises; outside the main thread signals can't be caught and the flag stays down."""
    flag = StopFlag()

    def handle(*_: object) -> None:
        flag.requested = True

    try:
        before = signal.signal(signal.SIGTERM, handle)
    except ValueError:
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)


def agree(fabric: Fabric, requested: bool) -> bool:
    """Whether any process was asked to stop."""
    flag = torch.tensor(float(requested), device=fabric.device)
    return bool(fabric.all_reduce(flag, reduce_op="sum") > 0)  # type: ignore[operator]
