"""Every protocol that the data allows, one after another; what can't be run is named with its reason."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from glocal.config import apply_overrides
from glocal.distributed import gather_objects, rank
from glocal.errors import ConfigError, GlocalError, nearest_name
from glocal.evaluation.base import (
    PROTOCOLS,
    Beside,
    DataLike,
    ProtocolConfig,
    evaluate,
    name_of,
    protocol_class,
)
from glocal.evaluation.results import Result, Skip, write_skip
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder

logger = logging.getLogger("glocal.evaluation")


def evaluate_all(
    encoder: Encoder,
    data: DataLike,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    work: Work | None = None,
    quick: bool = True,
    beside: Beside | None = None,
) -> Iterator[Result | Skip]:
    """Run every protocol, yielding what it measured or why it could not; one that breaks is a named failure.

    All share one cache of features: the model sees each image once for each resolution and layer asked for.

    Args:
        encoder: a frozen model, from `glocal.load`.
        data: a path, or open sources by split name.
        overrides: settings with the protocol's name before them (`knn.ks=[20]`).
        out: folder for results.json, which names skipped protocols too; null writes nothing.
        work: speed settings; without a cache in it a temporary one is used.
        quick: settings for minutes on a CPU (`ProtocolConfig.quick`) instead of the published ones.
        beside: adds what the model must beat (`beside.measure_beside`); null: nothing.

    Raises:
        ConfigError: for an override of no protocol or setting, before anything is run.

    >>> for found in evaluate_all(glocal.load("runs/a"), "camvid/"): print(found)  # doctest: +SKIP
    """
    configured = _configure(encoder, overrides, quick)
    model = {"name": encoder.name, "fingerprint": encoder.fingerprint()}
    with tempfile.TemporaryDirectory(prefix="glocal-features-") as temporary:
        work = work or Work()
        first = gather_objects(temporary)[0] if work.together else temporary
        work = work if work.cache is not None else replace(work, cache=Path(first))
        for name, config in configured.items():
            reason, failed = config.only_by_name, False
            if reason is None:
                try:
                    yield evaluate(config, encoder, data, out=out, work=work, beside=beside)
                    continue
                except GlocalError as error:
                    reason = str(error)
                except Exception as error:
                    # Hours of other protocols must not be lost to a defect in one.
                    logger.exception("%s failed", name)
                    reason, failed = f"it failed, {type(error).__name__}: {error}", True
            skip = Skip(name, reason, model, name_of(data), failed)
            if out is not None and (rank() == 0 or not work.together):
                write_skip(out / "results.json", skip)
            yield skip
        if work.together:
            gather_objects(None)  # nobody reads the folder any more


def _configure(encoder: Encoder, overrides: Sequence[str], quick: bool) -> dict[str, ProtocolConfig]:
    """Settings of every protocol; an override goes to the protocol named before its first dot."""
    groups: dict[str, list[str]] = {name: [] for name in PROTOCOLS}
    for override in overrides:
        name, dot, rest = override.partition(".")
        if not dot or name not in groups:
            hint = nearest_name(name, groups)
            raise ConfigError(
                f"'{override}' names no protocol.{hint} With `all` write PROTOCOL.key=value, for example knn.ks=[20]."
            )
        groups[name].append(rest)
    kinds = {name: protocol_class(name) for name in groups}
    return {
        name: apply_overrides(kind.quick(encoder) if quick else kind(), groups[name])
        for name, kind in kinds.items()
    }
