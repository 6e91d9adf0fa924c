"""A suite is a list of checks; running it gives an outcome for each, whatever the others did."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from glocal.outside import reason

SubjectT = TypeVar("SubjectT")


@dataclass(frozen=True)
class Outcome:
    """What one check found: the promise in words, and where it isn't kept, how."""

    promise: str
    trouble: str | None = None

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.trouble is None


def run_suite(checks: Sequence[Callable[[SubjectT], None]], subject: SubjectT) -> Iterator[Outcome]:
    """Run every check on a subject, one after another.

    >>> def is_even(number): "An even number."; require(number % 2 == 0, f"{number} is odd")
    >>> [outcome.trouble for outcome in run_suite([is_even], 3)]
    ['3 is odd']
    """
    for check in checks:
        promise = " ".join((check.__doc__ or check.__name__).partition("\n\n")[0].split())
        try:
            check(subject)
        except Exception as error:
            yield Outcome(promise, _trouble(error))
        else:
            yield Outcome(promise)


def require(kept: bool, otherwise: str) -> None:
    """Raise an AssertionError with this text unless the promise is kept."""
    if not kept:
        raise AssertionError(otherwise)


def _trouble(error: Exception) -> str:
    """A broken promise in its own words; any other error with its kind and the last line of code that it passed."""
    if isinstance(error, AssertionError):
        return reason(error)
    last: Any = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {reason(error)}"
