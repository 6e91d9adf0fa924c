"""glocal report RUN [MODEL ...] [data=...] [out=FILE.html] [live=true]."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from glocal.cli.screen import say, screen
from glocal.cli.settings import read_words
from glocal.config import Config
from glocal.errors import ConfigError, GlocalError


class ReportSettings(Config):
    """What `glocal report` takes beside the run and the models."""

    data: str | None = None
    """Images to show; null: those of the run."""
    out: str | None = None
    """The page; null: report.html in the run folder."""
    images: Annotated[int, Field(ge=4)] = 400
    """Images of the map, the neighbours and the groups of patches, evenly chosen."""
    samples: Annotated[int, Field(ge=2, le=40)] = 12
    """Images in the patch viewer."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Pixels at which models look at these; null: chosen from model and images."""
    live: bool = False
    """Write the page again and again while the run lives; an open page follows."""
    every: Annotated[int, Field(ge=5)] = 60
    """Seconds between two pages with live=true."""


def run(names: Sequence[str]) -> None:
    """Write the page, once or while the run lives."""
    words = [name for name in names if "=" in name]
    models = [name for name in names if "=" not in name]
    settings = read_words(ReportSettings, words)
    if not models:
        raise ConfigError("Name a run or a model: glocal report RUN [MODEL ...] [data=...].")
    if settings.live:
        _follow(models, settings)
    say(screen(), f"wrote {_write(models, settings)}")


def _write(models: Sequence[str], settings: ReportSettings, live: int | None = None) -> Path:
    from glocal.report.page import Shown, write_report

    shown = Shown(settings.images, settings.samples, size=settings.size)
    return write_report(models[0], models[1:], settings.data, settings.out, shown, live=live)


def _follow(models: Sequence[str], settings: ReportSettings) -> None:
    from glocal.training.run_folder import is_alive

    console = screen()
    while is_alive(models[0]):
        began = time.monotonic()
        try:
            say(console, f"wrote {_write(models, settings, settings.every)}; the run goes on")
        except GlocalError as error:
            say(console, f"not written this time: {error}")
        time.sleep(max(0.0, settings.every - (time.monotonic() - began)))
