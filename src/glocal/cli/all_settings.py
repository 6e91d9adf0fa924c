"""glocal settings [PREFIX] [out=FILE.md]."""

from __future__ import annotations

from glocal.cli.reference import as_markdown, sections
from glocal.cli.screen import say, screen, settings_table
from glocal.errors import ConfigError, nearest_name
from glocal.outside import new_file


def run(prefix: str, out: str | None) -> None:
    """Print the sections that have such settings or such a title, or write the page of all."""
    if out is None and prefix.startswith("out="):
        prefix, out = "", prefix
    reference = sections()
    if out is not None:
        file = new_file(out.removeprefix("out="), "out", (".md",))
        file.write_text(as_markdown(reference), encoding="utf-8")
        say(screen(), f"{sum(len(section.settings) for section in reference)} settings in {file}")
        return
    console, shown = screen(), 0
    for section in reference:
        named = prefix.lower() in section.title.lower()
        rows = [row for row in section.settings if named or row.key.startswith(prefix)]
        if rows:
            say(console, f"\n{section.title}: {section.about}", style="bold")
            console.print(settings_table(rows))
        shown += len(rows)
    if not shown:
        keys = {row.key for section in reference for row in section.settings}
        raise ConfigError(
            f"No setting begins with '{prefix}'.{nearest_name(prefix, keys)} `glocal settings` lists all."
        )
