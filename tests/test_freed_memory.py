"""Freed memory that stays with the process costs no page fault when it is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import numpy as np
from glocal.freed_memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("unknown to this C library")
np.ones(1 << 26, dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(1 << 26, dtype=np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True)
    if "unknown" in done.stderr:
        pytest.skip(done.stderr)
    return int(done.stdout)


def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    given_back, kept = _faults("give"), _faults("keep")
    assert given_back >= 4, "the test sees no faults at all"
    assert kept < given_back / 4
