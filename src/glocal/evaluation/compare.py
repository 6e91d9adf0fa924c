"""Results of several models side by side."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.markup import escape
from rich.table import Table

from glocal.errors import DataError, name_some
from glocal.evaluation.intervals import Samples, difference
from glocal.evaluation.results import Result, format_number, read_items, read_results

LEGEND = "±: half of the 95 % interval over test items; =: does not differ from the first column (paired on the same items)"

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
    intervals: dict[Measure, list[Sequence[float]]]
    """[low, high] where there is one, else empty."""
    alike: dict[Measure, list[bool]]
    """Whether a column does not differ from the first one that has the figure."""


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Read the results of several folders (or results.json files).

    Raises:
        DataError: when no folder is given, or one has no results.

    >>> compare(["runs/a", "runs/b"])  # doctest: +SKIP
    """
    if not runs:
        raise DataError("Nothing to compare. Name folders that `glocal evaluate ... out=FOLDER` wrote.")
    columns: dict[str, list[Result]] = {}
    folders: dict[str, str] = {}
    warnings: list[str] = []
    for run in runs:
        path = results_path(Path(run))
        results = read_results(path)
        models = list(dict.fromkeys(result.model.get("fingerprint", "") for result in results))
        for model in models:
            group = [result for result in results if result.model.get("fingerprint", "") == model]
            name = str(run) if len(models) == 1 else f"{run} · {group[0].model.get('name', model)}"
            while name in columns:
                name += " '"
            folders[name] = str(run)
            columns[name], repeated = _latest(group)
            warnings += [
                f"! {name}: several {protocol} results of different settings; the latest is shown"
                for protocol in repeated
            ]
    numbers: dict[Measure, list[float | None]] = {}
    between: dict[Measure, list[Sequence[float]]] = {}
    holders: dict[Measure, list[tuple[int, Result]]] = {}
    for place, results in enumerate(columns.values()):
        for result in results:
            for name, value in result.numbers.items():
                measure = Measure(result.protocol, ", ".join(result.data), name)
                numbers.setdefault(measure, [None] * len(columns))[place] = value
                between.setdefault(measure, [()] * len(columns))[place] = result.intervals.get(name, ())
                holders.setdefault(measure, []).append((place, result))
    reader = _ItemReader({name: results_path(Path(folders[name])).parent for name in columns}, list(columns))
    alike = {measure: reader.alike(measure, held, len(columns)) for measure, held in holders.items()}
    return Comparison(list(columns), numbers, [*warnings, *_differences(columns)], between, alike)


class _ItemReader:
    """Reads what each test item added to figures, once a result, and tells which figures do not differ."""

    def __init__(self, folders: Mapping[str, Path], columns: Sequence[str]) -> None:
        self._folders = [folders[name] for name in columns]
        self._read: dict[tuple[int, str], dict[str, Samples]] = {}

    def samples(self, place: int, result: Result) -> dict[str, Samples]:
        key = (place, result.items)
        if key not in self._read:
            self._read[key] = read_items(self._folders[place], result)[0]
        return self._read[key]

    def alike(self, measure: Measure, held: Sequence[tuple[int, Result]], columns: int) -> list[bool]:
        """Paired where both were measured on the same items, else by the two intervals."""
        verdicts = [False] * columns
        first_place, first = held[0]
        for place, result in held[1:]:
            one, other = (
                self.samples(p, r).get(measure.name) for p, r in ((first_place, first), (place, result))
            )
            paired = result.data == first.data and one is not None and other is not None
            if paired and one is not None and other is not None and one.values.shape == other.values.shape:
                low, high = difference(one, other)
                verdicts[place] = low <= 0 <= high
            elif measure.name in first.intervals and measure.name in result.intervals:
                halves = [
                    (r.intervals[measure.name][1] - r.intervals[measure.name][0]) / 2 for r in (first, result)
                ]
                apart = abs(first.numbers[measure.name] - result.numbers[measure.name])
                verdicts[place] = apart <= (halves[0] ** 2 + halves[1] ** 2) ** 0.5
        return verdicts


