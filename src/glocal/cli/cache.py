"""glocal cache clear FOLDER."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from glocal.errors import ConfigError, nearest_name


def run(action: str, folder: str) -> None:
    """Remove features that evaluations kept in a folder, and say how much it was."""
    from glocal.extraction.feature_files import clear_kept

    if action != "clear":
        raise ConfigError(
            f"There is no 'glocal cache {action}'.{nearest_name(action, ['clear'])} Allowed: clear."
        )
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder} is no folder. Name an out= of `glocal evaluate`, or its features/.")
    files, size = clear_kept(Path(folder))
    Console().print(f"{files} files removed, {size / 2**20:.1f} MiB", highlight=False)
