"""What somebody reads to follow one image, and one method: functions, files, lines and types, of any state of the source.

    python -m benchmarks.reading                        # this source
    PYTHONPATH=OTHER/src python benchmarks/reading.py   # another one, such as a worktree of an older commit

The way of an image is traced: a batch of `local-global` (preset `small`) through loader, colours, both networks and both
terms; a function counts once, magic methods and what is defined within a function not at all. A method is its term's file
and what that imports of the objectives, the heads and the schedules, whole files; types are the classes defined there.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import glocal
from glocal.data import open_source
from glocal.recipes import configure
from glocal.training.network import StepInput, build_distillation
from glocal.views.augment import augment
from glocal.views.loader import make_loader

ROOT = Path(glocal.__file__).parent
READ_WITH_A_TERM = ("glocal.objectives.", "glocal.models.heads", "glocal.schedules")


class Called(NamedTuple):
    """A function or method that was called."""

    module: str
    """Below `glocal`, with dots."""
    name: str
    """With its class (of Python 3.10, which does not know it, without)."""
    public: bool
    """Neither private nor a property."""


def functions_called(act: Callable[[], object]) -> list[Called]:
    """The functions and methods of glocal that are called, each once, in the order of their first calls."""
    calls: dict[Called, None] = {}

    def look(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT)):
            module = ".".join(Path(code.co_filename).relative_to(ROOT).with_suffix("").parts)
            name = str(getattr(code, "co_qualname", code.co_name))
            if "<" not in name and not name.split(".")[-1].startswith("__"):
                calls[Called(module, name, _is_public(frame, name))] = None

    sys.setprofile(look)
    try:
        act()
    finally:
        sys.setprofile(None)
    return list(calls)


def _is_public(frame: FrameType, name: str) -> bool:
    if any(word.startswith("_") for word in name.split(".")):
        return False
    owner = sys.modules[frame.f_globals["__name__"]].__dict__.get(name.split(".")[0])
    member = inspect.getattr_static(owner, name.split(".")[1], None) if "." in name else None
    return not isinstance(member, property | functools.cached_property)


def one_images_way() -> list[Called]:
    """The functions that a batch of four photographs passes, from file to loss."""
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(0)
        for number in range(4):
            Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(f"{folder}/{number}.jpg")
        config = configure("local-global", data=folder, out="unused", preset="small")
        network = build_distillation(config)
        progress = sys.modules[StepInput.__module__].Progress(1, 10, 5)
        batches = iter(
            make_loader(open_source(folder), config.views, batch_size=4, seed=0, workers=0, total_steps=1)
        )

        def act() -> None:
            views = next(batches).views.to(torch.device("cpu"))
            seen = augment(views, config.views, config.backbone.patch_size)
            network(StepInput(seen, progress, watch=False))

        return functions_called(act)


def files_of_a_term(kind: str) -> list[Path]:
    """The file that defines the term, and those that it imports of what is read with it."""
    texts = {path: path.read_text() for path in sorted((ROOT / "objectives").rglob("*.py"))}
    files = [next(path for path, text in texts.items() if f'kind: Literal["{kind}"]' in text)]
    for path in files:  # grows on the way
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(READ_WITH_A_TERM):
                file = ROOT.parent / f"{(node.module or '').replace('.', '/')}.py"
                if file.is_file() and file not in files:
                    files.append(file)
    return files


def types_in(path: Path) -> list[str]:
    """The classes that a file defines."""
    return [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


def main() -> None:
    """Print both counts."""
    way = one_images_way()
    files = {called.module for called in way}
    public = [called for called in way if called.public]
    listed = {called.module for called in public}
    print(
        f"one image's way: {len(way)} functions in {len(files)} files; {len(public)} public in {len(listed)}"
    )
    for kind in ("image_level", "matched_patches"):
        read = files_of_a_term(kind)
        types = [name for path in read for name in types_in(path)]
        lines = sum(len(path.read_text().splitlines()) for path in read)
        print(f"{kind}: {len(read)} files, {lines} lines, {len(types)} types: {', '.join(types)}")


if __name__ == "__main__":
    main()
