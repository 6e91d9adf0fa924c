"""Files that are never half there: written beside their place, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from glocal.errors import TrainingError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], *, keep: Path | None = None) -> None:
    """Write a file so that at any moment, power cut included, `path` holds either the old content or the new.

    The file as it was before stays as `keep`, where that is given.

    Raises:
        TrainingError: when the disk is full or refuses; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name a process: two that write the same file must not meet in its draft.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            link_or_copy(path, keep)
        temporary.replace(path)
        with _directory(path.parent) as descriptor:
            os.fsync(descriptor)
    except (OSError, RuntimeError) as error:
        # torch's writer reports a full disk as a RuntimeError.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} could not be written ({error}). The file as it was before is untouched. "
            "Free some space and run the same command again, a training run with resume=true."
        ) from error


def allow_readers(path: Path) -> None:
    """Give a file the mode that the user's umask gives any: what the safetensors library writes is its owner's alone."""
    ordinary = path.with_name(f".{path.name}.{os.getpid()}.mode")
    ordinary.touch()
    path.chmod(ordinary.stat().st_mode & 0o777)
    ordinary.unlink()


def link_or_copy(path: Path, other: Path) -> None:
    """Give a file a second name, in place of whatever has that name; a copy where the file system has no links."""
    temporary = other.with_name(f".{other.name}.writing")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    temporary.replace(other)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the only right to change `path`, among all processes of this machine; others wait.

    The lock is a file beside it (`.NAME.lock`), which a process that dies gives up. Where the system has no `flock`
    (Windows), nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
