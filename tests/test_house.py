"""The order of the house: imports go down only, the core needs no extra, and the command starts fast."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import glocal

ROOT = Path(glocal.__file__).parent
FLOORS = [
    "cli",
    "report",
    "ladder",
    "recipes",
    "training",
    "verdict",
    "evaluation",
    "lookup",
    "extraction",
    "objectives",
    "models",
    "matching",
    "views",
    "data",
    "schedules",
    "distributed",
    "atomic_files",
    "freed_memory",
    "config",
    "outside",
    "errors",
]
PROTOCOL_ROOMS = [
    {"all_protocols", "compare", "interface"},
    {"beside"},
    {"baselines"},
    {"objects", "spair"},
    {"classification", "retrieval", "segmentation", "correspondence", "statistics"},
    {"base"},
    {"results"},
    {"intervals"},
]
EXTRAS = {
    "timm",
    "transformers",
    "skimage",
    "tensorboard",
    "wandb",
    "mlflow",
    "matplotlib",
    "huggingface_hub",
    "torchvision",
    "pillow_heif",
    "faiss",
    "pandas",
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports at its top level, `if TYPE_CHECKING` blocks left out."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for module in imports(path):
        if module.startswith("glocal."):
            other = module.split(".")[1]
            assert FLOORS.index(other) >= FLOORS.index(room), (
                f"{path.name} ({room}) imports {module}, which is above it"
            )
        assert module.split(".")[0] not in EXTRAS, f"{path.name} imports the extra {module} for everybody"


def test_protocols_meet_only_on_the_floors_below() -> None:
    for path in (ROOT / "evaluation").rglob("*.py"):
        room = path.relative_to(ROOT / "evaluation").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        floor = next(number for number, rooms in enumerate(PROTOCOL_ROOMS) if room in rooms)
        for module in imports(path):
            if module.startswith("glocal.evaluation.") and (other := module.split(".")[2]) != room:
                assert any(other in rooms for rooms in PROTOCOL_ROOMS[floor + 1 :]), (
                    f"{path.name} imports {module}"
                )


def test_files_stay_readable() -> None:
    """The house rule is 80-350 lines a file."""
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 350}
    assert long == {}


def test_importing_glocal_does_not_import_torch() -> None:
    code = "import sys, glocal, glocal.cli; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )


def test_public_names_resolve() -> None:
    for name in glocal.__all__:
        assert getattr(glocal, name) is not None
    checked = re.findall(r"import \w+ as (\w+)", (ROOT / "__init__.py").read_text())
    assert sorted(checked) == glocal.__all__  # what type checkers see is what Python gives
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        glocal.nothing
