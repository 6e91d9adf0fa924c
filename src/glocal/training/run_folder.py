"""The run folder: what is in it, who may write to it, and how a file in it is replaced without ever being half there.

config.yaml        the resolved configuration
environment.json   versions, device, command line
metrics.jsonl      one record a line
summary.json       how far it has come, in steps, images, FLOPs and seconds, and in which precision
unreadable.txt     images that could not be decoded, with the reason
checkpoints/       last.pt, and step-N.pt where asked for
export/            the teacher's backbone: model.safetensors, config.json
pictures/          views, attention, neighbours
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import sys
from pathlib import Path
from typing import IO, Any

import torch

import glocal
from glocal.atomic_files import write_atomically
from glocal.config import from_yaml, to_yaml
from glocal.errors import TrainingError
from glocal.training.config import RunConfig


class RunFolder:
    """Paths of one run, and the lock that keeps a second process out. Use as a context manager."""

    def __init__(self, path: str | Path, *, resume: bool) -> None:
        self.path = Path(path).expanduser()
        self.resume = resume
        self._lock: IO[str] | None = None

    config = property(lambda self: self.path / "config.yaml")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    summary = property(lambda self: self.path / "summary.json")
    unreadable = property(lambda self: self.path / "unreadable.txt")
    last = property(lambda self: self.path / "checkpoints" / "last.pt")
    export = property(lambda self: self.path / "export")
    pictures = property(lambda self: self.path / "pictures")

    def __enter__(self) -> RunFolder:
        lock = self.path / ".lock"
        if lock.exists():
            self._take(lock)
        occupied = self.path.exists() and (
            not self.path.is_dir() or any(p.name != lock.name for p in self.path.iterdir())
        )
        if occupied and not self.resume:
            self.__exit__()
            hint = (
                "Add resume=true to continue that run, or choose another out=."
                if self.config.exists()
                else "Choose another out=."
            )
            raise TrainingError(f"out={self.path} exists and is not empty; nothing in it was touched. {hint}")
        if self._lock is None:
            self._take(lock)
        return self

    def _take(self, lock: Path) -> None:
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = lock.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.__exit__()
            raise TrainingError(
                f"out={self.path} is in use by another process. Stop it first, or choose another out=."
            ) from error
        except OSError as error:
            raise TrainingError(
                f"out={self.path} can't be written ({error.strerror}). Choose another out=."
            ) from error

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            if not self.config.exists():
                self._give_back()

    def _give_back(self) -> None:
        """A start that was refused leaves nothing: the retry finds its `out=` as this one did."""
        (self.path / ".lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for folder in (self.path / "checkpoints", self.path):
                folder.rmdir()

    def write_start(self, config: RunConfig) -> None:
        """Record the configuration and the environment."""
        write_atomically(self.config, lambda f: f.write(to_yaml(config).encode()))
        write_atomically(
            self.path / "environment.json", lambda f: f.write(json.dumps(environment(), indent=2).encode())
        )


def is_alive(path: str | Path) -> bool:
    """Whether a process holds this run folder."""
    lock = Path(path).expanduser() / ".lock"
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_run_config(path: str | Path) -> RunConfig:
    """The configuration that a run folder holds."""
    file = Path(path) / "config.yaml"
    if not file.exists():
        raise TrainingError(
            f"There is no run to continue in {path}: {file.name} is missing. Leave resume=true out to start one."
        )
    return from_yaml(RunConfig, file.read_text())


def environment() -> dict[str, Any]:
    """What the run runs on, for whoever reads its figures later."""
    return {
        "command": sys.argv,
        "glocal": glocal.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
    }
