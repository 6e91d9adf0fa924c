"""Values as people write them: YAML without references, and numbers as people expect them."""

from __future__ import annotations

from typing import Any

import yaml

from glocal.errors import ConfigError
from glocal.outside import reason


class _NoReferences(yaml.SafeLoader):
    """A loader that refuses `*name`: ten lines of them stand for a gigabyte, or for themselves."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("references (*name) are not allowed; write the value out")
        return super().compose_node(parent, index)


def read_yaml(text: str) -> Any:
    """Plain data from YAML.

    Raises:
        ConfigError: for text that is none, in one line.
    """
    try:
        return yaml.load(text, Loader=_NoReferences)
    except Exception as error:  # YAMLError; ValueError for a date that is none; RecursionError
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        why = reason(error)
        if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
            why = f"{error.problem}, line {error.problem_mark.line + 1}"
        raise ConfigError(
            f"{shown!r} can't be read as YAML: {why}. Put it in quotes if it is text."
        ) from error


def parse_value(text: str) -> Any:
    """Read one YAML value; a number in scientific notation without a dot (`1e-4`) is a number, as people expect.

    Raises:
        ConfigError: for text that is no YAML.
    """
    value = read_yaml(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
