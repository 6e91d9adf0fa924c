"""The commands in README and docs: those of the README run as written, the others name settings that exist."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import FAST
from typer.testing import CliRunner

from glocal import cli
from glocal.cli.evaluate import EvaluateSettings
from glocal.cli.pretrain import PretrainSettings
from glocal.cli.settings import split_words
from glocal.config import apply_overrides
from glocal.evaluation.base import protocol_class
from glocal.recipes import configure, find_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, line.strip().partition("  #")[0])
    for page in PAGES
    for block in re.findall(
        r"^```(?:sh|bash|shell)?\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    for line in re.sub(r"\\\n\s*", "", block).splitlines()
    if line.strip().startswith(("glocal ", ".venv/bin/glocal "))
]


README = [words for page, words in COMMANDS if page == "README.md"]
TINY = [*FAST, "probe.neighbours=2"]


def tiny(words: list[str]) -> list[str]:
    """Settings for a run of seconds, those left out that the recipe lacks or that weights decide."""
    config = configure(words[1], data="DATA", out="x", preset="small")
    decided = ("backbone.", "views.") if any(word.startswith("init=") for word in words) else ()
    lacking = ["views.local."] if "local" not in config.views else []
    for name in ("image", "patch"):
        if not hasattr(getattr(config.objectives.get(name), "head", None), "prototypes"):
            lacking.append(f"objectives.{name}.")
    return [word for word in TINY if not word.startswith((*decided, *lacking))]


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README's commands name."""
    rng = np.random.default_rng(0)
    for place in ("photos/cat.jpg", *(f"photos/{i}.jpg" for i in range(11))):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(tmp_path / place)
    for number in range(24):
        split = "train" if number < 16 else "test"
        path = tmp_path / "labelled" / split / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_readme_run_as_written(at_home: Path) -> None:
    """At a tiny size: `pretrain` gets settings for one behind its own words."""
    for command in README:
        words = shlex.split(command)[1:]
        if words[0] == "pretrain" and "resume=true" not in words:
            words += tiny(words)
        if words[:1] == ["compare"]:
            shutil.copytree(at_home / "e" / "a", at_home / "e" / "b")
        said = CliRunner().invoke(cli.app, words)
        assert said.exit_code == 0, f"{command}: {said.exception} {said.output[-300:]}"
    assert (at_home / "embeddings.parquet").exists() and (at_home / "e" / "a" / "results.json").exists()


@pytest.mark.parametrize(
    "command", [c for _, c in COMMANDS if c not in README and not re.search(r"[A-Z]{4}", c)]
)
def test_the_commands_of_the_docs_name_settings_that_exist(command: str) -> None:
    """What takes hours or data of one's own is only resolved."""
    verb, *words = shlex.split(command)[1:]
    if verb == "pretrain":
        options, overrides = split_words(PretrainSettings, words[1:])
        configure(
            words[0],
            data="DATA",
            out=options.out,
            preset=options.preset or find_recipe(words[0]).presets[0],
            overrides=overrides,
        )
    if verb == "evaluate":
        _, overrides = split_words(EvaluateSettings, words[1:])
        for override in overrides:
            name, rest = override.split(".", 1) if words[0] == "all" else (words[0], override)
            apply_overrides(protocol_class(name)(), [rest])
