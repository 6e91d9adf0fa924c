"""Signals that ask a run to stop: they raise a flag, on which all processes agree at the same step."""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from glocal.distributed import world_size

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
_LAG = 2
"""Steps after which a flag is read from a GPU: reading it at once would wait for the step."""


class StopFlag:
    """Whether a signal asked any process of the run to stop.

    With several processes the flag travels with the gradients: every process adds its own to the message (`raised`),
    posts the sum, and reads the sums of the same step as all others; so they stop together, and it costs four bytes.
    """

    def __init__(self) -> None:
        self.requested = False
        self._posted: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def raised(self, device: torch.device) -> Tensor:
        """This process's flag on the device, 1 or 0."""
        return torch.full((), float(self.requested), device=device)

    def post(self, flag: Tensor) -> None:
        """Send the flag of all processes on its way to the host; a process alone needs no sending."""
        if world_size() == 1:
            return
        if flag.device.type != "cuda":
            self._posted.append((flag, None))
            return
        host = torch.empty((), pin_memory=True)
        host.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._posted.append((host, event))

    def agreed(self) -> bool:
        """Whether to stop here; with several processes the same answer on all."""
        if world_size() == 1:
            return self.requested
        lag = _LAG if self._posted and self._posted[0][1] is not None else 0
        if len(self._posted) <= lag:
            return False
        flag, event = self._posted.popleft()
        if event is not None:
            event.synchronize()
        return bool(flag > 0)


@contextlib.contextmanager
def stop_requested() -> Iterator[StopFlag]:
    """A flag that INT, TERM, HUP, USR1 and USR2 raise; a second INT (Ctrl-C) ends the process at once.

    What was ignored when the run was started stays so: HUP under nohup, INT of a job in the background. Outside the main
    thread signals can't be caught and the flag stays down.
    """
    flag = StopFlag()

    def handle(number: int, frame: object) -> None:
        flag.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    before = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    except ValueError:
        pass
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
