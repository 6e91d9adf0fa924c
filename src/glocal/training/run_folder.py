"""The run folder: what is in it, who may write to it, and the record of what it was started and continued with.

config.yaml        the resolved configuration, with what was changed when the run was continued
code/              a copy of every file of one's own code that the configuration names
environment.json   versions, device, command line
origin.json        fingerprint of the data, licence of the starting weights: what exports carry on
resumes.jsonl      a line for every time the run went on from a checkpoint: when, from which step, what was changed
metrics.jsonl      one record a line
summary.json       how far it has come, in steps, images, FLOPs and seconds, and in which precision
unreadable.txt     images that could not be decoded, with the reason
images.npy         hashes of the images' names, to see what was added or taken away
checkpoints/       last.pt, previous.pt, and step-N.pt where asked for
export/            the teacher's backbone: model.safetensors, config.json; also best/, and step-N/ where asked for
pictures/          views, attention, neighbours
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

import glocal
from glocal.atomic_files import write_atomically
from glocal.config import read_settings_file, to_yaml, validate
from glocal.data.source import short_hash
from glocal.errors import TrainingError
from glocal.outside import given_path, read_json
from glocal.own_code import files_named
from glocal.training.config import RunConfig

_LOCK = ".lock"
# What a run writes before its first checkpoint.
_OF_A_START = {
    _LOCK, "config.yaml", "environment.json", "origin.json", "summary.json", "resumes.jsonl", "metrics.jsonl", "unreadable.txt", "images.npy",
    "checkpoints", "code", "pictures", "export", "tensorboard", "wandb", "wandb_run_id", "mlflow.db", "mlflow_run_id",
}  # fmt: skip


class RunFolder:
    """Paths of one run. `claim` takes a lock that keeps a second process out; leaving the context gives it back."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._lock: IO[str] | None = None

    config = property(lambda self: self.path / "config.yaml")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    origin = property(lambda self: self.path / "origin.json")
    summary = property(lambda self: self.path / "summary.json")
    unreadable = property(lambda self: self.path / "unreadable.txt")
    images = property(lambda self: self.path / "images.npy")
    checkpoints = property(lambda self: self.path / "checkpoints")
    last = property(lambda self: self.path / "checkpoints" / "last.pt")
    previous = property(lambda self: self.path / "checkpoints" / "previous.pt")
    export = property(lambda self: self.path / "export")
    code = property(lambda self: self.path / "code")
    pictures = property(lambda self: self.path / "pictures")

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from."""
        return any(self.checkpoints.glob("*.pt"))

    def check(self, *, resume: bool) -> None:
        """Refuse what `claim` would refuse, without touching anything.

        A folder whose run ended before its first checkpoint is free: nothing was computed that could be lost.

        Raises:
            TrainingError: when the folder is in use; holds anything else, or with `resume` holds no run.
        """
        lock = self.path / _LOCK
        if lock.exists() and self._lock is None:
            with _locked(lock):
                pass
        if resume:
            read_run_config(self.path)
            return
        if not self.path.exists():
            return
        if self.begun or not self.path.is_dir() or {p.name for p in self.path.iterdir()} - _OF_A_START:
            hint = "Add resume=true to continue that run, or choose" if self.config.exists() else "Choose"
            raise TrainingError(
                f"out={self.path} exists and is not empty; nothing in it was touched. {hint} another out=."
            )

    def claim(self, *, resume: bool) -> None:
        """Make the folder and take its lock.

        Raises:
            TrainingError: as `check`, and when the folder can't be written.
        """
        self.check(resume=resume)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path / _LOCK)
            # Drafts of writes that a kill cut off; and the records of a start that never came to a checkpoint.
            left = [
                *self.checkpoints.glob(".*.writing"),
                *(() if resume else (self.metrics, self.unreadable)),
            ]
            for file in left:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(
                f"out={self.path} can't be written ({error.strerror}). Choose another out=."
            ) from error

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_start(self, config: RunConfig, origin: Mapping[str, Any]) -> None:
        """Record the configuration, the environment, what the weights will come from and the code of a person's own."""
        write_atomically(self.origin, lambda f: f.write(json.dumps(origin, indent=2).encode()))
        self._keep_code(config)
        write_atomically(self.config, lambda f: f.write(to_yaml(config).encode()))
        write_atomically(
            self.path / "environment.json", lambda f: f.write(json.dumps(environment(), indent=2).encode())
        )

    def read_origin(self) -> dict[str, Any]:
        """Fingerprint of the data and licence of the starting weights; nothing where the start left no such record."""
        return (
            read_json(
                self.origin, "the origin of a run", TrainingError, "Take it away: exports then name neither."
            )
            if self.origin.is_file()
            else {}
        )

    def read_unreadable(self) -> dict[str, str]:
        """The images that are known to be no images, with the reason."""
        if not self.unreadable.is_file():
            return {}
        lines = self.unreadable.read_text(encoding="utf-8", errors="replace").splitlines()
        return {key: why for key, tab, why in (line.partition("\t") for line in lines) if tab}

    def write_resume(
        self, before: Mapping[str, Any], config: RunConfig, step: int, why: str
    ) -> dict[str, list[Any]]:
        """Record that the run goes on from `step`, and what of the configuration it was stopped with changed, be it by
        the command or in config.yaml by hand; return that, [before, after].
        """
        changed = dict(_differences(before, config.model_dump(mode="json")))
        if changed:
            write_atomically(self.config, lambda f: f.write(to_yaml(config).encode()))
        changed |= self._keep_code(config)
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "step": step, "why": why, "changed": changed}
        with contextlib.suppress(OSError), (self.path / "resumes.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return changed

    def _keep_code(self, config: RunConfig) -> dict[str, list[Any]]:
        """Copy the files of own code that the configuration names; what differs from the copy, as hashes [before, after]."""
        named = files_named(config.model_dump(mode="json"))
        changed = {f"code/{name}": _keep_copy(file, self.code / name) for name, file in named.items()}
        return {name: hashes for name, hashes in changed.items() if hashes}


def _keep_copy(file: Path, copy: Path) -> list[Any]:
    """Copy a file; hashes of the copy before and after where there was another one."""
    content = file.read_bytes()
    before = copy.read_bytes() if copy.exists() else None
    if before != content:
        write_atomically(copy, lambda f: f.write(content))
    return [] if before in (None, content) else [short_hash(before), short_hash(content)]


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
    file = given_path(path, "out") / "config.yaml"
    if not file.exists():
        raise TrainingError(
            f"There is no run to continue in {path}: {file.name} is missing. Leave resume=true out to start one."
        )
    return validate(RunConfig, read_settings_file(file))


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


def _locked(lock: Path) -> IO[str]:
    """The lock file, held until it is closed."""
    try:
        file = lock.open("a")
    except OSError as error:
        raise TrainingError(
            f"out={lock.parent} can't be written ({error.strerror}). Choose another out=."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise TrainingError(
            f"out={lock.parent} is in use by another process. Stop it first, or choose another out=."
        ) from error
    return file


def _differences(before: Any, after: Any, prefix: str = "") -> list[tuple[str, list[Any]]]:
    """Dotted keys whose values differ."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [(prefix, [before, after])] if before != after else []
    keys = dict.fromkeys([*before, *after])
    return [
        row
        for key in keys
        for row in _differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
    ]
