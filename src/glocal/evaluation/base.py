"""What every protocol shares: its settings, what it may use, and how it is run by name.

A protocol is one file of this room with one `ProtocolConfig` subclass. The same object serves the command, a script and
the training loop. Nothing here knows how any protocol works.
"""

from __future__ import annotations

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from numpy.typing import NDArray

from glocal import __version__
from glocal.config import Config, apply_overrides
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.data.splits import read_spec
from glocal.distributed import rank
from glocal.errors import ConfigError, DataError, nearest_name
from glocal.evaluation.intervals import Samples, intervals
from glocal.evaluation.results import Result, write_result
from glocal.extraction.feature_stream import precision_error
from glocal.extraction.work import Work
from glocal.own_code import is_own, load_class

if TYPE_CHECKING:
    from typing_extensions import Self

    from glocal.models.encoder import Encoder

SPLITS = ("train", "val", "test", "all")
"""Splits that a path is asked for."""

DataLike = str | Path | Mapping[str, ImageSource]
"""Where a protocol's images are: a path that it opens itself, or open sources by split name (`train`, `test`, ...)."""


Beside = Callable[["ProtocolConfig", "Encoder", DataLike, Result, Work], None]
"""What is measured after a result and added to it: `beside.measure_beside`."""


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
        picked: Mapping[str, Any] | None = None,
        samples: Mapping[str, Samples] | None = None,
        predictions: Mapping[str, NDArray[Any]] | None = None,
        **resolved: Any,
    ) -> Result:
        """Put a `Result` together: these settings (overlaid by `resolved`: resolution, layer, norm) and fingerprints.

        `sources` maps a role (`train`, `test`, `queries`) to the images that played it. `picked` is what the protocol
        chose by itself; two models may rightly differ in it, whereas all settings decide whether figures compare.
        `samples` are what figures are made of, item by item: such a figure need not stand in `numbers`. `predictions` are
        the test images' places, true and predicted classes.
        """
        figures = {name: sample.figure() for name, sample in (samples or {}).items()}
        error = precision_error(encoder, next(iter(sources.values())))
        told = ", ".join(f"{name} {100 * share:.2g} %" for name, share in error.items())
        return Result(
            protocol=self.protocol,
            version=self.version,
            settings={**self.model_dump(mode="json"), **resolved},
            numbers={**figures, **{name: float(value) for name, value in numbers.items()}},
            rows=[dict(row) for row in rows],
            notes=[*notes, *([f"{encoder.precision}, from float32 (first images): {told}"] if told else [])],
            model={"name": encoder.name, "fingerprint": encoder.fingerprint()},
            data={f"{role}: {source.name}": source.fingerprint() for role, source in sources.items()},
            sources={
                role: {"name": source.name, "split": source.split, "images": len(source)}
                for role, source in sources.items()
            },
            picked=dict(picked or {}),
            made={"precision_error": error} if error else {},
            samples=dict(samples or {}),
            predictions=dict(predictions or {}),
        )


PROTOCOLS = {
    "knn": "classification.knn:KnnConfig",
    "linear": "classification.linear:LinearProbe",
    "logistic": "classification.logistic:LowShot",
    "finetune": "classification.finetune:FineTune",
    "statistics": "statistics:Statistics",
    "copy_detection": "retrieval.copy_detection:CopyDetection",
    "retrieval": "retrieval.image_retrieval:ImageRetrieval",
    "correspondence": "correspondence:Correspondence",
    "spair": "spair:KeypointTransfer",
    "linear-seg": "segmentation.linear_segmentation:LinearSegmentation",
    "linear-seg-100": "segmentation.linear_segmentation:LinearSegmentation100",
    "knn-seg": "segmentation.knn_segmentation:KnnSegmentation",
    "hummingbird": "segmentation.hummingbird:Hummingbird",
    "overclustering": "segmentation.clustering:OverClustering",
    "discovery": "objects.discovery:Discovery",
    "davis": "objects.davis:Davis",
}
"""Every protocol: its name, and the module of this room and the class that it is."""


