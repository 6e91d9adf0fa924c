"""Finished parts of a long evaluation, a line each: an interrupted one goes on behind the last of them."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glocal.atomic_files import write_atomically
from glocal.extraction.feature_files import key_of

logger = logging.getLogger("glocal.extraction")


class Journal:
    """Values by name in a file that only grows. For work that is slow a part and whose parts don't meet.

    Floats come back as they were. A line that was cut short or damaged is dropped.

    Args:
        cache: folder of the file; null keeps nothing.
        deciding: plain values that decide every part's value; others have another file.

    >>> journal = Journal(None, ["davis", 1]); journal.add("dog", 0.5); journal.get("dog")
    0.5
    """

    def __init__(self, cache: Path | None, deciding: Sequence[Any]) -> None:
        self._path = None if cache is None else cache / f"{key_of(deciding)}.jsonl"
        self._done: dict[str, Any] = {}
        if self._path is None or not self._path.exists():
            return
        whole = b""
        lines = self._path.read_bytes().splitlines(keepends=True)
        for line in lines:
            entry = _entry(line)
            if entry is not None:
                self._done[entry[0]] = entry[1]
                whole += line
        lost = len(lines) - len(whole.splitlines())
        if lost:
            logger.warning("%s: %d line(s) are damaged; those parts are computed again", self._path, lost)
            write_atomically(self._path, lambda file: file.write(whole))

    def get(self, name: str) -> Any | None:
        """The value of a finished part, or None."""
        return self._done.get(name)

    def add(self, name: str, value: Any) -> None:
        """Keep the value of a part (plain data)."""
        self._done[name] = value
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps([name, value])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{zlib.crc32(text.encode()):08x} {text}\n")

    def remove(self) -> None:
        """Take the file away, once all it says stands elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _entry(line: bytes) -> tuple[str, Any] | None:
    """Name and value of one line, or None where its checksum tells that it isn't what was written."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    name, value = json.loads(text)
    return name, value
