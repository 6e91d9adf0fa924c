"""What the package has passes the suites that `glocal check` runs on a person's own."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glocal.conformance import backbones, operations, protocols, recipes, sources
from glocal.data import ImageSource, open_source
from glocal.evaluation.base import PROTOCOLS, protocol_class
from glocal.models.backbone import BackboneConfig
from glocal.recipes import RECIPES
from glocal.views.photometric import Operation

OPERATIONS = {kind.__name__: kind for kind in typing.get_args(typing.get_args(Operation)[0])}
NEEDED: dict[str, dict[str, Any]] = {"SomeOf": {"pool": [{"op": "invert"}, {"op": "grayscale"}], "count": 1}}
"""Settings without which an operation can't be made."""
BACKBONES: dict[str, dict[str, Any]] = {
    "table": {},
    "rope": {"position": "rope"},
    "registers": {"registers": 2},
    "mean": {"pooling": "mean"},
    "class-attention": {"pooling": "class_attention"},
    "swiglu": {"ffn": "swiglu"},
}
Check = Callable[[Any], None]


@pytest.mark.parametrize("check", operations.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_every_promise(name: str, check: Check) -> None:
    check(OPERATIONS[name](**NEEDED.get(name, {})))


@pytest.mark.parametrize("check", backbones.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_keeps_every_promise(name: str, check: Check) -> None:
    check(BackboneConfig(**{**backbones.SMALL.model_dump(), **BACKBONES[name]}))


@pytest.fixture
def folder(tmp_path: Path) -> ImageSource:
    for number in range(6):
        place = tmp_path / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
    return open_source(tmp_path)


@pytest.mark.parametrize("check", sources.CHECKS, ids=lambda c: c.__name__)
def test_a_folder_keeps_every_promise(folder: ImageSource, check: Check) -> None:
    check(folder)


@pytest.mark.parametrize("check", sources.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", ["digits", "photos-tiles"])
def test_every_bundled_source_keeps_every_promise(name: str, check: Check) -> None:
    check(open_source(name))


@pytest.mark.parametrize("name", [n for n in PROTOCOLS if protocol_class(n).only_by_name is None])
def test_every_protocol_keeps_every_promise(name: str) -> None:
    for check in protocols.CHECKS:
        check(protocols.ProtocolSubject(protocol_class(name)))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_keeps_every_promise(name: str) -> None:
    for check in recipes.CHECKS:
        check(name)
