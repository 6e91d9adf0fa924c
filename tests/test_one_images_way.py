"""The page "One image's way" lists what one image passes, in order: compared with a trace of a small batch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.reading import ROOT, Called, files_of_a_term, functions_called, one_images_way, types_in
from glocal.schedules import Progress, Schedule, value_at

PAGE = Path(__file__).parents[1] / "docs" / "one-images-way.md"


@pytest.fixture(scope="module")
def way() -> list[str]:
    return [f"{called.module}:{called.name}" for called in one_images_way() if called.public]


def test_the_page_lists_the_functions_in_the_order_of_the_way(way: list[str]) -> None:
    listed = re.findall(r"^\d+\. `([\w.]+:[\w.]+)`", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = "\n".join(way)
    assert listed == way, f"{PAGE.name} must list, in this order:\n{wanted}"


def test_the_page_counts_them(way: list[str]) -> None:
    files = {name.split(":")[0] for name in way}
    assert f"{len(way)} public functions in {len(files)} files" in PAGE.read_text(encoding="utf-8")


def test_a_trace_names_each_function_once_and_knows_what_is_private() -> None:
    schedule = Schedule(start=1.0, end=0.0)
    calls = functions_called(lambda: [value_at(schedule, Progress(step, 10, 5)) for step in (0, 1)])
    assert calls[:2] == [Called("schedules", "value_at", True), Called("schedules", "Schedule.at", True)]
    assert len(set(calls)) == len(calls)


def test_dino_is_read_in_seven_files() -> None:
    read = files_of_a_term("image_level")
    names = [str(path.relative_to(ROOT)) for path in read]
    assert names[0] == "objectives/over_prototypes/image_level.py" and len(names) <= 7
    assert {"ImageLevel", "PrototypeTerm", "PrototypeHead"} <= {n for path in read for n in types_in(path)}
