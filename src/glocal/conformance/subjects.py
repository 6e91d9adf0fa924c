"""From the words that name somebody's code to the suite it must pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glocal.conformance import backbones, operations, protocols, recipes, sources, terms
from glocal.conformance.suite import Outcome, run_suite
from glocal.data import ImageSource, open_source
from glocal.errors import ConfigError
from glocal.evaluation.base import ProtocolConfig, protocol_class
from glocal.models.backbone import Backbone
from glocal.objectives import AnyObjective
from glocal.objectives.base import ObjectiveConfig
from glocal.own_code import load_named
from glocal.views.photometric import Operation, OperationBase


@dataclass(frozen=True)
class Suite:
    """What was named, and the checks it must pass."""

    what: str
    checks: Sequence[Callable[[Any], None]]
    subject: Any

    def run(self) -> Iterator[Outcome]:
        """An outcome for every check."""
        return run_suite(self.checks, self.subject)


def find_suite(words: str, data: str | None = None) -> Suite:
    """The suite for what the words name.

    Args:
        words: `file.py:NAME` or `package.module:NAME`.
        data: what a protocol is tried on; null: a few digits.

    Raises:
        ConfigError: when they name nothing, or nothing that glocal takes.
    """
    named = load_named(words, "check")
    if isinstance(named, type):
        for base, find in _CLASSES.items():
            if issubclass(named, base):
                return find(words, data)
    if callable(named):
        if _takes(named, 3):
            return Suite("recipe", recipes.CHECKS, words)
        if _takes(named, 1):
            return Suite("source", sources.CHECKS, open_source(words))
    raise ConfigError(
        f"check: {words} is {_described(named)}. Name a term's or an operation's settings (a subclass of ObjectiveConfig, of "
        "OperationBase), a protocol (ProtocolConfig), a backbone (Backbone), a source (a function of the split, or an "
        "ImageSource) or a recipe (a function of scale, data, out)."
    )


def _term(words: str, data: str | None) -> Suite:
    return Suite("term", terms.CHECKS, terms.with_small_head(_settings(AnyObjective, words)))


def _operation(words: str, data: str | None) -> Suite:
    return Suite("operation", operations.CHECKS, _settings(Operation, words))


def _protocol(words: str, data: str | None) -> Suite:
    return Suite("protocol", protocols.CHECKS, protocols.ProtocolSubject(protocol_class(words), data))


def _backbone(words: str, data: str | None) -> Suite:
    return Suite("backbone", backbones.CHECKS, backbones.SMALL.model_copy(update={"own": words}))


def _source(words: str, data: str | None) -> Suite:
    return Suite("source", sources.CHECKS, open_source(words))


_CLASSES: dict[type, Callable[[str, str | None], Suite]] = {
    ObjectiveConfig: _term,
    OperationBase: _operation,
    ProtocolConfig: _protocol,
    Backbone: _backbone,
    ImageSource: _source,
}


def _settings(union: Any, words: str) -> Any:
    """The settings of a kind of one's own, at their defaults.

    Raises:
        ConfigError: when it lacks what every such kind must have, or has settings without a default.
    """
    own_kinds = next(note for note in union.__metadata__ if hasattr(note, "settings"))
    settings = own_kinds.settings(words)
    if isinstance(settings, dict):
        required = [name for name, field in own_kinds.kind(words).model_fields.items() if field.is_required()]
        raise ConfigError(
            f"check: {words} needs defaults for {', '.join(required)}, so that it can be tried."
        )
    return settings


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def _described(named: Any) -> str:
    kind = "a subclass of" if isinstance(named, type) else "a"
    return f"{kind} {named.__mro__[1].__name__ if isinstance(named, type) else type(named).__name__}"
