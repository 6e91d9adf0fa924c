"""The border: paths and files from outside become values here, or one sentence that says what is wrong with them.

What a parser raises over bytes that make no sense is anybody's guess: `yaml` has a ValueError for the date 2024-13-45, a
nested JSON list a RecursionError, a cut parquet file an OSError. `reading` turns all of it into one error that names the
file, the reason and the next step. Every room that reads a side file reads it through here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glocal.errors import ConfigError, DataError, GlocalError, nearest_name

_REASON = 200


def given_path(text: str | Path, key: str, error: type[GlocalError] = ConfigError) -> Path:
    """The path that a person wrote; `~` is the home folder. It need not exist.

    Raises:
        error: for an empty one, one with a zero byte, one longer than the system allows, and a home that nobody has.

    >>> given_path("photos", "data")
    PosixPath('photos')
    """
    shown = str(text) if len(str(text)) <= 80 else f"{str(text)[:60]}... ({len(str(text))} characters)"
    if not str(text):
        raise error(f"{key}= is empty. Give a path.")
    try:
        path = Path(text).expanduser()
        path.exists() or os.stat(path)  # noqa: PTH116 (`exists` hides a zero byte)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, ValueError, RuntimeError) as failure:
        raise error(f"{key}={shown!r} is no path: {reason(failure)}. Give another one.") from failure
    return path


def new_file(text: str | Path, key: str, endings: Sequence[str] = ()) -> Path:
    """A file to be written: of a known ending, no folder, in a place that can be written to. Nothing is made.

    Raises:
        ConfigError: otherwise; before anything is computed for it.
    """
    path = given_path(text, key)
    if endings and path.suffix.lower() not in endings:
        hint = nearest_name(path.suffix, endings)
        raise ConfigError(
            f"{key}={path}: the ending {path.suffix or '(none)'} is not known.{hint} Allowed: {', '.join(endings)}."
        )
    if path.is_dir():
        raise ConfigError(
            f"{key}={path} is a folder; give a file in it, for example {key}={path / 'out'}{(endings or [''])[0]}."
        )
    _check_place(path.parent, path, key)
    return path


def new_folder(text: str | Path, key: str) -> Path:
    """A folder to be written to, there already or not, in a place that can be written to. Nothing is made.

    Raises:
        ConfigError: otherwise.
    """
    path = given_path(text, key)
    _check_place(path, path, key)
    return path


def _check_place(folder: Path, path: Path, key: str) -> None:
    """Whether files can be made in a folder, or in the nearest one above it that exists."""
    above = folder
    while not _there(above) and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise ConfigError(f"{key}={path}: '{above}' is a file, not a folder. Choose another {key}=.")
    # /proc and /sys say that root may write there, and refuse it.
    refused = not os.access(above, os.W_OK | os.X_OK) or above.resolve().parts[:2] in (
        ("/", "proc"),
        ("/", "sys"),
    )
    if refused:
        raise ConfigError(f"{key}={path}: '{above}' can't be written to. Choose another {key}=.")


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


@contextlib.contextmanager
def reading(
    path: str | Path, what: str, error: type[GlocalError] = DataError, cure: str = ""
) -> Iterator[None]:
    """Whatever goes wrong in the body, which interprets a file from outside, is said as `error` in one sentence.

    Errors of ours pass as they are; so do a lack of memory and an interruption, which are no fault of the file.

    >>> with reading("a.json", "a list of names"): names = [n["name"] for n in [{}]]
    Traceback (most recent call last):
    glocal.errors.DataError: 'a.json' can't be read as a list of names: 'name' is missing.
    """
    try:
        yield
    except (GlocalError, MemoryError):
        raise
    except Exception as failure:
        raise error(f"'{path}' can't be read as {what}: {reason(failure)}. {cure}".rstrip()) from failure


def read_json(path: Path, what: str, error: type[GlocalError] = DataError, cure: str = "") -> dict[str, Any]:
    """A JSON file whose top is a mapping.

    Raises:
        error: for anything else.
    """
    with reading(path, what, error, cure):
        plain = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict):
            raise ValueError(f"its top is {type(plain).__name__}, expected a mapping")
        return plain


def reason(failure: BaseException) -> str:
    """Why something failed, in one line and without a full stop."""
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    if isinstance(failure, KeyError) and failure.args:
        return f"{failure.args[0]!r} is missing"
    if isinstance(failure, RecursionError):
        return "it is nested too deeply"
    if isinstance(failure, UnicodeDecodeError):
        return f"it is no UTF-8 text (byte {failure.start})"
    text = " ".join(str(failure).split()) or type(failure).__name__
    return (text if len(text) <= _REASON else text[: _REASON - 3] + "...").rstrip(".")
