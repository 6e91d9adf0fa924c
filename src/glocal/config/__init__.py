"""Typed configuration: one frozen base class, YAML in and out, and `a.b=c` overrides that fail before anything starts.

This room knows nothing of what is configured. Each part of the library owns its own `Config` subclass next to the code
it configures; `glocal.training.config.RunConfig` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from glocal.config.base import Config
from glocal.config.own import imported_kinds, open_union
from glocal.config.report import explain
from glocal.config.tree import Text, merge, place
from glocal.config.words import parse_value, read_yaml
from glocal.errors import ConfigError
from glocal.outside import given_path, reading

__all__ = [
    "Config",
    "apply_overrides",
    "apply_settings",
    "from_yaml",
    "imported_kinds",
    "open_union",
    "parse_value",
    "read_settings_file",
    "set_words",
    "to_yaml",
    "validate",
]

ConfigT = TypeVar("ConfigT", bound=Config)


def apply_overrides(config: ConfigT, overrides: Sequence[str]) -> ConfigT:
    """Return a copy of `config` with `a.b=c` strings applied; values are read as YAML and validated as one whole.

    What no override names stays the very object it was. A setting that holds text takes what is written, so that
    `data=2024` is a folder and no number. Lists are indexed by number (`views.global.photometric.0=...`), mappings by
    key. Setting a mapping's entry to `null` removes it (`objectives.patch=null` drops that term).

    Raises:
        ConfigError: for a string without `=`, an unknown key (named with its nearest match) or a refused value.

    >>> class Small(Config):
    ...     rate: float = 1.0
    >>> apply_overrides(Small(), ["rate=2"]).rate
    2.0
    """
    return apply_settings(config, overrides=overrides) if overrides else config


def apply_settings(config: ConfigT, *settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> ConfigT:
    """Return a copy of `config` with nested settings, such as a file's, and then overrides laid over it, validated as one
    whole: only the end result must fit together.

    Raises:
        ConfigError: as `apply_overrides`.

    >>> class Small(Config):
    ...     rate: float = 1.0
    >>> apply_settings(Small(), {"rate": 2}).rate
    2.0
    """
    tree: Any = config
    for layer in settings:
        tree = merge(tree, type(config), layer, "")
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path:
            raise ConfigError(
                f"'{override}' is no override. Write key=value, for example training.epochs=10."
            )
        tree = place(tree, type(config), path.split("."), Text(text), path)
    return validate(type(config), tree)


def set_words(kind: type[ConfigT], words: Mapping[str, str]) -> ConfigT:
    """Build `kind` from values as they were typed, each read as its setting's type.

    Raises:
        ConfigError: as `apply_overrides`; every required setting must be there.
    """
    return validate(
        kind, {key: Text(text).read(kind.model_fields[key].annotation, key) for key, text in words.items()}
    )


def validate(kind: type[ConfigT], data: Any) -> ConfigT:
    """Build `kind` from plain data, turning pydantic's report into one readable `ConfigError`."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(kind, data, error)) from error
    except RecursionError as error:
        raise ConfigError(f"{kind.__name__}: the settings are nested too deeply.") from error


def to_yaml(config: Config) -> str:
    """Write a configuration as YAML that `from_yaml` reads back to an equal object."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120
    )


def from_yaml(kind: type[ConfigT], text: str) -> ConfigT:
    """Read what `to_yaml` wrote.

    Raises:
        ConfigError: for text that is no YAML mapping, or settings that don't fit.
    """
    return validate(kind, _mapping(read_yaml(text)))


def read_settings_file(file: str | Path, key: str = "config") -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: when there is no such file, or it is no YAML mapping.
    """
    path = given_path(file, key)
    if not path.exists():
        raise ConfigError(f"{key}={path}: there is no such file.")
    with reading(path, "YAML settings", ConfigError, "Write one `key: value` a line."):
        text = path.read_text(encoding="utf-8")
    try:
        return _mapping(read_yaml(text))
    except ConfigError as error:
        raise ConfigError(f"{key}={path}: {error}") from error


def _mapping(plain: Any) -> dict[str, Any]:
    if not isinstance(plain, dict):
        raise ConfigError(f"Expected a YAML mapping of settings, got {type(plain).__name__}.")
    return {str(key): value for key, value in plain.items()}


class _Plain(yaml.SafeDumper):
    """Writes every value out: readers here refuse references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
