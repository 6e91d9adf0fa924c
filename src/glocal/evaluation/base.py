"""What every protocol shares: its settings, what it may use, and how it is run by name.

A protocol is one file of this room with one `ProtocolConfig` subclass. The same object serves the command, a script and
the training loop. Nothing here knows how any protocol works.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from glocal.config import Config, apply_overrides
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError, nearest_name
from glocal.evaluation.results import Result, write_result
from glocal.extraction.work import Work

if TYPE_CHECKING:
    from typing_extensions import Self

    from glocal.models.encoder import Encoder

SPLITS = ("train", "val", "test", "all")
"""Splits that a path is asked for."""

DataLike = str | Path | Mapping[str, ImageSource]
"""Where a protocol's images are: a path that it opens itself, or open sources by split name (`train`, `test`, ...)."""


class ProtocolConfig(Config, ABC):
    """Settings of one protocol, and the protocol itself. Settings are overridden as `key=value`."""

    protocol: ClassVar[str]
    """Name on the command line and in results.json."""
    version: ClassVar[int] = 1
    """Raised whenever the same settings would give another number."""
    only_by_name: ClassVar[str | None] = None
    """Why `evaluate all` leaves this protocol out; null: it doesn't."""

    @classmethod
    def quick(cls, encoder: Encoder) -> Self:
        """Settings for minutes on a CPU, for `evaluate all` and the training loop; the defaults where those are quick.

        Numbers at quick settings compare with each other only; a result's settings tell which they were.
        """
        return cls()

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
        "knn": "classification.knn",
        "linear": "classification.linear",
        "logistic": "classification.logistic",
        "finetune": "classification.finetune",
        "statistics": "statistics",
        "copy_detection": "retrieval.copy_detection",
        "retrieval": "retrieval.image_retrieval",
        "correspondence": "correspondence",
        "spair": "spair",
        "linear-seg": "segmentation.linear_segmentation",
        "linear-seg-100": "segmentation.linear_segmentation",
        "knn-seg": "segmentation.knn_segmentation",
        "hummingbird": "segmentation.hummingbird",
        "overclustering": "segmentation.clustering",
        "discovery": "objects.discovery",
        "davis": "objects.davis",
    }

    def __getitem__(self, name: str) -> type[ProtocolConfig]:
        if name not in self._modules:
            names = ", ".join(self._modules)
            raise ConfigError(
                f"There is no protocol '{name}'.{nearest_name(name, self._modules)} Allowed: {names}."
            )
        module = importlib.import_module(f"glocal.evaluation.{self._modules[name]}")
        for item in vars(module).values():
            if (
                isinstance(item, type)
                and issubclass(item, ProtocolConfig)
                and getattr(item, "protocol", None) == name
            ):
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
        write_result(out / "results.json", result, given=name_of(data))
    return result


def name_of(data: DataLike) -> str:
    """What a caller gave, in words: the path, or the open sources by split."""
    if not isinstance(data, Mapping):
        return str(data)
    return ", ".join(f"{split}: {source.name}" for split, source in data.items())


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
