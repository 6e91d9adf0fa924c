"""glocal evaluate PROTOCOL model=... data=... [train=... test=...] [out=...] [key=value ...]."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from glocal.cli.screen import plain_table, say, screen, settings_table
from glocal.cli.settings import Count, split_words
from glocal.config import Config
from glocal.errors import ConfigError
from glocal.evaluation.results import Skip
from glocal.outside import new_folder
from glocal.own_code import is_own

if TYPE_CHECKING:
    from rich.console import Console

    from glocal.evaluation.base import Beside, DataLike
    from glocal.evaluation.results import Result
    from glocal.extraction.work import Work
    from glocal.models.encoder import Encoder


class EvaluateSettings(Config):
    """What `glocal evaluate` takes beside the settings of the protocol."""

    model: str
    """A run folder, an exported folder, a weight file or timm:NAME."""
    data: str | None = None
    """Images whose splits are found by name; or give train=, val= and test=."""
    train: str | None = None
    """Labelled images to learn from, instead of data=."""
    val: str | None = None
    """Images to choose settings on."""
    test: str | None = None
    """Images to measure on."""
    out: str | None = None
    """A folder for results.json and kept features; null: the result is printed only."""
    workers: Count = 0
    """Processes that decode."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: the first GPU where there is one."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the model's forward pass; auto: bfloat16 where the processor has the instructions. The result says which it was,
    and for bfloat16 how far features are from float32's."""
    quick: bool | None = None
    """Settings for minutes on a CPU; null: with PROTOCOL all."""
    baselines: bool | None = None
    """What a model must beat: raw pixels, random weights, k-means patches. true: by every protocol, as results of their
    own; null: the first two in a note beside each result, where that is cheap; false: none."""


def run(protocol: str | None, words: Sequence[str], help: bool) -> None:
    """Load the model, open the data, run one protocol or all that the data allows, print and record the result."""
    console = screen()
    if help or protocol is None:
        _print_help(console, protocol)
        return
    from glocal.distributed import joined, rank

    options, overrides = split_words(EvaluateSettings, words)
    with joined() as together:
        console.quiet = console.quiet or rank() > 0
        _evaluate(console, protocol, options, overrides, together)


def _evaluate(
    console: Console, protocol: str, options: EvaluateSettings, overrides: list[str], together: bool
) -> None:
    from glocal.evaluation.base import protocol_class
    from glocal.evaluation.beside import measure_beside
    from glocal.extraction.work import Work
    from glocal.models.loading import load_on

    if protocol != "all":
        protocol_class(protocol)  # an unknown name fails before the model is loaded
    out = new_folder(options.out, "out") if options.out is not None else None
    data = _data(options)
    encoder = load_on(options.model, _device(options.device, together), options.precision)
    if encoder.report is not None:
        say(console, encoder.report.summary())
    work = Work(
        cache=out / "features" if out is not None else None, workers=options.workers, together=together
    )
    quick = protocol == "all" if options.quick is None else options.quick
    asked = [(encoder, overrides)]
    if options.baselines:
        asked += _baselines(protocol, encoder, data, overrides)
    beside = measure_beside if options.baselines is None else None
    every = (_results(protocol, model, data, settings, out, work, quick, beside) for model, settings in asked)
    for outcome in itertools.chain.from_iterable(every):
        if isinstance(outcome, Skip):
            what, colour = ("failed", "red") if outcome.failed else ("skipped", "yellow")
            say(console, f"{outcome.protocol} {what}: {_reason(console, outcome)}", style=colour)
            continue
        console.print(outcome.table())
        rows = outcome.rows_table()
        if rows is not None:
            console.print(rows)
    if out is not None:
        say(console, f"results in {out / 'results.json'}")


def _device(asked: str, together: bool) -> str:
    """Of several processes each takes the GPU of its number."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    mine = asked == "auto" and together and local is not None and torch.cuda.is_available()
    return f"cuda:{local}" if mine else asked


def _reason(console: Console, skip: Skip) -> str:
    """Why a protocol was left out: whole in a file or pipe, a line on a terminal, so that results stay in sight."""
    if not console.is_terminal:
        return skip.reason
    room = max(20, console.width - len(skip.protocol) - 12)
    line = skip.reason.partition("\n")[0]
    return line if len(line) <= room else line[: room - 3] + "..."


def _results(
    protocol: str,
    encoder: Encoder,
    data: DataLike,
    overrides: Sequence[str],
    out: Path | None,
    work: Work,
    quick: bool,
    beside: Beside | None,
) -> Iterable[Result | Skip]:
    from glocal.evaluation.all_protocols import evaluate_all
    from glocal.evaluation.base import evaluate, protocol_class

    if protocol == "all":
        return evaluate_all(
            encoder, data, overrides=overrides, out=out, work=work, quick=quick, beside=beside
        )
    kind = protocol_class(protocol)
    config = kind.quick(encoder) if quick else kind()
    return [evaluate(config, encoder, data, overrides=overrides, out=out, work=work, beside=beside)]


def _baselines(
    protocol: str, encoder: Encoder, data: DataLike, overrides: list[str]
) -> Iterator[tuple[Encoder, list[str]]]:
    """What the model must beat, each with the settings it needs."""
    from glocal.evaluation.base import open_split
    from glocal.evaluation.baselines import baselines

    for baseline in baselines(encoder, open_split(data, "train", "all", "test", "val")):
        yield baseline.encoder, [*overrides, *baseline.overrides_of(protocol)]


def _data(settings: EvaluateSettings) -> DataLike:
    from glocal.data import open_role

    given = {"train": settings.train, "val": settings.val, "test": settings.test}
    splits = {role: open_role(spec, role) for role, spec in given.items() if spec is not None}
    if splits and settings.data is not None:
        raise ConfigError(
            "Give either data= (whose splits are found by name) or train=/val=/test=, not both."
        )
    if not splits and settings.data is None:
        raise ConfigError("Missing: data=... .")
    return splits or str(settings.data)


def _print_help(console: Console, protocol: str | None) -> None:
    """The protocols with what each measures, or one protocol's settings."""
    from glocal.cli.reference import describe
    from glocal.evaluation.base import PROTOCOLS, protocol_class

    say(console, "glocal evaluate PROTOCOL model=MODEL data=DATA [out=FOLDER] [key=value ...]", style="bold")
    say(
        console,
        "Splits are found by name in data=, or given as train= and test=. PROTOCOL all runs what the data allows, at "
        "quick settings unless quick=false, and takes settings as PROTOCOL.key=value.\n",
    )
    rows = describe(EvaluateSettings)
    named = protocol in PROTOCOLS or is_own(protocol)
    if named:
        rows += describe(protocol_class(str(protocol)))
    console.print(settings_table(rows))
    if not named:
        listed = ((name, (protocol_class(name).__doc__ or "").partition("\n")[0]) for name in PROTOCOLS)
        console.print(plain_table("protocol", "what it measures (--help: its settings)", rows=listed))
