"""What a protocol measured, what could not be measured, and the file both are kept in."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from glocal.atomic_files import locked, write_atomically
from glocal.errors import DataError
from glocal.evaluation.intervals import Samples
from glocal.outside import read_json, reading

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = 1
"""Layout version of results.json."""
ROWS_SHOWN = 40
"""Detail rows that a table on a terminal holds."""


@dataclass(frozen=True)
class Skip:
    """A protocol of `evaluate all` that could not be run, and why."""

    protocol: str
    reason: str
    model: dict[str, str]
    data: str
    failed: bool = False
    """Whether it should have run: an error that nobody foresaw, rather than something that model or data lack."""


@dataclass
class Result:
    """What one protocol measured for one model on one data set.

    `settings` holds everything needed to repeat it, resolution, layer and norm included. `notes` names and counts what
    was left out (unreadable images, absent classes). Percentages are in 0..100.
    """

    protocol: str
    version: int
    settings: dict[str, Any]
    numbers: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By role: name, split (null: it has none, or it was opened elsewhere) and number of images."""
    picked: dict[str, Any] = field(default_factory=dict)
    """What the protocol chose by itself on held-out training images."""
    made: dict[str, Any] = field(default_factory=dict)
    """Date, seconds, device, precision (for bfloat16 also how far features are from float32's) and versions."""
    intervals: dict[str, list[float]] = field(default_factory=dict)
    """Where a figure lies in 95 of 100 resamplings of the test items: [low, high]."""
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    """What raw pixels and random weights reach at the same settings, where that was cheap."""
    items: str = ""
    """The file beside results.json with what each test item adds, and each image's prediction; see `read_items`."""
    samples: dict[str, Samples] = field(default_factory=dict, repr=False, compare=False)
    """What figures are made of, item by item; kept in `items`."""
    predictions: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """Places, true and predicted classes of the test images, where a protocol predicts classes; kept in `items`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for results.json. Numbers that are not finite become null, since JSON has no name for them."""
        kept = (name for name in self.__dataclass_fields__ if name not in ("samples", "predictions"))
        plain: dict[str, Any] = _plain({name: getattr(self, name) for name in kept})
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Read what `to_json` wrote; null numbers come back as NaN."""
        numbers = {name: math.nan if value is None else value for name, value in data["numbers"].items()}
        kinds = get_type_hints(cls)
        known = {**data, "numbers": numbers}
        kept = [n for n in cls.__dataclass_fields__ if n in known and n not in ("samples", "predictions")]
        return cls(**{name: TypeAdapter(kinds[name]).validate_python(known[name]) for name in kept})

    def table(self) -> Table:
        """A rich table of the numbers, with the settings that must be told with them in the caption."""
        from rich.markup import escape
        from rich.table import Table

        title = (
            f"{self.protocol} v{self.version}: {self.model.get('name', '?')} on {', '.join(self.data) or '?'}"
        )
        caption = "\n".join([_caption(self.settings), *self.notes])
        width = min(110, max(map(len, [title, *caption.splitlines()])))
        # As plain text: a file's name may hold what rich takes for markup.
        table = Table(
            title=escape(title),
            caption=escape(caption),
            title_justify="left",
            caption_justify="left",
            min_width=width,
        )
        table.add_column("measure")
        table.add_column("value", justify="right")
        if self.intervals:
            table.add_column("95 % interval", justify="right")
        for name, value in self.numbers.items():
            between = " to ".join(map(format_number, self.intervals.get(name, ())))
            table.add_row(name, format_number(value), *([between] if self.intervals else []))
        return table

    def rows_table(self) -> Table | None:
        """A rich table of the first 40 detail rows, or None without any; results.json holds all."""
        from rich.markup import escape
        from rich.table import Table

        if not self.rows:
            return None
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        more = len(self.rows) - ROWS_SHOWN
        caption = f"and {more} more in results.json" if more > 0 else None
        table = Table(*names, title=f"{self.protocol}: details", title_justify="left", caption=caption)
        for row in self.rows[:ROWS_SHOWN]:
            table.add_row(*(escape(format_number(row.get(name, ""))) for name in names))
        return table


def write_result(path: Path, result: Result, given: str = "") -> None:
    """Merge a result into results.json, atomically and alone. Only one of the very same settings, model and data is replaced.

    Args:
        path: the file.
        result: what to keep.
        given: the data as the caller named it; a skip of this protocol and model on it is dropped.
    """
    name, model = result.protocol, result.model.get("fingerprint", "")
    if result.samples or result.predictions:
        result.items = _write_items(path.parent, result)
    with locked(path):
        results, skips = read_results(path), read_skips(path)
        _write(
            path,
            [*(r for r in results if _identity(r) != _identity(result)), result],
            [
                s
                for s in skips
                if (s.protocol, s.model.get("fingerprint", ""), s.data) != (name, model, given)
            ],
        )


def write_skip(path: Path, skip: Skip) -> None:
    """Merge a skip into results.json, atomically. An older one of the same protocol, model and data is replaced."""
    same = (skip.protocol, skip.model.get("fingerprint", ""), skip.data)
    with locked(path):
        others = [s for s in read_skips(path) if (s.protocol, s.model.get("fingerprint", ""), s.data) != same]
        _write(path, read_results(path), [*others, skip])


def read_results(path: Path) -> list[Result]:
    """Read the results of results.json, oldest first; none when the file doesn't exist.

    Raises:
        DataError: when it is no JSON, or of a layout this version doesn't know.
    """
    plain = _read(path)
    with reading(path, "results", cure="Move it away and evaluate again."):
        return [Result.from_json(entry) for entry in plain.get("results", [])]


def read_items(folder: Path, result: Result) -> tuple[dict[str, Samples], dict[str, NDArray[Any]]]:
    """What each test item added to a result's figures, and each image's prediction; both empty where nothing was kept.

    Args:
        folder: where the results.json is.
        result: one that `read_results` gave.
    """
    if not result.items or not (folder / result.items).is_file():
        return {}, {}
    try:
        with np.load(folder / result.items, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"Can't read {folder / result.items}: {error}. Remove it and evaluate again."
        ) from error
    parts = {name: name.split("|") for name in arrays}
    return (
        {kind[1]: Samples(arrays[name], kind[2]) for name, kind in parts.items() if kind[0] == "samples"},
        {kind[1]: arrays[name] for name, kind in parts.items() if kind[0] == "predictions"},
    )


def _write_items(folder: Path, result: Result) -> str:
    arrays = {
        f"samples|{name}|{s.statistic}": np.asarray(s.values, np.float32)
        for name, s in result.samples.items()
    }
    arrays |= {f"predictions|{name}": values for name, values in result.predictions.items()}
    identity = json.dumps(_plain(_identity(result)), sort_keys=True)
    name = f"items/{result.protocol}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npz"
    write_atomically(folder / name, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))
    return name


def read_skips(path: Path) -> list[Skip]:
    """Read what `evaluate all` left out, and why; none when the file doesn't exist.

    Raises:
        DataError: when it is no JSON, or of a layout this version doesn't know.
    """
    plain = _read(path)
    with reading(path, "results", cure="Move it away and evaluate again."):
        return TypeAdapter(list[Skip]).validate_python(plain.get("skipped", []))


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    plain = read_json(path, "results", cure="Move it away and evaluate again.")
    if plain.get("format") != FORMAT:
        raise DataError(
            f"{path} has layout {plain.get('format')!r}; this version reads {FORMAT}. Move it away and evaluate again."
        )
    return plain


def _write(path: Path, results: Sequence[Result], skips: Sequence[Skip]) -> None:
    plain = {
        "format": FORMAT,
        "results": [r.to_json() for r in results],
        "skipped": [asdict(s) for s in skips],
    }
    text = json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def format_number(value: Any) -> str:
    """Print a table cell: four significant digits for fractions, everything else as it is."""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"
    return str(value)


def _identity(result: Result) -> tuple[Any, ...]:
    """What must be equal for one result to stand for another: quick settings must not wipe out hours of full ones."""
    settings = json.dumps(_plain(result.settings), sort_keys=True)
    model, made = (
        result.model.get("fingerprint", ""),
        (result.made.get("precision"), result.made.get("device")),
    )
    return result.protocol, result.version, settings, model, made, tuple(sorted(result.data.items()))


def _caption(settings: Mapping[str, Any]) -> str:
    told = ("resolution", "layer", "norm", "features")
    return ", ".join(f"{name} {settings[name]}" for name in told if name in settings)


def _plain(value: Any) -> Any:
    """Turn NumPy scalars, paths and non-finite floats into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
