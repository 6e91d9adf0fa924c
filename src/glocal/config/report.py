"""pydantic's report of what doesn't fit, in one line a setting: where, what was seen, what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from glocal.config.base import Config
from glocal.errors import nearest_name

_SHOWN = 80
_MESSAGE = 900


def explain(kind: type[Config], data: Any, error: ValidationError) -> str:
    """Say every failure in a line; the options of a union that were tried for one value share theirs."""
    lines: dict[str, list[str]] = {}
    for item in error.errors():
        keys = _keys(data, item["loc"], absent=item["type"] in ("missing", "extra_forbidden"))
        start, said = _say(kind, keys, item)
        said = said[:1].lower() + said[1:] if start in lines else said
        known = lines.setdefault(start, [])
        if said not in known:
            known.append(said)
    return "\n".join(f"{start}{', or '.join(said)}." for start, said in lines.items())


def _say(kind: type[Config], keys: list[str], item: Any) -> tuple[str, str]:
    """Where and what was seen; and what is allowed."""
    where = ".".join(keys) or kind.__name__
    seen, message = item.get("input"), _short(str(item["msg"]).removeprefix("Value error, ").rstrip("."))
    if item["type"] == "extra_forbidden":
        names = _names_beside(kind, keys[:-1])
        allowed = f".{nearest_name(keys[-1], names)} Allowed: {', '.join(names)}" if names else ""
        return f"{where}: ", f"there is no such setting{allowed}"
    if item["type"] == "missing":
        return f"{where}: ", "a value is required"
    if item["type"] == "value_error" and (not keys or isinstance(seen, Mapping | Config)):
        # Settings that contradict each other: the message names them; the whole group would bury it.
        return f"{where}: " if keys else "", message
    shown = repr(seen) if len(repr(seen)) <= _SHOWN else repr(seen)[: _SHOWN - 3] + "..."
    return f"{where}: got {shown} ({type(seen).__name__}). ", message


def _short(message: str) -> str:
    """A message that quotes what it saw is cut in its middle, where the quotation is."""
    return message if len(message) <= _MESSAGE else f"{message[:100]} ... {message[100 - _MESSAGE :]}"


def _keys(data: Any, location: Sequence[Any], *, absent: bool) -> list[str]:
    """The location without what is no key: the names that pydantic gives to the options of a union.

    `absent`: the last one is a key that the data lacks, or that the declared type does.
    """
    keys: list[str] = []
    node: Any = data
    for number, entry in enumerate(location):
        if isinstance(node, Config):
            node = dict(node)
        if (isinstance(node, Mapping) and entry in node) or (
            isinstance(node, list | tuple) and isinstance(entry, int) and entry < len(node)
        ):
            node = node[entry]
        elif not absent or number < len(location) - 1:
            continue
        keys.append(str(entry))
    return keys


def _names_beside(kind: type[Config], parents: list[str]) -> list[str]:
    """Settings of the group at a path, when the declared types alone say which that is."""
    group: Any = kind
    for key in parents:
        field = getattr(group, "model_fields", {}).get(key)
        group = field.annotation if field is not None else None
    return list(getattr(group, "model_fields", {}))
