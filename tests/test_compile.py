"""What `speed.compile` compiles: few graphs, no more of them from step to step, and the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PASSES = {"glocal": 1, "dino": 3, "pw-self": 3, "ibot": 3}
"""Graphs: one for each network and each view group that it sees; the flagship has no teacher in its loss."""


@pytest.mark.parametrize("recipe", [pytest.param(name, marks=pytest.mark.slow if name != "glocal" else ()) for name in PASSES])  # fmt: skip
def test_twenty_steps_are_one_graph_a_network_and_group(recipe: str) -> None:
    """Stochastic depth, dropped patches and masks change from step to step; shapes do not."""
    words = [sys.executable, str(Path(__file__).with_name("compiled_steps.py")), recipe]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["compiled"][:3] == pytest.approx(told["eager"], rel=1e-5)
    assert told["graphs"] == PASSES[recipe] and not told["breaks"]
