"""glocal demo [out=runs/demo] [a.b=c ...]: the main job on photographs that come inside the dependencies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from glocal.cli.settings import split_settings


def run(words: Sequence[str]) -> None:
    """Pretrain for about two minutes; set raw pixels, random weights and the trained model side by side; draw pictures."""
    from glocal.report.demo import demo_configuration, draw_pictures, free_folder, measure
    from glocal.training.loop import pretrain

    console = Console()
    own, overrides = split_settings(words, ("out",))
    out = free_folder(Path(own.get("out", "runs/demo")))
    config = demo_configuration(str(out), overrides)
    began = time.perf_counter()
    console.print(
        f"Pretraining '{config.recipe}' on tiles of 18 bundled photographs, no labels, no network ..."
    )
    pretrain(config)
    console.print(
        f"Trained in {time.perf_counter() - began:.0f} s. Asking raw pixels, random weights and the model ..."
    )
    answers = measure(config)
    table = Table(
        "question", *answers.columns, title="What was learnt (per cent right)", title_justify="left"
    )
    for question, row in answers.rows:
        table.add_row(question, *(f"{value:.1f}" for value in row))
    console.print(table)
    for path in draw_pictures(config, answers, out / "pictures"):
        console.print(f"picture: {path}", highlight=False)
    console.print("\nNow on your own images:")
    console.print("  .venv/bin/glocal pretrain pw-self data=YOUR_FOLDER out=runs/mine", highlight=False)
    console.print(
        "  .venv/bin/glocal embed model=runs/mine data=YOUR_FOLDER out=embeddings.parquet", highlight=False
    )
