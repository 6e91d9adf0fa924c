"""The reference of settings, the packaging that surrounds the code, and the snippets of README and docs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import FAST
from typer.testing import CliRunner

from glocal import cli
from glocal.cli.evaluate import EvaluateSettings
from glocal.cli.pretrain import PretrainSettings
from glocal.cli.reference import Section, as_markdown, sections
from glocal.cli.settings import split_words
from glocal.config import apply_overrides
from glocal.evaluation.base import protocol_class
from glocal.recipes import configure, find_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def found() -> list[Section]:
    return sections()


def test_the_page_of_settings_is_up_to_date(found: list[Section]) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == as_markdown(found), "run: glocal settings out=docs/settings.md"


def test_every_setting_says_what_it_means(found: list[Section]) -> None:
    silent = [
        f"{section.title}: {row.key}" for section in found for row in section.settings if not row.meaning
    ]
    assert silent == []
    keys = {row.key for section in found for row in section.settings}
    assert {
        "backbone.embed_dim",
        "objectives.NAME.head.prototypes",
        "views.NAME.area",
        "knn.ks",
        "seed",
    } <= keys
    assert len([section for section in found if section.title.startswith("Objective")]) >= 6


def test_the_command_shows_a_part() -> None:
    shown = CliRunner().invoke(cli.app, ["settings", "optimiser"])
    assert shown.exit_code == 0 and "optimiser.learning_rate" in shown.output and "speed." not in shown.output
    missing = CliRunner().invoke(cli.app, ["settings", "optimizer.learning_rate"])
    assert "Did you mean 'optimiser.learning_rate'" in str(missing.exception)


def test_python_m_glocal_and_completion() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "glocal", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "pretrain" in said and "--install-completion" in said


def test_packaging() -> None:
    assert (ROOT / "src" / "glocal" / "py.typed").exists()
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None and f"version: {version[1]}" in (ROOT / "CITATION.cff").read_text()
    assert not re.findall(r"\]\((?!https?://)", (ROOT / "README.md").read_text()), (
        "a relative link is dead on PyPI"
    )


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
        own, overrides = split_words(PretrainSettings, words[1:])
        configure(
            words[0],
            data="DATA",
            out=own.out,
            preset=own.preset or find_recipe(words[0]).presets[0],
            overrides=overrides,
        )
    if verb == "evaluate":
        _, overrides = split_words(EvaluateSettings, words[1:])
        for override in overrides:
            name, rest = override.split(".", 1) if words[0] == "all" else (words[0], override)
            apply_overrides(protocol_class(name)(), [rest])
