"""Finished parts of a long evaluation, a line each: an interrupted one goes on behind the last of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glocal.extraction.feature_files import key_of


class Journal:
    """Values by name in a file that only grows. For work that is slow a part and whose parts don't meet.

    Floats come back as they were. A last line that was cut short is dropped.

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
        whole = 0
        for line in self._path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            name, value = json.loads(line)
            self._done[name] = value
            whole += len(line)
        with self._path.open("rb+") as file:
            file.truncate(whole)

    def get(self, name: str) -> Any | None:
        """The value of a finished part, or None."""
        return self._done.get(name)

    def add(self, name: str, value: Any) -> None:
        """Keep the value of a part (plain data)."""
        self._done[name] = value
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, value]) + "\n")
