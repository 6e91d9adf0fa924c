"""What somebody reads to follow one image, and one method: functions, files, lines and types, of any state of the source.

    python -m benchmarks.reading                     # this source
    PYTHONPATH=OTHER/src python benchmarks/reading.py   # another one, such as a worktree of an older commit

The way of an image is traced as `tests/test_one_images_way.py` traces it: a batch of `local-global` (preset `small`) through
loader, colours, both networks and both terms; a function counts once, private ones apart. A method is its term's file and
what that imports of the objectives, the heads and the schedules, whole files; types are the classes defined there.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

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


def functions_called(act: Callable[[], object]) -> list[str]:
    """The functions and methods of glocal that are called, each once, as `file:name`."""
    names: dict[str, None] = {}

    def look(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(ROOT)):
            file = Path(code.co_filename).relative_to(ROOT)
            names[f"{file}:{getattr(code, 'co_qualname', code.co_name)}"] = None

    sys.setprofile(look)
    try:
        act()
    finally:
        sys.setprofile(None)
    return [
        name for name in names if "<" not in name and not name.split(":")[1].split(".")[-1].startswith("__")
    ]


def one_images_way() -> list[str]:
    """The functions that a batch of four photographs passes, from file to loss."""
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(0)
        for number in range(4):
            Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(f"{folder}/{number}.jpg")
        config = configure("local-global", data=folder, out="unused", preset="small")
        network, progress = build_distillation(config), sys.modules[StepInput.__module__].Progress(1, 10, 5)
        batches = iter(
            make_loader(open_source(folder), config.views, batch_size=4, seed=0, workers=0, total_steps=1)
        )

        def act() -> None:
            views = augment(
                next(batches).views.to(torch.device("cpu")), config.views, config.backbone.patch_size
            )
            network(StepInput(views, progress, watch=False))

        return functions_called(act)


def files_of_a_term(kind: str) -> list[Path]:
    """The file that defines the term, and those that it imports of what is read with it."""
    first = next(
        p for p in sorted((ROOT / "objectives").rglob("*.py")) if f'kind: Literal["{kind}"]' in p.read_text()
    )
    files, waiting = [first], [first]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(READ_WITH_A_TERM):
                file = ROOT.parent / f"{(node.module or '').replace('.', '/')}.py"
                if file.is_file() and file not in files:
                    files.append(file)
                    waiting.append(file)
    return files


def main() -> None:
    """Print both counts."""
    way = one_images_way()
    public = [name for name in way if not any(word.startswith("_") for word in name.split(":")[1].split("."))]
    files = {name.split(":")[0] for name in way}
    print(f"one image's way: {len(way)} functions ({len(public)} public) in {len(files)} files")
    for kind in ("image_level", "matched_patches"):
        read = files_of_a_term(kind)
        types = [
            n.name for p in read for n in ast.walk(ast.parse(p.read_text())) if isinstance(n, ast.ClassDef)
        ]
        lines = sum(len(p.read_text().splitlines()) for p in read)
        print(f"{kind}: {len(read)} files, {lines} lines, {len(types)} types: {', '.join(types)}")


if __name__ == "__main__":
    main()
