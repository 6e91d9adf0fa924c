"""`Operation`: any photometric operation, told apart by its `op` name. A new one is imported here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glocal.config import imported_kinds, open_union
from glocal.views.photometric.blur import GaussianBlur as GaussianBlur
from glocal.views.photometric.blur import Sharpness as Sharpness
from glocal.views.photometric.colour import ColorJitter as ColorJitter
from glocal.views.photometric.colour import Grayscale as Grayscale
from glocal.views.photometric.composite import RandAugment as RandAugment
from glocal.views.photometric.composite import SomeOf as SomeOf
from glocal.views.photometric.erasing import RandomErasing as RandomErasing
from glocal.views.photometric.histogram import AutoContrast as AutoContrast
from glocal.views.photometric.histogram import Equalise as Equalise
from glocal.views.photometric.operation import OperationBase
from glocal.views.photometric.tone import Invert as Invert
from glocal.views.photometric.tone import Posterise as Posterise
from glocal.views.photometric.tone import Solarise as Solarise
from glocal.views.photometric.tone import SolariseAdd as SolariseAdd
from glocal.views.photometric.warping import Rotate as Rotate
from glocal.views.photometric.warping import ShearX as ShearX
from glocal.views.photometric.warping import ShearY as ShearY
from glocal.views.photometric.warping import TranslateX as TranslateX
from glocal.views.photometric.warping import TranslateY as TranslateY

OPERATIONS = imported_kinds(globals(), OperationBase, "op")
"""The operations by their `op`."""

if TYPE_CHECKING:
    Operation = OperationBase
else:
    # One step of a pipeline, as YAML `{op: grayscale, probability: 0.2}` or `{op: my_operations.py:Fog}`, or as an object.
    Operation = open_union(OPERATIONS, OperationBase, "op", needs=("transform",))
