"""The tutorials, bridges and notebooks of the docs run as they stand, in their order, in one folder a page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from glocal import cli
from glocal.models.backbone import BackboneConfig
from glocal.models.export import export_backbone
from glocal.models.vit import VisionTransformer

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BRIDGES = sorted((ROOT / "docs" / "bridges").glob("*.md"))
NEEDS = {"timm.md": ("timm",), "collections.md": ("pandas", "faiss")}
"""Packages beyond those of the tests."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def expanded(text: str) -> str:
    """`${STEPS:-400}` as a shell reads it."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1], m[2]), text)


def run_page(page: Path) -> list[str]:
    """Commands through the command itself, Python in one namespace; what was run."""
    names: dict[str, Any] = {"__name__": "page"}
    ran = []
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}:python", "exec"), names)
            ran.append(text)
            continue
        if language:
            continue
        for line in text.splitlines():
            words = shlex.split(expanded(line), comments=True)
            if words[:1] == ["glocal"]:
                said = CliRunner().invoke(cli.app, words[1:])
                assert said.exit_code == 0, f"{line}: {said.exception} {said.output[-500:]}"
                ran.append(line)
    return ran


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples in it; modules of theirs are forgotten before."""
    examples = ROOT / "examples"
    shutil.copytree(examples, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place) != examples])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in {name for name in sys.modules if name.startswith("my_")}:
        del sys.modules[name]
    monkeypatch.setenv("STEPS", "3")
    return tmp_path


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_tutorial_runs_as_written(at_home: Path, page: Path) -> None:
    assert len(run_page(page)) >= 5


@pytest.fixture
def with_a_model(at_home: Path) -> Path:
    """The model and the images that the bridges name: a small one that has learnt nothing, and noise."""
    torch.manual_seed(0)
    config = BackboneConfig(size="micro", embed_dim=64, depth=3, num_heads=4, patch_size=8, image_size=32)
    export_backbone(VisionTransformer(config), at_home / "runs" / "a" / "export")
    rng = np.random.default_rng(0)
    for number in range(12):
        picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        split, kind = "train" if number < 8 else "test", "ab"[number % 2]
        for place in (at_home / "photos", at_home / "labelled" / split / kind):
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{number}.png")
    return at_home


@pytest.mark.parametrize("page", BRIDGES, ids=lambda page: page.stem)
def test_every_bridge_runs_as_written(with_a_model: Path, page: Path) -> None:
    for package in NEEDS.get(page.name, ()):
        pytest.importorskip(package, reason=f"{page.name} needs {package}")
    assert len(run_page(page)) >= 1


@pytest.mark.filterwarnings("default")  # of the kernel's own libraries
@pytest.mark.parametrize(
    "book", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda book: book.stem
)
def test_every_notebook_runs_from_top_to_bottom(
    at_home: Path, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(book, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    client.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(at_home)}}
    ).execute()
    assert all(cell.outputs for cell in notebook.cells[-1:])
