"""CONTRIBUTING's ways to a new member of every kind, followed to the letter on a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from narrowing import present

import glocal
from glocal.objectives import KINDS

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_terms_names_every_term() -> None:
    page = (ROOT / "docs" / "terms.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == set(KINDS)


@pytest.mark.parametrize(
    ("heading", "least"),
    [
        ("## Add a term of the loss", 9),
        ("## Add a photometric operation", 4),
        ("## Add a source of images", 1),
        ("## Add a backbone", 1),
        ("## Add an evaluation protocol", 1),
    ],
)
def test_one_file_and_at_most_one_line_make_a_member_that_passes_the_suite(
    heading: str, least: int, tmp_path: Path
) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    section = page[page.index(heading) :].split("\n## ")[0]
    code, *lines = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    file, *registers = re.findall(r"`src/glocal/(\S+\.py)`", section)
    command = present(re.search(r"```\npytest (.*?)\n```", section))[1]

    package = tmp_path / "glocal"
    shutil.copytree(Path(glocal.__file__).parent, package)
    (package / file).write_text(code)
    for register, line in zip(registers, lines, strict=True):
        text = (package / register).read_text()
        place = (
            text.index("\nPROTOCOLS = {\n") + 15
            if line.startswith(" ")
            else text.rindex("\nfrom glocal.") + 1
        )
        (package / register).write_text(text[:place] + line + text[place:])

    words = [sys.executable, "-m", "pytest", *command.split(), "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(present(re.search(r"(\d+) passed", run.stdout))[1]) >= least
