"""Results of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from glocal.errors import DataError
from glocal.evaluation.results import Result, format_number, read_results

HARMLESS = ("save", "database", "ground_truth", "distractors", "references", "whitening")
"""Settings that are paths: where predictions go, and images whose fingerprints are compared instead."""


class Measure(NamedTuple):
    """What one row compares."""

    protocol: str
    data: str
    name: str


class Comparison(NamedTuple):
    """Numbers by measure and column; a column is a folder, or a folder and a model where a folder holds several."""

    columns: list[str]
    numbers: dict[Measure, list[float | None]]
    warnings: list[str]


def gather(runs: Sequence[str | Path]) -> Comparison:
    """Read the results of several folders (or results.json files).

    Raises:
        DataError: when no folder is given, or one has no results.

    >>> gather(["runs/a", "runs/b"])  # doctest: +SKIP
    """
    if not runs:
        raise DataError("Nothing to compare. Name folders that `glocal evaluate ... out=FOLDER` wrote.")
    columns: dict[str, list[Result]] = {}
    warnings: list[str] = []
    for run in runs:
        path = results_path(Path(run))
        results = read_results(path)
        models = list(dict.fromkeys(result.model.get("fingerprint", "") for result in results))
        for model in models:
            own = [result for result in results if result.model.get("fingerprint", "") == model]
            name = str(run) if len(models) == 1 else f"{run} · {own[0].model.get('name', model)}"
            while name in columns:
                name += " '"
            columns[name], repeated = _latest(own)
            warnings += [
                f"! {name}: several {protocol} results of different settings; the latest is shown"
                for protocol in repeated
            ]
    numbers: dict[Measure, list[float | None]] = {}
    for place, results in enumerate(columns.values()):
        for result in results:
            for name, value in result.numbers.items():
                measure = Measure(result.protocol, ", ".join(result.data), name)
                numbers.setdefault(measure, [None] * len(columns))[place] = value
    return Comparison(list(columns), numbers, [*warnings, *_differences(columns)])


def compare(runs: Sequence[str | Path]) -> list[Table]:
    """A table a protocol and data set: a row a measure, a column a run. No number is called best: for some, lower is.

    Settings that differ within a protocol are named below the last one, since such numbers can't be compared.
    """
    found = gather(runs)
    tables: dict[tuple[str, str], Table] = {}
    for measure, values in found.numbers.items():
        head = (measure.protocol, measure.data)
        if head not in tables:
            table = Table(title=escape(f"{measure.protocol} on {measure.data}"), title_justify="left")
            table.add_column("measure", no_wrap=True)
            for name in found.columns:
                table.add_column(escape(name), justify="right", overflow="fold")
            tables[head] = table
        cells = ("-" if value is None else format_number(value) for value in values)
        tables[head].add_row(measure.name, *cells)
    shown = list(tables.values())
    if found.warnings:
        shown[-1].caption, shown[-1].caption_justify = "\n".join(found.warnings), "left"
    return shown


def results_path(run: Path) -> Path:
    """Where a run keeps its results: the file itself, `results.json` in the folder, or in its `evaluation` folder."""
    options = [run] if run.suffix == ".json" else [run / "results.json", run / "evaluation" / "results.json"]
    found = next((path for path in options if path.is_file()), None)
    if found is None:
        looked = " or ".join(str(path) for path in options)
        raise DataError(
            f"{run} has no results ({looked}). Run `glocal evaluate all model={run} data=... out={run}`."
        )
    return found


def _latest(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """The last result of each protocol and data set, and the protocols that had others."""
    last: dict[tuple[str, str], Result] = {}
    repeated: dict[str, None] = {}
    for result in results:
        key = result.protocol, ", ".join(result.data)
        if key in last:
            repeated[result.protocol] = None
        last[key] = result
    return list(last.values()), list(repeated)


def _differences(columns: dict[str, list[Result]]) -> list[str]:
    """One line for everything that decides a figure and differs between runs within a protocol and data set."""
    groups: dict[tuple[str, str], list[tuple[str, Result]]] = {}
    for name, results in columns.items():
        for result in results:
            groups.setdefault((result.protocol, ", ".join(result.data)), []).append((name, result))
    lines: list[str] = []
    for (protocol, _), entries in groups.items():
        deciding = [(name, deciding_values(result)) for name, result in entries]
        for setting in dict.fromkeys(key for _, values in deciding for key in values):
            values = [(name, of_result.get(setting)) for name, of_result in deciding]
            if any(value != values[0][1] for _, value in values):
                told = "; ".join(f"{name}: {value}" for name, value in values)
                lines.append(f"! {protocol}: {setting} differs ({told})")
    return lines


def deciding_values(result: Result) -> dict[str, Any]:
    """Everything that decides a result's figures but the model, by dotted name: what the protocol picked isn't among it.

    >>> deciding_values(Result("knn", 2, {"transform": {"size": 32}}, {}))
    {'version': 2, 'transform.size': 32, 'precision': None, 'device': None, 'data': ''}
    """
    settings = {key: value for key, value in result.settings.items() if key not in HARMLESS}
    return {
        "version": result.version,
        **_flat(settings),
        "precision": result.made.get("precision"),
        "device": result.made.get("device"),
        "data": ", ".join(result.data.values()),
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
