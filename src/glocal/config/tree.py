"""Settings put into a configuration by their path, without taking apart what lies beside it.

A configuration is a tree of `Config` objects, mappings and lists. Only the ones on the way to a setting are opened to
plain mappings, and pydantic builds these anew; every object beside the way is kept as it is, types included.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glocal.config.base import Config
from glocal.config.own import OwnKinds
from glocal.config.words import parse_value
from glocal.errors import ConfigError, nearest_name


@dataclass(frozen=True)
class Text:
    """A value as it was typed; what it means depends on the setting's type."""

    text: str

    def read(self, kind: Any, path: str) -> Any:
        """The value for a setting of this type.

        Raises:
            ConfigError: when it is no YAML.
        """
        options = _options(kind)
        own_kinds = _own_kinds(kind)
        if own_kinds is not None and (words := own_kinds.words(self.text)) is not None:
            return own_kinds.settings(words)
        if self.text in [
            value for o in options if typing.get_origin(o) is Literal for value in typing.get_args(o)
        ]:
            return self.text
        if str in options and set(options) <= {str, types.NoneType}:
            return None if types.NoneType in options and self.text in ("null", "~", "") else self.text
        try:
            return parse_value(self.text)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error.__cause__


class Opened(dict[str, Any]):
    """A `Config` taken apart: its fields by name. `kind` is the class that reads them again."""

    kind: type[Config]


def place(node: Any, kind: Any, keys: list[str], value: Text, path: str) -> Any:
    """Return `node`, whose declared type is `kind`, with a value at the end of `keys`."""
    key, *rest = keys
    node, index, below = _step(node, kind, key, bool(rest), path)
    if rest:
        node[index] = place(node[index], below, rest, value, path)
        return node
    read = value.read(below, path)
    if read is None and isinstance(node, dict) and not isinstance(node, Opened):
        if key not in node:
            raise ConfigError(_unknown(path, key, list(node)))
        del node[key]
    else:
        node[index] = read
    return node


def merge(node: Any, kind: Any, settings: Mapping[Any, Any], path: str) -> Any:
    """Return `node` with nested plain settings laid over it: mappings go into mappings, anything else replaces.

    None removes a mapping's entry.
    """
    for name, value in settings.items():
        key = str(name)
        where = f"{path}.{key}" if path else key
        node, index, below = _step(node, kind, key, False, where)
        present = node.get(index) if isinstance(node, dict) else node[index]
        if value is None and isinstance(node, dict) and not isinstance(node, Opened):
            node.pop(index, None)
            continue
        nested = isinstance(present, Config | dict) or (present is None and _config_option(below) is not None)
        node[index] = merge(present, below, value, where) if nested and isinstance(value, Mapping) else value
    return node


def _step(node: Any, kind: Any, key: str, deeper: bool, path: str) -> tuple[Any, Any, Any]:
    """Open one level: the opened node, the index of `key` in it, and the declared type there.

    A mapping takes new keys, but only for a whole entry; a list takes the positions it has.
    """
    if node is None and (option := _config_option(kind)) is not None:
        node = option()
    if isinstance(node, Config):
        opened = Opened({name: getattr(node, name) for name in type(node).model_fields})
        opened.kind, node = type(node), opened
    if isinstance(node, Opened):
        if key not in node:
            raise ConfigError(_unknown(path, key, list(node)))
        return node, key, node.kind.model_fields[key].annotation
    if isinstance(node, dict):
        if deeper and key not in node:
            raise ConfigError(_unknown(path, key, list(node)))
        return dict(node), key, _argument(kind, dict, -1)
    if isinstance(node, list | tuple):
        if not key.isdecimal() or int(key) >= len(node):
            raise ConfigError(
                f"{path}: '{key}' is no position in a list of {len(node)} (0 to {len(node) - 1})."
            )
        return list(node), int(key), _argument(kind, tuple, 0)
    raise ConfigError(f"{path}: '{_before(path, key)}' is a single value ({node!r}); it has no '{key}'.")


def _options(kind: Any) -> list[Any]:
    """The types that a declared type allows, without the annotations around them."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _options(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for member in typing.get_args(kind) for option in _options(member)]
    return [kind]


def _own_kinds(kind: Any) -> OwnKinds | None:
    """What opens a declared type to kinds of one's own, where something does."""
    return next((note for note in getattr(kind, "__metadata__", ()) if isinstance(note, OwnKinds)), None)


def _config_option(kind: Any) -> type[Config] | None:
    """The one Config class among the allowed types, or None."""
    options = [o for o in _options(kind) if isinstance(o, type) and issubclass(o, Config)]
    return options[0] if len(options) == 1 else None


def _argument(kind: Any, container: type, position: int) -> Any:
    """The declared type of a container's entries, when it says one."""
    return next(
        (typing.get_args(o)[position] for o in _options(kind) if typing.get_origin(o) is container), Any
    )


def _unknown(path: str, key: str, names: list[str]) -> str:
    return f"{path}: there is no setting '{key}' here.{nearest_name(key, names)} Allowed: {', '.join(names)}."


def _before(path: str, key: str) -> str:
    return path.rpartition(f".{key}")[0] or path
