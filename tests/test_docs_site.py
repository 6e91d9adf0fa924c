"""The site builds without a warning, the page of terms is whole, and what is packed is what belongs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from dense_fakes import blocks, colour_encoder
from evaluation_fakes import coloured, small_encoder

import glocal
from glocal.evaluation.base import PROTOCOLS, protocol_class
from glocal.extraction.work import Work
from glocal.objectives import KINDS

ROOT = Path(__file__).resolve().parents[1]


def test_the_site_builds_with_warnings_as_errors(tmp_path: Path) -> None:
    for package in ("mkdocs", "mkdocstrings", "material"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package} here: pip install -e '.[docs]'")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr[-3000:]
    page = (tmp_path / "index.html").read_text()
    assert "Start in five minutes" in page and "Your own term and backbone" in page
    assert "glocal.recipes.pretrain" in (tmp_path / "api.html").read_text()
    # Nothing is fetched to read it.
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?://(?!squidfunk)[^"]+\.(?:js|css)', page)


def test_every_term_has_its_equation_paper_departures_cost_and_effect() -> None:
    page = (ROOT / "docs" / "objectives.md").read_text()
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert set(sections) == set(KINDS)
    for kind, text in sections.items():
        assert re.search(r"^    \S", text, flags=re.MULTILINE), f"{kind} has no equation"
        for word in ("Paper", "Departures", "Cost", "Measured"):
            assert f"**{word}**" in text, f"{kind}: {word}"


def test_every_protocol_says_what_it_asks_needs_and_gives() -> None:
    page = (ROOT / "docs" / "protocols.md").read_text()
    sections = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^##|\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert list(sections) == list(PROTOCOLS)
    for name, text in sections.items():
        kind = protocol_class(name)
        assert f"::: {kind.__module__}.{kind.__name__}\n" in text and f"settings.md#protocol-{name})" in text
        for word in ("Asks", "Needs", "Gives"):
            assert f"**{word}** " in text, f"{name}: {word}"
    labelled = {role: coloured(40, 8, seed=seed, name=role) for seed, role in enumerate(("train", "test"))}
    masked = {role: blocks(8, seed=seed, name=role) for seed, role in enumerate(("train", "test"))}
    for data, encoder, names in (
        (labelled, small_encoder(), ("knn", "statistics", "retrieval", "correspondence")),
        (masked, colour_encoder(), ("knn-seg", "discovery")),
    ):
        for name in names:
            given = protocol_class(name).quick(encoder).run(encoder, data, Work(progress=False)).numbers
            gives = re.findall(r"\*\*Gives\*\* (.*?) \*\*Settings", sections[name])
            patterns = [
                re.sub(r"\\{\w+\\}", r"\\w+", re.escape(n)) for n in re.findall("`([^`]+)`", gives[0])
            ]
            for figure in given:
                assert any(re.fullmatch(p.replace(re.escape("..."), ".*"), figure) for p in patterns), (
                    f"{name}: {figure}"
                )


def test_the_page_for_agents_names_what_exists() -> None:
    page = (ROOT / "llms.txt").read_text()
    assert page.startswith("# glocal\n\n> ")
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / link).is_file(), link


def test_wheel_and_sdist_hold_what_belongs(tmp_path: Path) -> None:
    for package in ("build", "hatchling"):
        pytest.importorskip(package, reason=f"no {package} here")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    made = subprocess.run(words, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:] + made.stdout[-2000:]
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"glocal", f"glocal-{glocal.__version__}.dist-info"}
    assert "glocal/py.typed" in names and "glocal/conformance/terms.py" in names
    assert not [
        name
        for name in names
        if name.startswith("glocal/")
        and not name.endswith((".py", "py.typed", ".html", ".js", ".css", ".jsonl"))
    ]
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "llms.txt",
        "docs/index.md",
        "examples/own_loop.py",
    } <= packed
    assert not [name for name in packed if name.startswith((".", "runs", "build")) and name != ".gitignore"]
    assert not [name for name in packed if name.endswith((".pt", ".safetensors", ".parquet", ".pyc"))]


def test_what_stands_beside_the_code_agrees_with_it() -> None:
    assert (ROOT / "src" / "glocal" / "py.typed").exists()
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version is not None and f"version: {version[1]}" in (ROOT / "CITATION.cff").read_text()
    assert not re.findall(r"\]\((?!https?://)", (ROOT / "README.md").read_text()), (
        "a relative link is dead on PyPI"
    )
