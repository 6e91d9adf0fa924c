"""Collapse is named from recorded curves of real runs, early, and no healthy one is accused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glocal.verdict.collapse import CollapseMonitor

CURVES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "benchmarks" / "results-2026-11-21-collapse.jsonl")
    .read_text()
    .splitlines()
]
"""The first 160 steps of runs planned for 2,000, a record every 4 (made by benchmarks.collapse_curves)."""


def named(run: dict[str, Any], planned: int | None = None) -> tuple[str, int] | None:
    """What the monitor says of a run first, and at which step."""
    monitor = CollapseMonitor()
    for record in run["records"]:
        for collapse in monitor.look(record, share=record["step"] / (planned or run["planned"])):
            return collapse.kind, record["step"]
    return None


@pytest.mark.parametrize("run", [c for c in CURVES if c["collapse"] is None], ids=lambda c: c["run"])
@pytest.mark.parametrize("planned", [160, 2_000, 16_000])
def test_no_run_that_did_not_collapse_is_accused(run: dict[str, Any], planned: int) -> None:
    assert named(run, planned) is None


@pytest.mark.parametrize("run", [c for c in CURVES if c["collapse"] == "uniform"], ids=lambda c: c["run"])
@pytest.mark.parametrize("planned", [2_000, 8_000])
def test_collapse_to_uniform_is_named_at_a_hundredth_of_the_run(run: dict[str, Any], planned: int) -> None:
    assert named(run, planned) == ("uniform", planned // 100)


def test_collapse_to_a_constant_is_named_once_three_records_show_it() -> None:
    collapsed = {c["run"]: named(c) for c in CURVES if c["collapse"] == "constant"}
    assert collapsed.keys() == {"constant-pw-self", "constant-dino", "constant-adamw"}
    # AdamW's run was still on its way there when its record ends: its targets tell images apart by half.
    assert collapsed.pop("constant-adamw") is None
    for said in collapsed.values():
        assert said is not None and said[0] == "constant" and said[1] <= 40
