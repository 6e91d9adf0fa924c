"""The page "One image's way" lists what one image passes, in order: compared with a trace of a small batch."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import pytest
import torch
from PIL import Image

import glocal
from glocal.data import open_source
from glocal.recipes import configure
from glocal.schedules import Progress
from glocal.training.network import StepInput, build_distillation
from glocal.views.augment import augment
from glocal.views.loader import make_loader

PAGE = Path(__file__).parents[1] / "docs" / "one-images-way.md"
ROOT = Path(glocal.__file__).parent


@contextmanager
def traced() -> Iterator[list[str]]:
    """Fill a list with the functions of glocal as they are first called, as `room.module:Class.function`."""
    names: list[str] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(ROOT)) and _listed(frame):
            module = ".".join(Path(file).relative_to(ROOT).with_suffix("").parts)
            names.append(f"{module}:{qualified_name(frame.f_code)}")

    sys.setprofile(look)
    try:
        yield names
    finally:
        sys.setprofile(None)
        names[:] = dict.fromkeys(names)


def qualified_name(code: CodeType) -> str:
    """With the class; of 3.10, which does not know it, without."""
    return str(getattr(code, "co_qualname", code.co_name))


def _listed(frame: FrameType) -> bool:
    """Public functions and methods; no properties, no magic methods, nothing defined within a function."""
    name = qualified_name(frame.f_code)
    if any(part.startswith(("_", "<")) for part in name.split(".")):
        return False
    if "." not in name:
        return True
    owner = sys.modules[frame.f_globals["__name__"]].__dict__.get(name.split(".")[0])
    member = inspect.getattr_static(owner, name.split(".")[1], None)
    return not isinstance(member, property | functools.cached_property)


def _photographs(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("photographs")
    _photographs(folder)
    config = configure("local-global", data=str(folder), out="unused", preset="small")
    network = build_distillation(config)
    batches = iter(
        make_loader(open_source(folder), config.views, batch_size=4, seed=0, workers=0, total_steps=1)
    )
    with traced() as names:
        views = next(batches).views.to(torch.device("cpu"))
        seen = augment(views, config.views, config.backbone.patch_size)
        network(StepInput(seen, Progress(1, 10, 5), watch=False))
    return names


def test_the_page_lists_the_functions_in_the_order_of_the_way(way: list[str]) -> None:
    listed = re.findall(r"^\d+\. `([\w.]+:[\w.]+)`", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = "\n".join(way)
    assert listed == way, f"{PAGE.name} must list, in this order:\n{wanted}"


def test_the_page_counts_them(way: list[str]) -> None:
    files = {name.split(":")[0] for name in way}
    assert f"{len(way)} public functions in {len(files)} files" in PAGE.read_text(encoding="utf-8")
