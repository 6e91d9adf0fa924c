"""Where figures go: JSON lines always, and the recorders a person asks for."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glocal.atomic_files import write_atomically
from glocal.training.recorders import Recorder, RecorderName, figures_of, open_recorders


class MetricsLog:
    """`metrics.jsonl`, and recorders beside it. Only the first process writes."""

    def __init__(self, path: Path, *, enabled: bool, recorders: Sequence[RecorderName] | None = None) -> None:
        self.path, self.enabled = path, enabled
        self.recorders: list[Recorder] = open_recorders(recorders, path.parent) if enabled else []
        self._waiting = ""

    def cut_after(self, step: int) -> None:
        """Drop records later than the checkpoint that a run goes on from, so that none appears twice; and what is no
        record, such as a last line that a crash cut off.
        """
        if self.enabled and self.path.exists():
            records = [record for record in read_records(self.path) if record["step"] <= step]
            text = "".join(f"{json.dumps(record)}\n" for record in records)
            write_atomically(self.path, lambda f: f.write(text.encode()))

    def write(self, record: dict[str, Any]) -> bool:
        """Append one record, which must hold `step`; what is no finite number becomes null.

        Returns whether it could be written. If not (a full disk), it is kept and written with the next one.
        """
        if not self.enabled:
            return True
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._waiting += json.dumps(finite) + "\n"
        written = append_text(self.path, self._waiting)
        if written:
            self._waiting = ""
        for recorder in self.recorders:
            recorder.write(record["step"], figures_of(finite))
        return written

    def close(self) -> None:
        """Close the recorders."""
        for recorder in self.recorders:
            recorder.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a `metrics.jsonl`, in order; nothing where there is none.

    A record has a step, finite numbers or null by name, and perhaps what `failed`; whatever else a damaged file holds is
    left out.
    """
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int and record["step"] >= 0:
                records.append({name: value for name, value in record.items() if _is_figure(name, value)})
    return records


def _is_figure(name: str, value: object) -> bool:
    if name == "failed":
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        return False
    return value is None or abs(value) <= sys.float_info.max


def append_text(path: Path, text: str) -> bool:
    """Append all of a text to a file, or nothing; whether it could be done."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        return False
    return True
