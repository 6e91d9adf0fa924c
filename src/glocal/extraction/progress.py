"""Progress of long work: a bar with images/s and time left on a terminal, a log line every half minute elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from glocal.distributed import rank

LOG_EVERY = 30.0
"""Seconds between log lines when there is no terminal."""

logger = logging.getLogger("glocal.extraction")


@contextmanager
def progress_bar(
    title: str, total: int, shown: bool = True, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Yield `advance(count)`. Only the first process shows anything.

    >>> with progress_bar("features", 2, shown=False) as advance:
    ...     advance(2)
    """
    if not shown or rank() != 0:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            return Text(f"{task.speed:.1f} {unit}/s" if task.speed else f"- {unit}/s")

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _log_lines(title, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def in_words(seconds: float) -> str:
    """A stretch of time as days, hours, minutes and seconds.

    >>> in_words(90061)
    '1 d 01:01:01'
    """
    days, rest = divmod(round(seconds), 86400)
    clock = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days} d {clock}" if days else clock


def _log_lines(title: str, total: int, unit: str) -> Callable[[int], None]:
    started = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal last, done
        done += count
        now = time.monotonic()
        if now - last >= LOG_EVERY:
            last = now
            rate = done / (now - started)
            left = (total - done) / rate if rate else float("inf")
            logger.info("%s: %d of %d, %.1f %s/s, %.0f s left", title, done, total, rate, unit, left)

    return advance
