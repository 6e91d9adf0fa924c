"""glocal evaluate PROTOCOL model=... data=... [train=... test=...] [out=...] [key=value ...]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from glocal.cli.settings import describe, require, split_settings
from glocal.errors import ConfigError, GlocalError

OWN = ("model", "data", "train", "val", "test", "out", "workers", "device")


def run(protocol: str | None, words: Sequence[str], help: bool) -> None:
    """Load the model, open the data, run one protocol or all that the data allows, print and record the result."""
    from glocal.evaluation.base import PROTOCOLS, DataLike, Work, evaluate

    console = Console()
    if help or protocol is None:
        _print_help(console, protocol)
        return
    own, overrides = split_settings(words, OWN)
    require(own, "model")
    if protocol != "all":
        PROTOCOLS[protocol]  # an unknown name fails before the model is loaded
    data = _data(own)
    encoder = _load(own)
    if encoder.report is not None:
        console.print(encoder.report.summary(), highlight=False)
    out = Path(own["out"]) if "out" in own else None
    work = Work(cache=out / "features" if out is not None else None, workers=int(own.get("workers", "0")))
    named: DataLike = data
    for name in PROTOCOLS if protocol == "all" else [protocol]:
        try:
            result = evaluate(name, encoder, named, overrides=overrides, out=out, work=work)
        except GlocalError as error:
            if protocol != "all":
                raise
            console.print(f"[yellow]{name} skipped:[/] {error}", highlight=False)
            continue
        console.print(result.table())
        rows = result.rows_table()
        if rows is not None:
            console.print(rows)
    if out is not None:
        console.print(f"results in {out / 'results.json'}", highlight=False)


def _data(own: dict[str, str]):  # type: ignore[no-untyped-def]
    from glocal.data import open_source

    splits = {name: open_source(own[name]) for name in ("train", "val", "test") if name in own}
    if splits:
        if "data" in own:
            raise ConfigError("Give either data= (whose splits are found by name) or train=/val=/test=, not both.")
        return splits
    require(own, "data")
    return own["data"]


def _load(own: dict[str, str]):  # type: ignore[no-untyped-def]
    import torch

    from glocal.models.loading import load

    torch.set_float32_matmul_precision("medium")
    encoder = load(own["model"])
    device = own.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    encoder.backbone.to(device)
    return encoder


def _print_help(console: Console, protocol: str | None) -> None:
    from glocal.evaluation.base import PROTOCOLS

    console.print(
        "[bold]glocal evaluate PROTOCOL model=MODEL data=DATA[/] [out=FOLDER] [workers=N] [device=cpu|cuda] [key=value ...]"
    )
    console.print(
        "Splits are found by name in data=, or given as train= and test=. PROTOCOL all runs what the data allows.\n"
    )
    table = Table("protocol", "setting", "default", "meaning", box=None)
    for name in [protocol] if protocol in PROTOCOLS else PROTOCOLS:
        for row in describe(PROTOCOLS[str(name)]):
            table.add_row(name, *row)
    console.print(table)
