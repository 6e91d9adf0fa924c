"""Where figures go: JSON lines always, TensorBoard when it is installed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from glocal.atomic_files import write_atomically


class MetricsLog:
    """`metrics.jsonl` and, when tensorboard can be imported, an event file beside it. Only the first process writes."""

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self.path, self.enabled = path, enabled
        self._board: Any = None
        if enabled:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(path.parent / "tensorboard"))

    def cut_after(self, step: int) -> None:
        """Drop records later than the checkpoint that a resumed run starts from, so that none appears twice."""
        if self.enabled and self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= step]
            write_atomically(self.path, lambda f: f.write("".join(f"{line}\n" for line in lines).encode()))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it must hold `step`."""
        if not self.enabled:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self._board.add_scalar(key.replace(".", "/"), value, record["step"])

    def close(self) -> None:
        """Flush what TensorBoard buffers."""
        if self._board is not None:
            self._board.close()
