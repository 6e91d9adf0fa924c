"""What a person sees of a run: a live bar on a terminal, one line a record elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from glocal.extraction.progress import in_words


class Display:
    """A live bar on a terminal; plain lines elsewhere, so that logs stay readable."""

    def __init__(self, total: int, done: int, *, enabled: bool) -> None:
        self.console = Console(stderr=True, quiet=not enabled, soft_wrap=True)
        self.total = total
        self._live = enabled and self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft(),
            console=self.console, disable=not self._live,
        )  # fmt: skip
        self._task: TaskID = self._progress.add_task("pretraining", total=total, completed=done)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def advance(self, step: int, total: int) -> None:
        """One step is done, of as many as are planned by now."""
        self.total = total
        self._progress.update(self._task, completed=step, total=total)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, style=style, highlight=False)

    def record(self, record: dict[str, Any]) -> None:
        """Show a record: in the bar's text, or as a line with the time left."""
        shown = f"loss {record['loss']:.3f} · {record['images_per_second']:.0f} img/s · waiting {record['waiting_share']:.0%} · {record['memory_gib']:.1f} GiB"
        if self._live:
            self._progress.update(self._task, description=shown, left=record["seconds_left"])
        else:
            left = in_words(record["seconds_left"])
            self.console.print(f"step {record['step']}/{self.total} · {shown} · {left} left", highlight=False)


class TimeLeft(ProgressColumn):
    """Time left as the records estimate it, days too; rich's own column counts hours only."""

    def render(self, task: Task) -> Text:
        """Empty before the first record."""
        left = task.fields.get("left")
        return Text("" if left is None else f"{in_words(left)} left")
