"""Where figures go: JSON lines always, TensorBoard when it is installed."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from glocal.atomic_files import write_atomically


class MetricsLog:
    """`metrics.jsonl` and, when tensorboard can be imported, an event file beside it. Only the first process writes."""

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self.path, self.enabled = path, enabled
        self._board: Any = None
        self._waiting = ""
        if enabled:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(path.parent / "tensorboard"))

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
        if self._board is not None:
            for key, value in finite.items():
                if isinstance(value, int | float) and key != "step":
                    self._board.add_scalar(key.replace(".", "/"), value, record["step"])
        return written

    def close(self) -> None:
        """Flush what TensorBoard buffers."""
        if self._board is not None:
            self._board.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a `metrics.jsonl`, in order; nothing where there is none."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


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
