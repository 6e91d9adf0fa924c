"""Where verbs print: a terminal's own width there, whole lines in files and pipes."""

from __future__ import annotations

from rich.console import Console, RenderableType

PIPE_WIDTH = 200
"""Columns of a table in a file or pipe, which rich would otherwise squeeze into 80."""


def screen() -> Console:
    """The console of a verb. Text is plain: names in it may hold what rich takes for markup."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=PIPE_WIDTH)


def say(console: Console, *lines: RenderableType, style: str | None = None) -> None:
    """Print lines whole: a reason or a path is never cut to the width."""
    for line in lines:
        console.print(line, style=style, soft_wrap=True)
