"""One protocol from Python in one line: a model by its path, settings by keyword."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glocal.evaluation.base import DataLike, protocol_class
from glocal.evaluation.base import evaluate as run_protocol
from glocal.evaluation.beside import measure_beside
from glocal.evaluation.results import Result
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.loading import load
from glocal.models.precision import AskedPrecision, settle_precision


def evaluate(
    protocol: str,
    model: str | Path | Encoder,
    data: DataLike,
    *,
    out: str | Path | None = None,
    quick: bool = False,
    precision: AskedPrecision | None = None,
    workers: int = 0,
    baselines: bool = True,
    **settings: Any,
) -> Result:
    """Measure a model by one protocol.

    Args:
        protocol: its name, as in `glocal evaluate PROTOCOL`.
        model: a run, as `glocal.pretrain` returns it, anything else that `glocal.load` reads, or a loaded encoder.
        data: anything that `data=` takes, or open sources by split.
        out: folder for results.json and kept features; null keeps nothing.
        quick: settings for minutes on a CPU.
        precision: of the model's forward pass; null: the encoder's own, float32 for a path; auto: bfloat16 where the
            processor has the instructions.
        workers: processes that decode.
        baselines: tell what raw pixels and random weights reach, where that is cheap.
        settings: the protocol's, nested ones with two underscores: `ks=[20]`, `transform__size=224`.

    Raises:
        ConfigError: for an unknown protocol or setting.
        DataError, ModelError: when data or model lack what the protocol needs.

    >>> evaluate("knn", "runs/a", "cifar10", ks=[20]).numbers["k20_top1"]  # doctest: +SKIP
    61.2
    """
    kind = protocol_class(protocol)
    encoder = model if isinstance(model, Encoder) else load(str(model))
    if precision is not None:
        encoder.precision = settle_precision(precision, encoder.device)
    overrides = [f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in settings.items()]
    folder = None if out is None else Path(out)
    work = Work(cache=None if folder is None else folder / "features", workers=workers)
    config = kind.quick(encoder) if quick else kind()
    beside = measure_beside if baselines else None
    return run_protocol(config, encoder, data, overrides=overrides, out=folder, work=work, beside=beside)
