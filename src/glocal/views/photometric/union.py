"""`Operation`: any photometric operation, told apart by its `op` name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from glocal.config import OwnKinds
from glocal.views.photometric.blur import GaussianBlur, Sharpness
from glocal.views.photometric.colour import ColorJitter, Grayscale
from glocal.views.photometric.composite import RandAugment, SomeOf
from glocal.views.photometric.erasing import RandomErasing
from glocal.views.photometric.histogram import AutoContrast, Equalise
from glocal.views.photometric.operation import OperationBase
from glocal.views.photometric.tone import Invert, Posterise, Solarise, SolariseAdd
from glocal.views.photometric.warping import Rotate, ShearX, ShearY, TranslateX, TranslateY

Operation = Annotated[
    ColorJitter
    | Grayscale
    | GaussianBlur
    | Solarise
    | Posterise
    | Sharpness
    | AutoContrast
    | Equalise
    | Invert
    | SolariseAdd
    | Rotate
    | ShearX
    | ShearY
    | TranslateX
    | TranslateY
    | RandAugment
    | RandomErasing
    | SomeOf,
    Field(discriminator="op"),
    OwnKinds(OperationBase, "op", needs=("transform",)),
]
"""One step of a pipeline, as YAML `{op: grayscale, probability: 0.2}` or `{op: my_operations.py:Fog}`, or as an object."""
