"""A union of kinds, told apart by a tag, that is open to kinds of one's own: `kind: my_terms.py:Agreement`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema, core_schema

from glocal.config.base import Config
from glocal.own_code import is_own, load_class, spec_of

KindT = TypeVar("KindT", bound=Config)


@dataclass(frozen=True)
class OwnKinds:
    """Annotation of a tagged union: the tag may name a subclass of `base` that has `needs` of its own.

    What is read keeps the words in its tag, so that it is written as it was named and read back by anybody who has the
    file.
    """

    base: type[Config]
    tag: str
    needs: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Own kinds first; whatever else is there goes to the union. Each is written by its own class."""
        return core_schema.no_info_wrap_validator_function(
            self._read, handler(source), serialization=core_schema.simple_ser_schema("any")
        )

    def words(self, value: Any) -> str | None:
        """The words in a value's tag that name code, or None."""
        tag = value.get(self.tag) if isinstance(value, Mapping) else value
        return tag if is_own(tag) else None

    def settings(self, words: str) -> Config | dict[str, str]:
        """What words alone stand for: the default settings, or a mapping where some are required."""
        kind = self.kind(words)
        required = any(field.is_required() for field in kind.model_fields.values())
        return {self.tag: words} if required else kind()

    def kind(self, words: str) -> type[Config]:
        """The class that the words name, with them as its tag.

        Raises:
            ConfigError: when they name none.
        """
        return _tagged(words, self.base, self.tag, self.needs)

    def _read(self, value: Any, others: Any) -> Any:
        words = self.words(value)
        if words is not None:
            settings = value if isinstance(value, Mapping) else {}
            return self.kind(words).model_validate(dict(settings))
        if isinstance(value, self.base):
            if is_own(getattr(value, self.tag, None)):
                return value
            if not type(value).__module__.startswith("glocal."):
                plain = {name: getattr(value, name) for name in type(value).model_fields if name != self.tag}
                return self.kind(spec_of(type(value))).model_validate(plain)
        return others(value)


def imported_kinds(namespace: Mapping[str, object], base: type[KindT], tag: str) -> dict[str, type[KindT]]:
    """The kinds that a module has imported, by their tags: importing another one there is all it takes to add it."""
    return {
        kind.model_fields[tag].default: kind
        for kind in namespace.values()
        if isinstance(kind, type) and issubclass(kind, base) and tag in kind.model_fields
    }


def open_union(kinds: Mapping[str, type[KindT]], base: type[KindT], tag: str, needs: tuple[str, ...]) -> Any:
    """The annotation of a setting that holds one of these kinds, told apart by `tag`, or one of somebody's own."""
    together: Any = functools.reduce(operator.or_, kinds.values())
    return Annotated[together, Field(discriminator=tag), OwnKinds(base, tag, needs)]


@functools.cache
def _tagged(words: str, base: type[Config], tag: str, needs: tuple[str, ...]) -> type[Config]:
    named = load_class(words, base, tag, needs)
    tag_field: Any = {tag: (Literal[words], words)}
    made = create_model(
        named.__name__, __base__=named, __module__=named.__module__, __doc__=named.__doc__, **tag_field
    )
    return cast("type[Config]", made)
