"""Typed configuration: one frozen base class, YAML in and out, and `a.b=c` overrides that fail before anything starts.

This room knows nothing of what is configured. Each part of the library owns its own `Config` subclass next to the code
it configures; `glocal.training.config.RunConfig` puts them together.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from glocal.errors import ConfigError, nearest_name


class Config(BaseModel):
    """A frozen group of settings. Unknown keys are refused, types are strict enough that `"fast"` is no number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


ConfigT = TypeVar("ConfigT", bound=Config)


def apply_overrides(config: ConfigT, overrides: Sequence[str]) -> ConfigT:
    """Return a copy of `config` with `a.b=c` strings applied; values are read as YAML and validated as one whole.

    Lists are indexed by number (`views.global.photometric.0=...`), mappings by key. Setting a mapping's entry to
    `null` removes it (`objectives.patch=null` drops that term).

    Raises:
        ConfigError: for a string without `=`, an unknown key (named with its nearest match) or a refused value.

    >>> class Small(Config):
    ...     rate: float = 1.0
    >>> apply_overrides(Small(), ["rate=2"]).rate
    2.0
    """
    data = config.model_dump(mode="json")
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(
                f"'{override}' is no override. Write key=value, for example training.epochs=10."
            )
        try:
            value = parse_value(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: '{text}' can't be read as a YAML value ({error}).") from error
        _set_path(data, type(config), path.split("."), value, path)
    return validate(type(config), data)


def parse_value(text: str) -> Any:
    """Read one YAML value; a number in scientific notation without a dot (`1e-4`) is a number, as people expect."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def validate(kind: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """Build `kind` from plain data, turning pydantic's report into one readable `ConfigError`."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(kind, item) for item in error.errors())) from error


def to_yaml(config: Config) -> str:
    """Write a configuration as YAML that `from_yaml` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def from_yaml(kind: type[ConfigT], text: str) -> ConfigT:
    """Read what `to_yaml` wrote."""
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise ConfigError(f"Expected a YAML mapping of settings, got {type(data).__name__}.")
    return validate(kind, data)


def _set_path(data: dict[str, Any], kind: type[Config], keys: list[str], value: Any, path: str) -> None:
    """Set one dotted path in plain data, checking every key on the way against the declared type or the data."""
    node: Any = data
    model: type[Config] | None = kind
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(
                    f"{path}: '{key}' is no position in a list of {len(node)} (0 to {len(node) - 1})."
                )
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if key not in node and not (last and model is None and value is not None):
                names = list(model.model_fields) if model is not None else list(node)
                raise ConfigError(
                    f"{path}: there is no setting '{key}' here.{nearest_name(key, names)} Allowed: {', '.join(names)}."
                )
        else:
            raise ConfigError(
                f"{path}: '{'.'.join(keys[:depth])}' is a single value ({node!r}); it has no '{key}'."
            )
        if last:
            if value is None and isinstance(node, dict) and model is None:
                del node[index]
            else:
                node[index] = value
            return
        model = _field_model(model, key) if isinstance(node, dict) else None
        if node[index] is None and model is not None:
            node[index] = model().model_dump()
        node = node[index]


def _field_model(model: type[Config] | None, key: str) -> type[Config] | None:
    """Return the Config class that a field holds, or None for a mapping, a list, a union of several or a plain value."""
    if model is None or key not in model.model_fields:
        return None
    annotation = model.model_fields[key].annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(annotation) if isinstance(a, type) and issubclass(a, Config)]
        annotation = options[0] if len(options) == 1 else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Config) else None


def _explain(kind: type[Config], item: Any) -> str:
    """Say one validation failure in a line: where, what was seen, what is allowed."""
    where = ".".join(str(part) for part in item["loc"]) or kind.__name__
    if item["type"] == "extra_forbidden":
        names = _allowed_names(kind, [str(part) for part in item["loc"][:-1]])
        hint = nearest_name(str(item["loc"][-1]), names)
        return f"{where}: there is no such setting.{hint}" + (
            f" Allowed: {', '.join(names)}." if names else ""
        )
    seen = item.get("input")
    if item["type"] == "missing":
        return f"{where}: a value is required."
    return f"{where}: got {seen!r} ({type(seen).__name__}). {item['msg']}."


def _allowed_names(kind: type[Config], parents: list[str]) -> list[str]:
    model: type[Config] | None = kind
    for key in parents:
        model = _field_model(model, key)
    return list(model.model_fields) if model is not None else []
