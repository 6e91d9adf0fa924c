"""glocal demo [out=runs/demo] [a.b=c ...]: the main job on photographs that come inside the dependencies."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.table import Table

from glocal.cli.screen import say, screen
from glocal.cli.settings import split_words
from glocal.config import Config
from glocal.outside import new_folder


class DemoSettings(Config):
    """What `glocal demo` takes beside the settings of a run."""

    out: str = "runs/demo"
    """The run folder; when it is taken, the next free name."""


def run(words: Sequence[str]) -> None:
    """Pretrain for about two minutes; set raw pixels, random weights and the trained model side by side; write a page."""
    from glocal.report.demo import TITLE, demo_configuration, free_folder, measure, write_demo_page
    from glocal.training.loop import pretrain

    console = screen()
    options, overrides = split_words(DemoSettings, words)
    out = free_folder(new_folder(options.out, "out"))
    config = demo_configuration(str(out), overrides)
    began = time.perf_counter()
    say(
        console,
        f"Pretraining '{config.recipe}' on tiles of 18 bundled photographs, no labels, no network ...",
    )
    pretrain(config)
    say(
        console,
        f"Trained in {time.perf_counter() - began:.0f} s. Asking raw pixels, random weights and the model ...",
    )
    answers = measure(config)
    table = Table("question", *answers.columns, title=TITLE, title_justify="left")
    for question, row in answers.rows:
        table.add_row(question, *(f"{value:.1f}" for value in row))
    console.print(table)
    say(console, "Drawing the page ...")
    say(console, f"page: {write_demo_page(config, answers).resolve().as_uri()}")
    say(console, "\nNow on your own images:")
    say(console, "  .venv/bin/glocal pretrain glocal data=YOUR_FOLDER out=runs/mine")
    say(console, "  .venv/bin/glocal embed model=runs/mine data=YOUR_FOLDER out=embeddings.parquet")
