"""Every term gives one process's loss, gradients and state on two processes that share the images."""

from __future__ import annotations

import pytest
from test_objectives import TERMS

from glocal.conformance.terms import Results, compare_with_one_process, in_two_processes


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Results:
    """What the first of two processes has, for all terms that were asked for, in one start of processes."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = [str(item.callspec.params["name"]) for item in items if "seen" in item.fixturenames]
    return in_two_processes({name: TERMS[name] for name in asked}, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("name", TERMS)
def test_two_processes_equal_one(name: str, seen: Results) -> None:
    compare_with_one_process(name, TERMS[name], seen)
