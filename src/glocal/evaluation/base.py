"""What every protocol shares: its settings, what it may use, the result it gives and the file results are kept in.

A protocol is one file of this room with one `ProtocolConfig` subclass. The same object serves the command, a script and
the training loop. Nothing here knows how any protocol works.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from glocal.config import Config, apply_overrides
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError, nearest_name

if TYPE_CHECKING:
    from rich.table import Table

    from glocal.models.encoder import Encoder

FORMAT = 1
"""Layout version of results.json."""

SPLITS = ("train", "val", "test", "all")
"""Splits that a path is asked for."""

DataLike = str | Path | Mapping[str, ImageSource]
"""Where a protocol's images are: a path that it opens itself, or open sources by split name (`train`, `test`, ...)."""


@dataclass(frozen=True)
class Work:
    """How an evaluation is carried out. Changes speed and memory, never a number."""

    cache: Path | None = None
    """Folder for extracted features; null keeps none. Entries are keyed by model, data and settings."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    batch_size: int = 64
    """Images handed from one step of a pipeline to the next. Arithmetic is cut the same way whatever it is."""
    progress: bool = True
    """Show images/s and time left."""
    share: bool = False
    """Divide extraction among the processes of this run; all of them must then take part."""


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

    def to_json(self) -> dict[str, Any]:
        """Plain data for results.json. Numbers that are not finite become null, since JSON has no name for them."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        """Read what `to_json` wrote; null numbers come back as NaN."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        known["numbers"] = {k: math.nan if v is None else float(v) for k, v in known["numbers"].items()}
        return cls(**known)

    def table(self) -> Table:
        """A rich table of the numbers, with the settings that must be told with them in the caption."""
        from rich.table import Table

        title = f"{self.protocol} v{self.version}: {self.model.get('name', '?')} on {', '.join(self.data) or '?'}"
        caption = "\n".join([_caption(self.settings), *self.notes])
        width = min(110, max(map(len, [title, *caption.splitlines()])))
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", min_width=width)
        table.add_column("measure")
        table.add_column("value", justify="right")
        for name, value in self.numbers.items():
            table.add_row(name, format_number(value))
        return table

    def rows_table(self) -> Table | None:
        """A rich table of the detail rows, or None without any."""
        from rich.table import Table

        if not self.rows:
            return None
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        table = Table(*names, title=f"{self.protocol}: details", title_justify="left")
        for row in self.rows:
            table.add_row(*(format_number(row.get(name, "")) for name in names))
        return table


