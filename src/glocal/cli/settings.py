"""Reading `key=value` words: which belong to the verb, which override a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from glocal.config import Config, parse_value
from glocal.errors import ConfigError, nearest_name


def split_settings(words: Sequence[str], own: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Split into the verb's own settings and the rest, which overrides a configuration.

    Raises:
        ConfigError: for a word without `=`.

    >>> split_settings(["data=x", "training.epochs=3"], ["data"])
    ({'data': 'x'}, ['training.epochs=3'])
    """
    names = set(own)
    mine: dict[str, str] = {}
    rest = []
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise ConfigError(f"'{word}' is no setting. Write key=value, for example data=photos/.")
        if key in names:
            mine[key] = value
        else:
            rest.append(word)
    return mine, rest


def require(settings: Mapping[str, str], *names: str) -> None:
    """Raise ConfigError naming the settings that a verb can't do without."""
    missing = [name for name in names if name not in settings]
    if missing:
        raise ConfigError(f"Missing: {', '.join(f'{name}=...' for name in missing)}.")


def refuse_rest(rest: Sequence[str], allowed: Iterable[str]) -> None:
    """Raise ConfigError for settings that a verb does not know, with the nearest one it does."""
    if rest:
        names = sorted(allowed)
        key = rest[0].partition("=")[0]
        raise ConfigError(
            f"There is no setting '{key}'.{nearest_name(key, names)} Allowed: {', '.join(names)}."
        )


def flag(value: str, name: str) -> bool:
    """Read true or false.

    Raises:
        ConfigError: for anything else.
    """
    parsed = parse_value(value)
    if not isinstance(parsed, bool):
        raise ConfigError(f"{name}={value}: expected true or false.")
    return parsed


def describe(kind: type[Config], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, meaning) of every setting of a configuration class, nested ones with dotted keys."""
    rows = []
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        default = field.default if not field.is_required() else "required"
        if (
            isinstance(default, Config)
            and isinstance(field.annotation, type)
            and issubclass(field.annotation, Config)
        ):
            rows += describe(field.annotation, f"{key}.")
        else:
            rows.append((key, _short(default), field.description or ""))
    return rows


def _short(value: object) -> str:
    text = str(value.model_dump()) if isinstance(value, Config) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
