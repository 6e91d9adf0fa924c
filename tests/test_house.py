"""The order of the house: imports go down only, the core needs no extra, and the command starts fast."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import glocal

ROOT = Path(glocal.__file__).parent
FLOORS = [
    "cli",
    "report",
    "ladder",
    "conformance",
    "recipes",
    "training",
    "verdict",
    "evaluation",
    "curation",
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
    "own_code",
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
        floor = next((n for n, rooms in enumerate(PROTOCOL_ROOMS) if room in rooms), 2)
        for module in imports(path):
            if module.startswith("glocal.evaluation.") and (other := module.split(".")[2]) != room:
                assert any(other in rooms for rooms in PROTOCOL_ROOMS[floor + 1 :]), (
                    f"{path.name} imports {module}"
                )


def python_files() -> Iterator[Path]:
    for folder in (ROOT, *(ROOT.parents[1] / name for name in ("tests", "benchmarks"))):
        yield from folder.rglob("*.py")


def test_files_stay_readable() -> None:
    """The house rule is 80-350 lines a file."""
    long = {p.name: n for p in python_files() if (n := len(p.read_text().splitlines())) > 350}
    assert long == {}


def test_every_file_says_what_it_holds() -> None:
    assert [p.name for p in python_files() if not ast.get_docstring(ast.parse(p.read_text()))] == []


def test_functions_stay_readable() -> None:
    """At most 60 lines of code; the training loop, which is read from top to bottom, is the longest."""
    for path in python_files():
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                head = range(node.lineno - 1, node.body[0].lineno - 1)
                code = [*head, *(range(body[0].lineno - 1, node.end_lineno or 0) if body else ())]
                written = [
                    lines[i] for i in code if lines[i].strip() and not lines[i].strip().startswith("#")
                ]
                assert len(written) <= 60, f"{path.name}: {node.name} has {len(written)} lines of code"


def test_no_module_is_imported_in_a_circle() -> None:
    """Neither modules nor rooms: what a file imports at its top never leads back to it."""
    files = {module_name(path): path for path in ROOT.rglob("*.py")}
    below = {name: imported_modules(path, set(files)) - {name} for name, path in files.items()}
    assert circle(below) == []
    rooms: dict[str, set[str]] = {}
    for name, others in below.items():
        if name.count("."):
            room = name.split(".")[1]
            rooms.setdefault(room, set()).update(o.split(".")[1] for o in others if o.count("."))
    assert circle({room: others - {room} for room, others in rooms.items()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def module_name(path: Path) -> str:
    """`glocal.room.file`; of a folder's `__init__`, the folder."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Of our modules those that a file imports at its top level, as a whole or names of theirs."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & modules or {node.module}
    return found & modules


def circle(below: dict[str, set[str]]) -> list[str]:
    """Those that lead back to themselves, sorted: what is left when all that lead nowhere are taken away, both ways."""
    left = dict(below)
    while True:
        wanted = {other for others in left.values() for other in others}
        kept = {
            name: others & left.keys()
            for name, others in left.items()
            if others & left.keys() and name in wanted
        }
        if kept == left:
            return sorted(left)
        left = kept


def test_annotations_are_checked_in_every_test() -> None:
    """jaxtyping's hook is on in every room but `report`: a call that its annotation refuses does not get through."""
    from glocal.views.randomness import mix_array

    with pytest.raises(TypeError):
        mix_array("no array")  # type: ignore[arg-type]
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "glocal"]
    unchecked = {m.__name__ for m in ours if type(m.__loader__).__name__ == "SourceFileLoader"}
    rooms = {name.split(".")[1] for name in unchecked if "." in name}
    assert len(ours) > 50 and rooms <= {
        "report",
        "errors",
        "outside",
        "own_code",
        "atomic_files",
        "freed_memory",
    }


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
