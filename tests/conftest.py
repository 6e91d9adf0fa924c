"""What tests share: where real data is, and the small run of the conformance suites."""

from __future__ import annotations

import os

# One thread, before torch is imported: the tensors are tiny, and sums cut over threads round differently.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

# All annotations are checked at every call: types, and shapes by name. Before anything of the package is imported.
ROOMS = "cli conformance config curation data distributed evaluation extraction ladder lookup matching models objectives recipes schedules training verdict views"
jaxtyping.install_import_hook([f"glocal.{room}" for room in ROOMS.split()], "checked_annotations.check")

from glocal.conformance.small_runs import GROUPS as GROUPS
from glocal.conformance.small_runs import SMALL_HEAD as SMALL_HEAD
from glocal.conformance.small_runs import make_views as make_views
from glocal.conformance.small_runs import small_config as small_config

# The same examples on every machine and no time limit for one: a loaded machine must not fail a test.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    """A run sets torch's global precision of float32 products; no test may depend on which ran before it."""
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the check of annotations, which refuses bad input before our own errors can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image sets, or a skip that says what is missing."""
    folder = Path(os.environ.get("GLOCAL_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real image sets here; set GLOCAL_TEST_DATA to a folder that has them")
    return folder
