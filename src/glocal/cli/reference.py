"""Every setting of every part, read from the code: what `glocal settings` prints and docs/settings.md holds."""

from __future__ import annotations

import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic.fields import FieldInfo

import glocal.cli
from glocal.config import Config

INTRODUCTION = """# Every setting

Made from the code by `glocal settings out=docs/settings.md`; a test compares them. `glocal settings PREFIX` prints the part
that begins so. A recipe may set other defaults: `glocal recipes RECIPE` shows what it resolves to.
"""
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", types.NoneType: "null"}
_MANY = 4
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """One row."""

    key: str
    allowed: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The settings of one part, and what it is in a line."""

    title: str
    about: str
    settings: list[Setting] = field(default_factory=list)


def sections() -> list[Section]:
    """All of them: the verbs', a run's, each objective's, each photometric operation's, each protocol's."""
    from glocal.evaluation.base import PROTOCOLS, protocol_class
    from glocal.objectives import AnyObjective
    from glocal.schedules import Schedule
    from glocal.training.config import RunConfig
    from glocal.views.groups import ViewGroup
    from glocal.views.photometric import Operation

    reference = [_section(f"glocal {name}", kind) for name, kind in _verbs()]
    reference.append(_section("A run", RunConfig))
    reference.append(_section("A group of views", ViewGroup, "views.NAME."))
    for kind in _configs(AnyObjective):
        reference.append(_section(f"Objective {_tag(kind, 'kind')}", kind, "objectives.NAME."))
    for kind in _configs(Operation):
        reference.append(_section(f"Photometric operation {_tag(kind, 'op')}", kind))
    reference.append(_section("A schedule, wherever a number may be one", Schedule))
    for name in PROTOCOLS:
        reference.append(_section(f"Protocol {name}", protocol_class(name), f"{name}."))
    return reference


def describe(kind: type[Config], prefix: str = "") -> list[Setting]:
    """Every setting of a configuration class, nested ones with dotted keys."""
    rows = []
    for name, info in kind.model_fields.items():
        annotation = info.annotation
        key = f"{prefix}{name}"
        if isinstance(annotation, type) and issubclass(annotation, Config):
            group = info.default if isinstance(info.default, Config) else None
            rows += [_with_default(row, group, f"{key}.") for row in describe(annotation, f"{key}.")]
        else:
            default = (
                "required" if info.is_required() else _short(info.get_default(call_default_factory=True))
            )
            rows.append(Setting(key, _allowed(info), default, _meaning(kind, name)))
    return rows


def as_markdown(reference: list[Section]) -> str:
    """The page of all settings."""
    lines = [INTRODUCTION]
    for section in reference:
        lines += [
            f"## {section.title}\n",
            f"{section.about}\n",
            "| setting | allowed | default | meaning |",
            "|---|---|---|---|",
        ]
        for row in section.settings:
            cells = (f"`{row.key}`", row.allowed, f"`{row.default}`", row.meaning)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def _section(title: str, kind: type[Config], prefix: str = "") -> Section:
    about = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
    return Section(title, about, describe(kind, prefix))


def _verbs() -> Iterator[tuple[str, type[Config]]]:
    """(verb, settings class) of every module of the command that has one."""
    for module in sorted(module.name for module in pkgutil.iter_modules(glocal.cli.__path__)):
        if module.startswith("_") or module == "settings":  # which verbs have in common
            continue
        loaded = importlib.import_module(f"glocal.cli.{module}")
        kinds = [k for k in vars(loaded).values() if isinstance(k, type) and issubclass(k, Config)]
        yield from ((module, kind) for kind in kinds if kind.__module__ == loaded.__name__)


def _configs(union: Any) -> list[type[Config]]:
    """The classes of an annotated union."""
    return [kind for kind in typing.get_args(typing.get_args(union)[0]) if issubclass(kind, Config)]


def _tag(kind: type[Config], name: str) -> str:
    return str(kind.model_fields[name].default)


def _meaning(kind: type[Config], name: str) -> str:
    """A setting's docstring, or that of the class it is inherited from."""
    for owner in kind.__mro__:
        info = getattr(owner, "model_fields", {}).get(name)
        if info is not None and info.description:
            return " ".join(info.description.split())
    single = typing.get_origin(kind.model_fields[name].annotation) is Literal
    return "Says which this is." if single and name in ("kind", "op") else ""


def _allowed(info: FieldInfo) -> str:
    """A type in words, with its bounds."""
    bounds = [
        f"{sign} {getattr(m, at)}" for m in info.metadata for at, sign in _BOUNDS.items() if hasattr(m, at)
    ]
    return ", ".join([_type_name(info.annotation), *bounds])


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _allowed(FieldInfo.from_annotation(annotation))
    if origin in (typing.Union, types.UnionType):
        if len(arguments) > _MANY:
            return "one of its kinds, below"
        return " or ".join(dict.fromkeys(_type_name(argument) for argument in arguments))
    if origin is Literal:
        return " | ".join(str(argument) for argument in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type_name(arguments[0])}"
        return f"[{', '.join(_type_name(argument) for argument in arguments)}]"
    if origin is dict:
        return f"{_type_name(arguments[1])} by name"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "a schedule" if annotation.__name__ == "Schedule" else annotation.__name__
    return _NAMES.get(annotation, "")


def _with_default(row: Setting, default: Config | None, prefix: str) -> Setting:
    """A nested row with the value that the group around it gives by default."""
    value: Any = default
    for key in row.key.removeprefix(prefix).split("."):
        value = getattr(value, key, None) if value is not None else None
    return row if default is None else Setting(row.key, row.allowed, _short(value), row.meaning)


def _short(value: object) -> str:
    if isinstance(value, Config):
        value = value.model_dump(exclude_defaults=True)
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
