"""What is known before a run: the images, the machine, and how long the run was asked to be. Reads up to 16 images."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from PIL import Image

from glocal.config import Config, apply_settings
from glocal.data import ImageSource
from glocal.data.readable import first_readable
from glocal.models.device import choose_device
from glocal.training.config import SpeedConfig, TrainingConfig

LengthUnit = Literal["steps", "images", "flops", "minutes", "epochs"]
LOOKED_AT = 16
_ENDLESS = sys.float_info.max  # settings are finite numbers


class Length(NamedTuple):
    """How long a run was asked to be, in the unit that was given."""

    unit: LengthUnit
    value: float


@dataclass(frozen=True)
class Known:
    """A situation that `auto` settles. `side` is the median of the shorter sides in pixels; no `length`: none was asked."""

    images: int
    side: int
    grey: bool = False
    gpus: int = 0
    cores: int = 2
    length: Length | None = None


def look(
    source: ImageSource, *layers: Mapping[str, Any], overrides: Sequence[str] = (), at_most: int = LOOKED_AT
) -> Known:
    """Look at some images and at the machine, and at what the settings say of length and device.

    Raises:
        ConfigError: for lengths that contradict each other, or a device that isn't here.
        DataError: when images can't be read.
    """
    asked = _asked(layers, overrides)
    places = range(0, len(source), max(1, len(source) // at_most))
    images = [first_readable(source, place, source.read)[1] for place in places]
    sides = sorted(min(image.size) for image in images)
    on_gpu = choose_device(asked.speed.device, "speed.device").type == "cuda"
    return Known(
        images=len(source),
        side=sides[len(sides) // 2],
        grey=all(_is_grey(image) for image in images),
        gpus=int(os.environ.get("WORLD_SIZE", asked.speed.devices)) if on_gpu else 0,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        length=_length(asked.training),
    )


class _Asked(Config):
    """The parts of a run's settings that say how long and where; a length in epochs that nobody gave is endless."""

    training: TrainingConfig = TrainingConfig(epochs=_ENDLESS)
    speed: SpeedConfig = SpeedConfig()


def _asked(layers: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> _Asked:
    parts = tuple(_Asked.model_fields)
    chosen = [{room: layer[room] for room in parts if room in layer} for layer in layers]
    named = [word for word in overrides if word.partition("=")[0].split(".")[0] in parts]
    return apply_settings(_Asked(), *chosen, overrides=named)


def _length(training: TrainingConfig) -> Length | None:
    given = {unit: getattr(training, unit) for unit in get_args(LengthUnit)}
    return next((Length(u, float(v)) for u, v in given.items() if v is not None and v < _ENDLESS), None)


def _is_grey(image: Image.Image) -> bool:
    """Whether a picture has no colour: its three channels are the same."""
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()
