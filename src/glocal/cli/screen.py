"""Where verbs print: a terminal's own width there, whole lines in files and pipes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from glocal.cli.reference import Setting

PIPE_WIDTH = 200
"""Columns of a table in a file or pipe, which rich would otherwise squeeze into 80."""


def screen() -> Console:
    """The console of a verb."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def say(console: Console, *lines: str, style: str | None = None) -> None:
    """Print lines of plain text, whole: no width cuts a reason or a path, and nothing in a name is markup."""
    for line in lines:
        console.print(line, style=style, soft_wrap=True, markup=False)


def plain_table(*columns: str, rows: Iterable[Iterable[str]]) -> Table:
    """A table whose cells are plain text."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def settings_table(rows: Iterable[Setting]) -> Table:
    """Settings with what they allow, their defaults and their meaning."""
    cells = ((row.key, row.allowed, row.default, row.meaning) for row in rows)
    return plain_table("setting", "allowed", "default (a recipe may set another)", "meaning", rows=cells)
