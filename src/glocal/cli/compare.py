"""glocal compare RUN RUN ..."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console


def run(runs: Sequence[str]) -> None:
    """Print the results of several folders side by side."""
    from glocal.evaluation.compare import compare

    Console().print(*compare(runs), sep="\n")
