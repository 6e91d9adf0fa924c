"""What is examined without labels during a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from glocal.config import Config


class VerdictConfig(Config):
    """The label-free examination during training. Never changes the weights of a run."""

    enabled: bool = True
    """Whether label-free figures and the score are measured."""
    every: Annotated[int, Field(ge=1)] | None = None
    """Steps between examinations; null: as often as about a two-hundredth of the run's arithmetic allows, at most 40 times."""
    images: Annotated[int, Field(ge=8)] = 256
    """How many images are examined. Retrieval is among them, so figures of other numbers don't compare."""
    data: str | None = None
    """Images that the run does not train on; null: the test or validation part of its data, where there is one, else some
    of its own images, and then overfitting can't be seen."""