class ProtocolConfig(Config, ABC):
    """Settings of one protocol, and the protocol itself. Settings are overridden as `key=value`."""

    protocol: ClassVar[str]
    """Name on the command line and in results.json."""
    version: ClassVar[int] = 1
    """Raised whenever the same settings would give another number."""

    @abstractmethod
    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Measure. Raises DataError or ModelError when data or model lack what the protocol needs."""

    def result(
        self,
        encoder: Encoder,
        sources: Mapping[str, ImageSource],
        numbers: Mapping[str, float],
        *,
        rows: Sequence[Mapping[str, Any]] = (),
        notes: Sequence[str] = (),
        **resolved: Any,
    ) -> Result:
        """Put a `Result` together: these settings (overlaid by `resolved`: resolution, layer, norm) and fingerprints.

        `sources` maps a role (`train`, `test`, `queries`) to the images that played it.
        """
        return Result(
            protocol=self.protocol,
            version=self.version,
            settings={**self.model_dump(mode="json"), **resolved},
            numbers={name: float(value) for name, value in numbers.items()},
            rows=[dict(row) for row in rows],
            notes=list(notes),
            model={"name": encoder.name, "fingerprint": encoder.fingerprint()},
            data={f"{role}: {source.name}": source.fingerprint() for role, source in sources.items()},
        )


class _Protocols(Mapping[str, type[ProtocolConfig]]):
    """Protocol name to config class. A class is imported when asked for: scikit-learn and friends cost seconds."""

    _modules: ClassVar[dict[str, str]] = {
        "knn": "knn",
        "linear": "linear",
        "logistic": "logistic",
        "finetune": "finetune",
        "statistics": "statistics",
        "copy_detection": "copy_detection",
        "retrieval": "retrieval",
        "correspondence": "correspondence",
        "spair": "spair",
        "linear-seg": "segmentation_linear",
        "linear-seg-100": "segmentation_linear",
        "knn-seg": "segmentation_knn",
        "hummingbird": "hummingbird",
        "overclustering": "clustering",
        "discovery": "discovery",
        "davis": "davis",
    }

    def __getitem__(self, name: str) -> type[ProtocolConfig]:
        if name not in self._modules:
            names = ", ".join(self._modules)
            raise ConfigError(f"There is no protocol '{name}'.{nearest_name(name, self._modules)} Allowed: {names}.")
        module = importlib.import_module(f"glocal.evaluation.{self._modules[name]}")
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, ProtocolConfig) and getattr(item, "protocol", None) == name:
                return item
        raise LookupError(f"{module.__name__} holds no ProtocolConfig whose protocol is '{name}'.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules


PROTOCOLS: Mapping[str, type[ProtocolConfig]] = _Protocols()
"""Every protocol by name; iterating gives names without importing anything."""


def evaluate(
    protocol: str | ProtocolConfig,
    encoder: Encoder,
    data: DataLike,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    work: Work | None = None,
) -> Result:
    """Run one protocol, by name or configured, and merge its result into `out/results.json`.

    Args:
        protocol: a name in `PROTOCOLS`, or settings.
        encoder: a frozen model, from `glocal.load`.
        data: a path, or open sources by split name.
        overrides: `key=value` settings, read as in recipes.
        out: folder for results.json; null writes nothing.
        work: speed settings; null: features cached under `out/features`, no extra processes.

    Raises:
        ConfigError: for an unknown protocol or setting.
        DataError, ModelError: when data or model lack what the protocol needs.
    """
    config = PROTOCOLS[protocol]() if isinstance(protocol, str) else protocol
    config = apply_overrides(config, overrides)
    result = config.run(encoder, data, work or Work(cache=out / "features" if out is not None else None))
    if out is not None:
        write_result(out / "results.json", result)
    return result


def open_split(data: DataLike, *names: str) -> ImageSource:
    """Open the first of these splits that the data has (`open_split(data, "test", "val")`); it must hold images.

    Names that are no split (`queries`) are looked for among open sources only; `all` opens what has no splits.

    Raises:
        DataError: when there is none of them, or it is empty.
    """
    if isinstance(data, Mapping):
        found = next((data[name] for name in names if name in data), None)
        if found is None:
            raise DataError(f"Needed one of the splits {', '.join(names)}; got {', '.join(data) or 'none'}.")
    else:
        found = _open_first(data, names)
    if len(found) == 0:
        raise DataError(f"{found.name} holds no images. Check the path, or choose another split.")
    return found


def _open_first(data: str | Path, names: Sequence[str]) -> ImageSource:
    failures: list[str] = []
    for name in [name for name in names if name in SPLITS]:
        try:
            return open_source(data, name)
        except DataError as error:
            failures.append(f"{name}: {error}")
    raise DataError(f"'{data}' has none of the splits {', '.join(names)}.\n" + "\n".join(failures))


def write_result(path: Path, result: Result) -> None:
    """Merge a result into results.json, atomically. An older one of the same protocol, model and data is replaced."""
    kept = [r for r in read_results(path) if _identity(r) != _identity(result)] if path.exists() else []
    plain = {"format": FORMAT, "results": [r.to_json() for r in [*kept, result]]}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(plain, file, indent=2, allow_nan=False, ensure_ascii=False)
            file.write("\n")
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_results(path: Path) -> list[Result]:
    """Read results.json.

    Raises:
        DataError: when it is absent, no JSON, or of a layout this version doesn't know.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Can't read {path}: {error}. Run `glocal evaluate` with out={path.parent} first.") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        seen = plain.get("format") if isinstance(plain, dict) else type(plain).__name__
        raise DataError(f"{path} has layout {seen!r}; this version reads {FORMAT}. Move it away and evaluate again.")
    return [Result.from_json(entry) for entry in plain["results"]]


def format_number(value: Any) -> str:
    """Print a table cell: four significant digits for fractions, everything else as it is."""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"
    return str(value)


def _identity(result: Result) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    return result.protocol, result.model.get("fingerprint", ""), tuple(sorted(result.data.items()))


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