def protocol_class(name: str) -> type[ProtocolConfig]:
    """Import a protocol by name, or one of one's own (`my_protocol.py:NAME`); scikit-learn and friends cost seconds.

    Raises:
        ConfigError: for a name that isn't in `PROTOCOLS`.
    """
    if is_own(name):
        plugin: type[ProtocolConfig] = load_class(name, ProtocolConfig, "protocol")  # type: ignore[type-abstract]
        if not isinstance(getattr(plugin, "protocol", None), str):
            raise ConfigError(
                f"protocol: {name} lacks protocol, its name in results.json: a class variable of text."
            )
        return plugin
    if name not in PROTOCOLS:
        names = ", ".join(PROTOCOLS)
        raise ConfigError(
            f"There is no protocol '{name}'.{nearest_name(name, PROTOCOLS)} Allowed: {names}, or file.py:NAME."
        )
    module, _, kind = PROTOCOLS[name].partition(":")
    builtin: type[ProtocolConfig] = getattr(importlib.import_module(f"glocal.evaluation.{module}"), kind)
    return builtin


def evaluate(
    protocol: str | ProtocolConfig,
    encoder: Encoder,
    data: DataLike,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    work: Work | None = None,
    beside: Beside | None = None,
) -> Result:
    """Run one protocol, by name or configured, and merge its result into `out/results.json`.

    Args:
        protocol: a name in `PROTOCOLS`, or settings.
        encoder: a frozen model, from `glocal.load`.
        data: a path, or open sources by split name.
        overrides: `key=value` settings, read as in recipes.
        out: folder for results.json; null writes nothing.
        work: speed settings; null: features cached under `out/features`, no extra processes.
        beside: adds what the model must beat (`beside.measure_beside`); null: nothing.

    Raises:
        ConfigError: for an unknown protocol or setting.
        DataError, ModelError: when data or model lack what the protocol needs.
    """
    config = protocol_class(protocol)() if isinstance(protocol, str) else protocol
    config = apply_overrides(config, overrides)
    started, moment = time.perf_counter(), datetime.now(timezone.utc)
    work = work or Work(cache=out / "features" if out is not None else None)
    result = config.run(encoder, data, work)
    result.made |= {
        "date": moment.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 2),
        "device": device_name(encoder.device),
        "precision": encoder.precision,
        "versions": {"glocal": __version__, "torch": torch.__version__},
    }
    result.intervals |= {name: [i.low, i.high] for name, i in intervals(result.samples).items()}
    if beside is not None:
        beside(config, encoder, data, result, work)
    if out is not None and (rank() == 0 or not work.together):
        write_result(out / "results.json", result, given=name_of(data))
    return result


def device_name(device: torch.device) -> str:
    """What computed: `cpu`, or the accelerator's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def name_of(data: DataLike) -> str:
    """What a caller gave, in words: the path, or the open sources by split."""
    if not isinstance(data, Mapping):
        return str(data)
    return ", ".join(f"{split}: {source.name}" for split, source in data.items())


def open_split(data: DataLike, *names: str) -> ImageSource:
    """Open the first of these splits that the data has (`open_split(data, "test", "val")`); it must hold images.

    Names that are no split (`queries`) are looked for among open sources only; `all` opens what has no splits. A path
    that names its split (`pacs:test`) is that split and no other. What was opened stands in the result.

    Raises:
        DataError: when there is none of them, or it is empty.
    """
    if isinstance(data, Mapping):
        role = next((name for name in names if name in data), None)
        if role is None:
            raise DataError(f"Needed one of the splits {', '.join(names)}; got {', '.join(data) or 'none'}.")
        source = data[role]
    else:
        source = _open_first(data, names)
    if len(source) == 0:
        raise DataError(f"{source.name} holds no images. Check the path, or choose another split.")
    return source


def _open_first(data: str | Path, names: Sequence[str]) -> ImageSource:
    named = read_spec(str(data)).split
    if named is not None and named not in names:
        raise DataError(
            f"data={data} names the split '{named}'; needed: {' or '.join(names)}. Leave the split out, or give "
            "train=PLACE:SPLIT and test=PLACE:SPLIT."
        )
    failures: list[str] = []
    for name in [name for name in names if name in SPLITS] if named is None else [named]:
        try:
            return open_source(data, name)
        except DataError as error:
            failures.append(f"{name}: {error}")
    raise DataError(f"'{data}' has none of the splits {', '.join(names)}.\n" + "\n".join(failures))
