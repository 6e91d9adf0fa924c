"""glocal reproduce ROW and glocal ladder: the ladder's runs, made again or made at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from glocal.cli.settings import split_settings
from glocal.errors import ConfigError
from glocal.ladder.band import compare
from glocal.ladder.page import write_page
from glocal.ladder.rows import BUDGETS, GROUNDS, ROWS
from glocal.ladder.study import read_records, run_ladder, run_row

RECORDS = Path("benchmarks/ladder.jsonl")
_OPTIONS = ("data", "out", "scale", "ground", "grounds", "rows", "seeds", "seed", "rate", "records", "tune")


def reproduce(row: str, words: Sequence[str]) -> None:
    """Run one row and say whether it lies where the recorded runs lie, and from which tenth on it does not.

    Raises:
        ConfigError: for a setting that is none.
        DataError: when nothing is recorded for that row, ground and scale.
    """
    options = _options(words)
    data, out, records = _paths(options)
    ground, scale = options.get("ground", "cifar10"), _scale(options)
    recorded = [r for r in read_records(records) if r["row"] == row]
    rates = [r["rate"] for r in recorded if (r["ground"], r["scale"], r["kind"]) == (ground, scale, "run")]
    rate = float(options.get("rate", rates[0] if rates else 1.0))
    record = run_row(
        row, ground, scale=scale, data=data, out=out, seed=int(options.get("seed", "100")), rate=rate
    )
    verdict = compare(record, recorded)
    console = Console()
    for name, value in record["figures"].items():
        beyond = verdict.outside.get(name)
        expected = f"outside {beyond[1].low:.1f} to {beyond[1].high:.1f}" if beyond else "in the band"
        console.print(f"{name}: {value:.1f}, {expected}", highlight=False)
    if verdict.leaves_at is not None:
        console.print(f"The loss leaves its band at {verdict.leaves_at:.0%} of the run.", highlight=False)
    console.print("It agrees with the record." if verdict.agrees else "It does not agree with the record.")


def ladder(words: Sequence[str]) -> None:
    """Run what is missing of the ladder and write its page.

    Raises:
        ConfigError: for a setting that is none.
    """
    options = _options(words)
    data, out, records = _paths(options)
    rows = options["rows"].split(";") if "rows" in options else list(ROWS)
    grounds = options["grounds"].split(",") if "grounds" in options else list(GROUNDS)
    seeds = [int(seed) for seed in options.get("seeds", "0,1,2").split(",")]
    if options.get("tune") != "page":
        run_ladder(
            rows, grounds, seeds, scale=_scale(options), data=data, out=out, records=records,
            tune=options.get("tune", "true") != "false",
        )  # fmt: skip
    for path in write_page(read_records(records), Path("docs")):
        Console().print(f"wrote {path}", highlight=False)


def _options(words: Sequence[str]) -> dict[str, str]:
    options, others = split_settings(words, _OPTIONS)
    if others:
        raise ConfigError(f"'{others[0]}' is no setting of the ladder. Allowed: {', '.join(_OPTIONS)}.")
    return options


def _paths(options: dict[str, str]) -> tuple[Path, Path, Path]:
    return (
        Path(options.get("data", "data")),
        Path(options.get("out", "runs/ladder")),
        Path(options.get("records", str(RECORDS))),
    )


def _scale(options: dict[str, str]) -> str:
    scale = options.get("scale", "cpu")
    if scale not in BUDGETS:
        raise ConfigError(f"scale={scale} is none of {', '.join(BUDGETS)}.")
    return scale
