"""Reading `key=value` words: which belong to the verb, which override a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from glocal.config import Config, set_words
from glocal.errors import ConfigError, nearest_name

Count = Annotated[int, Field(ge=0, le=1024)]
"""Of processes."""
Side = Annotated[int, Field(ge=1, le=16_384)]
"""Of an image, in pixels."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Index = Annotated[int, Field(ge=0)]
KindT = TypeVar("KindT", bound=Config)


class CollectionSettings(Config):
    """Which images a verb goes through, and how a model sees them."""

    data: str
    """Images: a folder, a list file, parquet, or a built-in name."""
    split: str | None = None
    """train, val, test or all; null: everything, or the training images where there are splits."""
    size: Side | None = None
    """Pixels of the square in which images are seen; null: the model's own."""
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: the first GPU where there is one."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the forward pass; auto: bfloat16 where the processor has the instructions."""
    workers: Count = 0
    """Processes that decode."""


def split_words(kind: type[KindT], words: Sequence[str]) -> tuple[KindT, list[str]]:
    """The verb's own settings, typed, and the rest of the words, which overrides a configuration.

    Raises:
        ConfigError: for a word without `=`, a setting given twice, one that is missing, or a refused value.

    >>> class Own(Config):
    ...     data: str
    >>> split_words(Own, ["data=x", "training.epochs=3"])
    (Own(data='x'), ['training.epochs=3'])
    """
    options: dict[str, str] = {}
    rest = []
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise ConfigError(f"'{word}' is no setting. Write key=value, for example data=photos/.")
        if key in options:
            raise ConfigError(f"{key} is given twice, as '{options[key]}' and '{value}'. Give it once.")
        if key in kind.model_fields:
            options[key] = value
        else:
            rest.append(word)
    missing = [
        name for name, field in kind.model_fields.items() if field.is_required() and name not in options
    ]
    if missing:
        raise ConfigError(f"Missing: {', '.join(f'{name}=...' for name in missing)}.")
    return set_words(kind, options), rest


def read_words(kind: type[KindT], words: Sequence[str]) -> KindT:
    """The verb's settings, where it takes no others.

    Raises:
        ConfigError: as `split_words`, and for a setting that the verb does not know, with the nearest one it does.
    """
    for word in words:
        key, separator, _ = word.partition("=")
        if separator and key not in kind.model_fields:
            names = sorted(kind.model_fields)
            raise ConfigError(
                f"There is no setting '{key}'.{nearest_name(key, names)} Allowed: {', '.join(names)}."
            )
    return split_words(kind, words)[0]
