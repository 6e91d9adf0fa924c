"""Values whose static type is wider than what a test put there, checked where they are used."""

from __future__ import annotations

from typing import TypeVar

Kind = TypeVar("Kind")


def of_kind(kind: type[Kind], value: object) -> Kind:
    """The value, which must be of this kind: a term among a network's modules, a settings class of a union."""
    assert isinstance(value, kind), f"{type(value).__name__} is no {kind.__name__}"
    return value


def present(value: Kind | None) -> Kind:
    """The value, which must be there."""
    assert value is not None
    return value
