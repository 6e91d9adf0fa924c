"""glocal compare RUN RUN ..."""

from __future__ import annotations

from collections.abc import Sequence

from glocal.cli.screen import screen


def run(runs: Sequence[str]) -> None:
    """Print the results of several folders side by side."""
    from glocal.evaluation.compare import compare
    from glocal.outside import given_path

    screen().print(*compare([given_path(run, "run") for run in runs]), sep="\n")
