"""What the package has passes the suites that `glocal check` runs on a person's own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image

import glocal.data
import glocal.models
from glocal.conformance import backbones, operations, protocols, recipes, sources
from glocal.data import (
    NAMED_SETS,
    CifarSource,
    FileSource,
    ImageSource,
    ParquetSource,
    Subset,
    open_source,
    splits_of,
)
from glocal.data.changed import ChangedSource
from glocal.data.listing import ListSource
from glocal.evaluation.base import PROTOCOLS, protocol_class
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.timm_backbone import TimmBackbone
from glocal.models.vit import VisionTransformer
from glocal.recipes import RECIPES
from glocal.views.photometric.union import OPERATIONS

NEEDED: dict[str, dict[str, Any]] = {"some_of": {"pool": [{"op": "invert"}, {"op": "grayscale"}], "count": 1}}
"""Settings without which an operation can't be made."""
Check = Callable[[Any], None]


@pytest.mark.parametrize("check", operations.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_every_promise(name: str, check: Check) -> None:
    check(OPERATIONS[name](**NEEDED.get(name, {})))


def choices() -> list[dict[str, object]]:
    """Every choice of a backbone's settings (each word that a setting allows, each switch on and off) and every backbone
    beside ours and timm's, which has a test of its own.
    """
    named = [
        kind for kind in kinds_in(glocal.models, Backbone) if kind not in (VisionTransformer, TimmBackbone)
    ]
    found: list[dict[str, object]] = [{"own": f"{kind.__module__}:{kind.__name__}"} for kind in named]
    for name, kind in get_type_hints(BackboneConfig).items():
        if name in BackboneConfig.model_fields and name != "size":
            words = get_args(kind) if get_origin(kind) is Literal else (True, False) if kind is bool else ()
            found += [{name: word} for word in words]
    return found


def kinds_in(room: ModuleType, base: type) -> list[type]:
    """Every subclass of a class that stands in a room, by name."""
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
    kinds: list[type] = []
    waiting = [base]
    while waiting:
        subclasses: list[type] = waiting.pop().__subclasses__()
        waiting += subclasses
        kinds += [kind for kind in subclasses if kind.__module__.startswith(f"{room.__name__}.")]
    return sorted(kinds, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("choice", choices(), ids=str)
def test_every_backbone_keeps_every_promise(choice: dict[str, object]) -> None:
    for check in backbones.CHECKS:
        check(BackboneConfig.model_validate(backbones.SMALL.model_dump() | choice))


@pytest.mark.parametrize("name", [name for name, named in NAMED_SETS.items() if not named.can_be_fetched])
def test_every_named_set_keeps_every_promise(name: str) -> None:
    for split in splits_of(name) or (None,):
        for check in sources.CHECKS:
            check(open_source(name, split))


def folder_of_pictures(root: Path) -> Path:
    for number in range(4):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 24), (60 * number, 9, 9)).save(path)
    return root


def list_of_pictures(root: Path) -> ImageSource:
    files = sorted(folder_of_pictures(root).rglob("*.png"))
    (root / "list.csv").write_text("".join(f"{file},{file.parent.name}\n" for file in files))
    return open_source(root / "list.csv")


def table_of_pictures(root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder_of_pictures(root).rglob("*.png"))
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(pa.table({"image": images}), root / "train.parquet")
    return root / "train.parquet"


def batch_of_records(root: Path) -> ImageSource:
    """Three of CIFAR-10's records: a label, then the planes."""
    records = np.random.default_rng(0).integers(0, 10, (3, 1 + 3 * 32 * 32), dtype=np.uint8)
    (root / "data_batch_1.bin").write_bytes(records.tobytes())
    return CifarSource("cifar10/train", [root / "data_batch_1.bin"], 1, [str(n) for n in range(10)])


SAMPLES: dict[type[ImageSource], Callable[[Path], ImageSource]] = {
    CifarSource: batch_of_records,
    FileSource: lambda root: open_source(folder_of_pictures(root)),
    ListSource: list_of_pictures,
    ParquetSource: lambda root: open_source(table_of_pictures(root)),
    Subset: lambda root: open_source(folder_of_pictures(root)).subset([2, 0]),
}
"""Small ones of the kinds that read somebody's files."""


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_every_kind_of_file_keeps_every_promise(kind: type[ImageSource], tmp_path: Path) -> None:
    source = SAMPLES[kind](tmp_path)
    assert isinstance(source, kind)
    for check in sources.CHECKS:
        check(source)


def test_no_kind_of_source_is_forgotten() -> None:
    """Every class in the room of data is one of the above; views of another source have tests of their own."""
    named = {
        type(open_source(f"{name}:all")) for name, known in NAMED_SETS.items() if not known.can_be_fetched
    }
    assert set(kinds_in(glocal.data, ImageSource)) == named | set(SAMPLES) | {ChangedSource}


@pytest.mark.parametrize("name", [n for n in PROTOCOLS if protocol_class(n).only_by_name is None])
def test_every_protocol_keeps_every_promise(name: str) -> None:
    for check in protocols.CHECKS:
        check(protocols.ProtocolSubject(protocol_class(name)))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_keeps_every_promise(name: str) -> None:
    for check in recipes.CHECKS:
        check(name)
