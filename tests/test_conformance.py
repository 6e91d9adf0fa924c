"""What the package has passes the suites that `glocal check` runs on a person's own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from PIL import Image

import glocal.data
from glocal.conformance import backbones, operations, protocols, recipes, sources
from glocal.data import ImageSource, open_source
from glocal.data.changed import ChangedSource
from glocal.data.cifar import CifarSource
from glocal.evaluation.base import PROTOCOLS, protocol_class
from glocal.models.backbone import BackboneConfig
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
    """Every choice of a backbone's settings: each word that a setting allows, each switch on and off."""
    found: list[dict[str, object]] = []
    for name, kind in get_type_hints(BackboneConfig).items():
        if name in BackboneConfig.model_fields and name != "size":
            words = get_args(kind) if get_origin(kind) is Literal else (True, False) if kind is bool else ()
            found += [{name: word} for word in words]
    return found


@pytest.mark.parametrize("choice", choices(), ids=str)
def test_every_backbone_keeps_every_promise(choice: dict[str, object]) -> None:
    for check in backbones.CHECKS:
        check(BackboneConfig.model_validate(backbones.SMALL.model_dump() | choice))


def source_classes() -> list[type[ImageSource]]:
    """Every kind of source in the room of data; views of another source (`ChangedSource`) have tests of their own."""
    for module in pkgutil.iter_modules(glocal.data.__path__):
        importlib.import_module(f"glocal.data.{module.name}")
    kinds, waiting = [], [ImageSource]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("glocal.data.") and kind not in (ImageSource, ChangedSource):
            kinds.append(kind)
    return sorted(set(kinds), key=lambda kind: kind.__name__)


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


SAMPLES: dict[str, Callable[[Path], ImageSource]] = {
    "ArraySource": lambda root: open_source("digits:all"),
    "CifarSource": batch_of_records,
    "FileSource": lambda root: open_source(folder_of_pictures(root)),
    "ListSource": list_of_pictures,
    "ParquetSource": lambda root: open_source(table_of_pictures(root)),
    "PhotoSource": lambda root: open_source("photos"),
    "Subset": lambda root: open_source(folder_of_pictures(root)).subset([2, 0]),
    "TileSource": lambda root: open_source("photos-tiles"),
}


@pytest.mark.parametrize("kind", source_classes(), ids=lambda kind: kind.__name__)
def test_every_source_keeps_every_promise(kind: type[ImageSource], tmp_path: Path) -> None:
    assert kind.__name__ in SAMPLES, f"Say in SAMPLES how a small {kind.__name__} is made."
    source = SAMPLES[kind.__name__](tmp_path)
    assert isinstance(source, kind)
    for check in sources.CHECKS:
        check(source)


@pytest.mark.parametrize("name", [n for n in PROTOCOLS if protocol_class(n).only_by_name is None])
def test_every_protocol_keeps_every_promise(name: str) -> None:
    for check in protocols.CHECKS:
        check(protocols.ProtocolSubject(protocol_class(name)))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_keeps_every_promise(name: str) -> None:
    for check in recipes.CHECKS:
        check(name)
