"""glocal evaluate PROTOCOL model=... data=... [train=... test=...] [out=...] [key=value ...]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glocal.cli.settings import describe, flag, require, split_settings
from glocal.errors import ConfigError
from glocal.evaluation.results import Skip

if TYPE_CHECKING:
    from glocal.evaluation.base import DataLike
    from glocal.evaluation.results import Result
    from glocal.extraction.work import Work
    from glocal.models.encoder import Encoder

OWN = ("model", "data", "train", "val", "test", "out", "workers", "device", "precision", "quick")


def run(protocol: str | None, words: Sequence[str], help: bool) -> None:
    """Load the model, open the data, run one protocol or all that the data allows, print and record the result."""
    from glocal.evaluation.base import protocol_class
    from glocal.extraction.work import Work

    console = Console()
    if help or protocol is None:
        _print_help(console, protocol)
        return
    own, overrides = split_settings(words, OWN)
    require(own, "model")
    if protocol != "all":
        protocol_class(protocol)  # an unknown name fails before the model is loaded
    data = _data(own)
    encoder = _load(own)
    if encoder.report is not None:
        console.print(encoder.report.summary(), highlight=False)
    out = Path(own["out"]) if "out" in own else None
    work = Work(cache=out / "features" if out is not None else None, workers=int(own.get("workers", "0")))
    quick = flag(own.get("quick", "true" if protocol == "all" else "false"), "quick")
    for found in _results(protocol, encoder, data, overrides, out, work, quick):
        if isinstance(found, Skip):
            # The whole reason is in results.json; here a line each, so that results stay in sight.
            reason = escape(found.reason.partition("\n")[0])
            console.print(
                f"[{'red' if found.failed else 'yellow'}]{found.protocol} {'failed' if found.failed else 'skipped'}:[/] {reason}",
                highlight=False,
                overflow="ellipsis",
                no_wrap=True,
            )
            continue
        console.print(found.table())
        rows = found.rows_table()
        if rows is not None:
            console.print(rows)
    if out is not None:
        console.print(f"results in {out / 'results.json'}", highlight=False)


def _results(
    protocol: str,
    encoder: Encoder,
    data: DataLike,
    overrides: Sequence[str],
    out: Path | None,
    work: Work,
    quick: bool,
) -> Iterable[Result | Skip]:
    from glocal.evaluation.all_protocols import evaluate_all
    from glocal.evaluation.base import evaluate, protocol_class

    if protocol == "all":
        return evaluate_all(encoder, data, overrides=overrides, out=out, work=work, quick=quick)
    kind = protocol_class(protocol)
    config = kind.quick(encoder) if quick else kind()
    return [evaluate(config, encoder, data, overrides=overrides, out=out, work=work)]


def _data(own: dict[str, str]):  # type: ignore[no-untyped-def]
    from glocal.data import open_role

    splits = {name: open_role(own[name], name) for name in ("train", "val", "test") if name in own}
    if splits:
        if "data" in own:
            raise ConfigError(
                "Give either data= (whose splits are found by name) or train=/val=/test=, not both."
            )
        return splits
    require(own, "data")
    return own["data"]


def _load(own: dict[str, str]):  # type: ignore[no-untyped-def]
    import torch

    from glocal.models.loading import load
    from glocal.models.precision import Precision

    named: dict[str, Precision] = {name: name for name in get_args(Precision)}
    precision = own.get("precision", "float32")
    if precision not in named:
        raise ConfigError(f"precision={precision}: allowed are {', '.join(named)}.")
    encoder = load(own["model"])
    encoder.precision = named[precision]
    device = own.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    encoder.backbone.to(device)
    return encoder


def _print_help(console: Console, protocol: str | None) -> None:
    """The protocols with what each measures, or one protocol's settings."""
    from glocal.evaluation.base import PROTOCOLS, protocol_class

    usage = "[out=FOLDER] [quick=true|false] [workers=N] [device=cpu|cuda] [precision=float32|bfloat16] [key=value ...]"
    console.print(f"[bold]glocal evaluate PROTOCOL model=MODEL data=DATA[/] {escape(usage)}")
    console.print(
        "Splits are found by name in data=, or given as train= and test=. PROTOCOL all runs what the data allows, at quick "
        "settings unless quick=false, and takes settings as PROTOCOL.key=value.\n"
    )
    if protocol in PROTOCOLS:
        table = Table("setting", "default", "meaning", box=None)
        for row in describe(protocol_class(str(protocol))):
            table.add_row(*map(escape, row))
    else:
        table = Table(
            "protocol", "what it measures (glocal evaluate PROTOCOL --help lists its settings)", box=None
        )
        for name in PROTOCOLS:
            table.add_row(name, escape((protocol_class(name).__doc__ or "").partition("\n")[0]))
    console.print(table)
