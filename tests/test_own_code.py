"""A person's own terms, operations, sources, protocols, backbones and recipes, named by file or module, without a fork."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from test_cli import FAST
from typer.testing import CliRunner

import glocal
from glocal import cli
from glocal.config import to_yaml
from glocal.errors import GlocalError
from glocal.evaluation.base import evaluate
from glocal.recipes import configure, continue_run
from glocal.training.loop import pretrain

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
OWN = [
    "my_terms.py:Agreement",
    "my_backbone.py:Mixer",
    "my_source.py:Shapes",
    "my_operations.py:Fog",
    "my_protocol.py:Centroids",
    "my_recipe.py:calm",
]
TINY = [word for word in FAST[1:-1] if not word.startswith(("views.local", "objectives."))]
TERM = "objectives.mine=examples/my_terms.py:Agreement"


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the examples in it; what is imported from there is forgotten afterwards."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(EXAMPLES)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    _forget(before)
    yield tmp_path
    _forget(before)


def _forget(before: set[str]) -> None:
    from glocal import own_code
    from glocal.config.own import _tagged

    _tagged.cache_clear()
    own_code._FILES.clear()
    for name in {n for n in sys.modules if n.startswith(("my_", "their_"))}:
        del sys.modules[name]


def run(*words: str) -> tuple[int, str]:
    said = CliRunner().invoke(cli.app, list(words))
    return said.exit_code, said.output + str(said.exception or "")


@pytest.mark.parametrize("name", OWN)
def test_every_example_passes_its_suite(at_home: Path, name: str) -> None:
    code, said = run("check", f"examples/{name}")
    assert code == 0, said
    assert "BROKEN" not in said and "kept" in said


def test_a_broken_term_is_told_what_it_breaks(at_home: Path) -> None:
    text = (EXAMPLES / "my_terms.py").read_text()
    # Draws from the global generator when watched, and keeps a count that is no buffer.
    broken = text.replace(
        "return Term(loss,",
        "self.n = getattr(self, 'n', 0) + 1\n        loss = loss * (self.n + watch)\n        return Term(loss,",
    )
    (at_home / "their_terms.py").write_text(broken)
    code, said = run("check", "their_terms.py:Agreement")
    assert code != 0 and "breaks" in said
    assert "BROKEN  Being watched" in said and "BROKEN  All state between steps" in said
    assert "kept    The gradient reaches the backbone's features" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (TERM.replace("my_terms", "my_trms"), "there is no file 'examples/my_trms.py'. Did you mean 'my_terms.py'?"),
        (TERM.replace("Agreement", "Agrement"), "has no 'Agrement'. Did you mean 'Agreement'?"),
        (f"{TERM}Term", "is a subclass of Objective; needed: a subclass of glocal.objectives.base.ObjectiveConfig. That file has Agreement"),
        ("objectives.mine=nothing.here:Term", "there is no module 'nothing'"),
        ("objectives.mine=examples/their_bad.py:Term", "SyntaxError, line 2"),
        ("objectives.mine=examples/their_empty.py:Term", "lacks build, which every ObjectiveConfig must have"),
        ("objectives.mine=examples/their_error.py:Term", "ZeroDivisionError, line 1: division by zero"),
        ("objectives.mine=examples/torch.py:Term", "Rename the file"),
        ("backbone.own=examples/my_terms.py:Agreement", "needed: a subclass of glocal.models.backbone.Backbone"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(at_home: Path, words: str, said: str) -> None:
    (at_home / "examples" / "their_bad.py").write_text("x = 1\nclass Term(:\n")
    (at_home / "examples" / "their_error.py").write_text("x = 1 / 0\n")
    (at_home / "examples" / "torch.py").write_text("x = 1\n")
    empty = (
        "from glocal.objectives.base import ObjectiveConfig\nclass Term(ObjectiveConfig):\n    'Nothing.'\n"
    )
    (at_home / "examples" / "their_empty.py").write_text(empty)
    with pytest.raises(GlocalError) as refused:
        config = configure(
            "glocal",
            data="digits",
            out="runs/x",
            preset="small",
            overrides=["backbone.patch_embed_init=drawn", words],
        )
        glocal.models.build.build_backbone(config.backbone)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_an_own_term_is_recorded_and_resumes_exactly(at_home: Path) -> None:
    words = [TERM, "objectives.mine.margin=0.25", "objectives.mine.weight=0.5", *TINY, "training.steps=6", "training.checkpoint_every=3", "training.keep_every=3"]  # fmt: skip
    for out in ("runs/whole", "runs/halves"):
        config = configure("dino", data="examples/my_source.py:Shapes", out=out, preset="small", overrides=[*words, "objectives.image.head.prototypes=32", "views.local.size=8"])  # fmt: skip
        pretrain(config)
    assert (
        yaml.safe_load((at_home / "runs/whole/config.yaml").read_text())["objectives"]["mine"]["kind"]
        == TERM.partition("=")[2]
    )
    assert (at_home / "runs/whole/code/my_terms.py").read_text() == (EXAMPLES / "my_terms.py").read_text()
    pretrain(continue_run("runs/halves", []), resume=Path("runs/halves/checkpoints/step-3.pt"))
    whole, halves = (
        torch.load(at_home / "runs" / out / "checkpoints/last.pt", weights_only=True)
        for out in ("whole", "halves")
    )
    assert TERM.partition("=")[2] in whole["config"]
    assert all(torch.equal(whole["teacher"][name], halves["teacher"][name]) for name in whole["teacher"])
    assert whole["step"] == halves["step"] == 6


def test_a_continued_run_says_that_its_code_changed(at_home: Path) -> None:
    words = [TERM, *TINY, "training.steps=2"]
    config = configure(
        "glocal", data="examples/my_source.py:Shapes", out="runs/a", preset="small", overrides=words
    )
    folder = glocal.training.run_folder.RunFolder("runs/a")
    folder.path.mkdir(parents=True)
    folder.write_start(config, {})
    before = config.model_dump(mode="json")
    assert folder.write_resume(before, config, 1, "resume") == {}
    (at_home / "examples/my_terms.py").write_text((EXAMPLES / "my_terms.py").read_text() + "# changed\n")
    changed = folder.write_resume(before, config, 1, "resume")
    assert list(changed) == ["code/my_terms.py"] and len(set(changed["code/my_terms.py"])) == 2


def test_an_own_backbone_trains_loads_and_is_evaluated_by_an_own_protocol(at_home: Path) -> None:
    words = ["backbone.own=examples/my_backbone.py:Mixer", "backbone.own_arguments={kernel: 3}", *TINY]
    config = configure("simclr", data="examples/my_source.py:Shapes", out="runs/mixer", preset="small", overrides=[*words, "backbone.patch_embed_init=drawn", "views.global.keep_patches=1"])  # fmt: skip
    pretrain(config)
    encoder = glocal.load("runs/mixer")
    kernel = encoder.backbone.get_submodule("blocks.0.neighbours").get_parameter("weight")
    assert type(encoder.backbone).__name__ == "Mixer" and kernel.shape[2:] == (3, 3)
    result = evaluate("examples/my_protocol.py:Centroids", encoder, "examples/my_source.py:Shapes")
    assert result.protocol == "centroids" and 0 <= result.numbers["top1"] <= 100
    shutil.copy("examples/my_backbone.py", "runs/mixer/export/my_backbone.py")
    exported = at_home / "runs/mixer/export/config.json"
    exported.write_text(exported.read_text().replace("examples/my_backbone", "runs/mixer/export/my_backbone"))
    with pytest.raises(GlocalError, match="lies beside it and is not run"):
        glocal.load("runs/mixer")


def test_an_own_operation_and_recipe_are_read_back(at_home: Path) -> None:
    words = ["views.global.photometric=[[{op: examples/my_operations.py:Fog, probability: 0.3}]]"]
    config = configure("examples/my_recipe.py:calm", data="digits", out="x", preset="small", overrides=words)
    assert config.recipe == "examples/my_recipe.py:calm" and config.objectives["patch"].weight == 0.25
    assert glocal.config.from_yaml(type(config), to_yaml(config)) == config
    assert type(config.views["global"].photometric[0][0]).__name__ == "Fog"


def test_settings_of_an_own_class_from_python_are_recorded_by_its_file(at_home: Path) -> None:
    sys.path.append(str(at_home / "examples"))
    my_terms = importlib.import_module("my_terms")
    settings = {"objectives": {"mine": my_terms.Agreement(margin=0.5)}}
    config = configure("glocal", data="digits", out="x", preset="small", settings=settings)
    assert config.objectives["mine"].model_dump()["kind"] == "my_terms:Agreement"
    assert glocal.config.from_yaml(type(config), to_yaml(config)) == config


def test_the_pieces_work_in_somebody_elses_loop(tmp_path: Path) -> None:
    script = EXAMPLES / "own_loop.py"
    assert len([line for line in script.read_text().splitlines() if line.strip()]) <= 60
    said = subprocess.run(
        [sys.executable, str(script), "40"], capture_output=True, text=True, check=True
    ).stdout
    first, last = said.splitlines()[0], said.splitlines()[-1]
    assert float(last.split("patch ")[1]) < float(first.split("patch ")[1])
