"""What every protocol of evaluation must do."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glocal.config import from_yaml, to_yaml
from glocal.conformance.suite import require
from glocal.data import ImageSource, open_role
from glocal.errors import DataError, ModelError
from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.results import Result
from glocal.extraction.work import Work
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.vit import VisionTransformer


@dataclass(frozen=True)
class ProtocolSubject:
    """A protocol, and data that it is tried on: null for 96 images of `digits` and 48 to measure on."""

    kind: type[ProtocolConfig]
    data: str | Path | None = None


def settings_come_back(subject: ProtocolSubject) -> None:
    """It has a name, and its settings are the same after being written and read."""
    require(bool(subject.kind.protocol), "`protocol`, its name in results.json, is empty")
    settings = subject.kind()
    require(
        from_yaml(subject.kind, to_yaml(settings)) == settings,
        "its settings differ after being written and read",
    )


def has_quick_settings(subject: ProtocolSubject) -> None:
    """`quick` gives settings of its own kind."""
    quick = subject.kind.quick(_encoder())
    require(isinstance(quick, subject.kind), f"quick gave {type(quick).__name__}")


def measures_the_same_twice(subject: ProtocolSubject) -> None:
    """It gives finite numbers, the same twice, and says what it measured on; or refuses data or model in words."""
    try:
        first, second = _measure(subject), _measure(subject)
    except (DataError, ModelError) as refusal:
        require(len(str(refusal)) > 0, "it refuses without a word")
        return
    wrong = [name for name, value in first.numbers.items() if math.isinf(value)]
    require(
        bool(first.numbers) and not wrong,
        f"numbers that are none: {', '.join(wrong) or 'there are no numbers'}",
    )
    same = {
        n: (a, second.numbers.get(n))
        for n, a in first.numbers.items()
        if not (a == second.numbers.get(n) or math.isnan(a))
    }
    require(not same, f"measured twice: {same}")
    require(
        bool(first.data) and bool(first.model),
        "the result names no data or no model; make it with self.result(...)",
    )


def leaves_the_model_alone(subject: ProtocolSubject) -> None:
    """The model has the same weights and the same mode afterwards."""
    encoder = _encoder()
    before, training = encoder.fingerprint(), encoder.backbone.training
    with contextlib.suppress(DataError, ModelError):
        _measure(subject, encoder)
    require(encoder.fingerprint() == before, "it changed the model's weights")
    require(encoder.backbone.training == training, "it left the model in another mode")


CHECKS: Sequence[Callable[[ProtocolSubject], None]] = (
    settings_come_back,
    has_quick_settings,
    measures_the_same_twice,
    leaves_the_model_alone,
)


def _measure(subject: ProtocolSubject, encoder: Encoder | None = None) -> Result:
    encoder = encoder or _encoder()
    data: DataLike = subject.data or _digits()
    return subject.kind.quick(encoder).run(encoder, data, Work(progress=False))


def _digits() -> dict[str, ImageSource]:
    return {
        role: open_role("digits", role).subset(range(count)) for role, count in (("train", 96), ("test", 48))
    }


def _encoder() -> Encoder:
    torch.manual_seed(0)
    config = BackboneConfig(size="micro", embed_dim=32, depth=4, num_heads=2, patch_size=8, image_size=32)
    return Encoder("small", VisionTransformer(config).eval().requires_grad_(False), 32, 8, 32)
