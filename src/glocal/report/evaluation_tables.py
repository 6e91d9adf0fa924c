"""Results of evaluations for the page: a table a protocol and data set, a column a model, intervals where there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glocal.errors import DataError
from glocal.evaluation.compare import results_path
from glocal.evaluation.results import format_number, read_results


def evaluation_tables(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Tables of the results that these folders hold, by the name of their column; folders without results add none."""
    columns = {name: results for name, folder in folders.items() if (results := _results(folder))}
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for place, results in enumerate(columns.values()):
        for result in results:
            head = (result["protocol"], ", ".join(result.get("data", {})))
            table = tables.setdefault(
                head,
                {"protocol": head[0], "data": head[1], "columns": list(columns), "rows": {}, "notes": []},
            )
            for measure, value in result["numbers"].items():
                row = table["rows"].setdefault(measure, [None] * len(columns))
                row[place] = _cell(value, (result.get("intervals") or {}).get(measure))
            table["notes"] += [note for note in result.get("notes", []) if note not in table["notes"]]
    return [
        {**table, "rows": [{"measure": m, "values": v} for m, v in table["rows"].items()]}
        for table in tables.values()
    ]


def _results(folder: Path) -> list[dict[str, Any]]:
    try:
        return [result.to_json() for result in read_results(results_path(folder))]
    except DataError:
        return []


def _cell(value: float | None, interval: Sequence[float] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    ends = [format_number(float(end)) for end in interval] if interval else None
    return {"text": format_number(float(value)), "interval": ends}
