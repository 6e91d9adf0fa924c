"""The errors a person is meant to read: each names the value seen, what is allowed and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GlocalError(Exception):
    """Base of every error that glocal raises on purpose. The command prints its text without a traceback."""


class ConfigError(GlocalError):
    """A setting is unknown, of the wrong type or contradicts another one."""


class DataError(GlocalError):
    """A data source can't be found, read or used as asked."""


class UnreadableImageError(DataError):
    """One image can't be decoded. Loaders catch it, skip the image, count it and list it."""


class ModelError(GlocalError):
    """Weights can't be loaded, or a model lacks what was asked of it."""


class TrainingError(GlocalError):
    """A run can't start, go on or be resumed."""


def nearest_name(name: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest allowed name, or an empty string when nothing is close.

    >>> nearest_name("learning_rte", ["learning_rate", "epochs"])
    " Did you mean 'learning_rate'?"
    """
    close = difflib.get_close_matches(name, [str(a) for a in allowed], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def name_some(names: Iterable[str], limit: int = 3) -> str:
    """List the first names and how many more there are, for notes and errors.

    >>> name_some(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