def as_tables(comparison: Comparison) -> list[Table]:
    """A table a protocol and data set: a row a measure, a column a run. No number is called best: for some, lower is.

    Settings that differ within a protocol are named below the last one, since such numbers can't be compared.
    """
    tables: dict[tuple[str, str], Table] = {}
    for measure in comparison.numbers:
        head = (measure.protocol, measure.data)
        if head not in tables:
            table = Table(title=escape(f"{measure.protocol} on {measure.data}"), title_justify="left")
            table.add_column("measure", no_wrap=True)
            for name in comparison.columns:
                table.add_column(escape(name), justify="right", overflow="fold")
            tables[head] = table
        tables[head].add_row(escape(measure.name), *cells_of(comparison, measure))
    shown = list(tables.values())
    if not shown:
        raise DataError(
            f"No figures in {name_some(comparison.columns)}. Run `glocal evaluate all` with out=FOLDER first."
        )
    told = [LEGEND] if any(any(alike) for alike in comparison.alike.values()) else []
    if told or comparison.warnings:
        shown[-1].caption, shown[-1].caption_justify = (
            escape("\n".join([*told, *comparison.warnings])),
            "left",
        )
    return shown


def cells_of(comparison: Comparison, measure: Measure) -> list[str]:
    """One cell a column: the figure, its half interval, and = where it does not differ from the first."""
    cells = []
    for value, interval, alike in zip(
        comparison.numbers[measure], comparison.intervals[measure], comparison.alike[measure], strict=True
    ):
        half = f" ±{format_number((interval[1] - interval[0]) / 2)}" if len(interval) == 2 else ""
        cells.append("-" if value is None else format_number(value) + half + (" =" if alike else ""))
    return cells


def as_text(comparison: Comparison, form: Literal["csv", "markdown", "latex"]) -> str:
    """A comparison for a spreadsheet (numbers and ends of intervals in full), a web page or a paper.

    >>> print(as_text(compare(["runs/a", "runs/b"]), "markdown"))  # doctest: +SKIP
    """
    if form == "csv":
        return _csv(comparison)
    head = ["protocol", "data", "measure", *comparison.columns]
    rows = [[*measure, *cells_of(comparison, measure)] for measure in comparison.numbers]
    if form == "markdown":
        lines = [head, ["---"] * len(head), *rows]
        body = "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        return "\n\n".join([body, *comparison.warnings]) + "\n"
    typeset = [" & ".join(map(_latex, line)) + r" \\" for line in [head, *rows]]
    columns = "lll" + "r" * len(comparison.columns)
    rules = [
        r"\begin{tabular}{" + columns + "}",
        r"\toprule",
        typeset[0],
        r"\midrule",
        *typeset[1:],
        r"\bottomrule",
    ]
    comments = [f"% {line}" for line in comparison.warnings]
    return "\n".join([*comments, *rules, r"\end{tabular}"]) + "\n"


def _csv(comparison: Comparison) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["protocol", "data", "measure", "model", "value", "low", "high", "differs_from_first"])
    for measure, values in comparison.numbers.items():
        for place, value in enumerate(values):
            if value is not None:
                ends = comparison.intervals[measure][place] or ("", "")
                told = (
                    "" if not place or ends == ("", "") else str(not comparison.alike[measure][place]).lower()
                )
                writer.writerow([*measure, comparison.columns[place], value, *ends, told])
    return text.getvalue()


def _latex(text: str) -> str:
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return escaped.replace("±", r"$\pm$").replace("~", r"\textasciitilde ").replace("^", r"\textasciicircum ")


def results_path(run: Path) -> Path:
    """Where a run keeps its results: the file itself, `results.json` in the folder, or in its `evaluation` folder."""
    options = [run] if run.suffix == ".json" else [run / "results.json", run / "evaluation" / "results.json"]
    file = next((path for path in options if path.is_file()), None)
    if file is None:
        looked = " or ".join(str(path) for path in options)
        raise DataError(
            f"{run} has no results ({looked}). Run `glocal evaluate all model={run} data=... out={run}`."
        )
    return file


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
