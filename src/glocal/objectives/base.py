"""What an objective is: one term of the loss.

It says how its heads are built, computes a scalar from both networks' features, and keeps the little state its paper
asks for (a centre, a queue) as buffers. It never touches optimiser, devices, files or logging. The teacher's copy of
its heads is kept by the one EMA.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal.config import Config
from glocal.errors import ConfigError
from glocal.models.backbone import Backbone
from glocal.models.features import Features
from glocal.schedules import Progress, Schedule
from glocal.views.batch import Views

if TYPE_CHECKING:
    from glocal.views.groups import ViewGroup

Role = Literal["student", "teacher"]


@dataclass(frozen=True)
class Branch:
    """One network as an objective sees it: the backbone, this objective's own heads, and features by view group.

    Features have leading axes (batch, views). `features` holds the groups this network saw, in the recipe's order.
    """

    backbone: Backbone
    heads: nn.Module
    features: Mapping[str, Features]


class Term(NamedTuple):
    """A loss to be weighted and summed, and named detached scalars to be logged (tensors: reading them syncs)."""

    loss: Float[Tensor, ""]
    scalars: dict[str, Tensor]


class ObjectiveConfig(Config):
    """Settings common to all terms. Subclasses add `kind: Literal[...]` and `build`."""

    weight: float | Schedule = 1.0
    """Factor of this term in the total; a number or a schedule. 0 leaves the term out altogether."""
    shares_heads: ClassVar[bool] = True
    """Whether the heads are no more than what the setting `head` describes."""
    head_of: str | None = None
    """Name of an earlier term whose heads this one uses too, sizes and all; null: heads of its own."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> Objective:
        """Make the objective for a backbone of this embedding size and these view groups."""
        raise NotImplementedError

    def with_head_of(self, key: str, other: ObjectiveConfig) -> ObjectiveConfig:
        """These settings with the head of another term, whose heads this one shares; `key` is where this one stands.

        Raises:
            ConfigError: when the other term's heads are of another kind.
        """
        mine, theirs = (getattr(term, "head", None) for term in (self, other))
        sharing = self.shares_heads and other.shares_heads
        if not sharing or mine is None or type(mine) is not type(theirs):
            raise ConfigError(
                f"{key}.head_of is '{self.head_of}', a {type(other).__name__} whose heads a {type(self).__name__} can't "
                f"use. Leave {key}.head_of out, or name a term with the same kind of head."
            )
        return self.model_copy(update={"head": theirs})

    def check_batch(self, key: str, batch_size: int, groups: Mapping[str, ViewGroup]) -> None:
        """Raise ValueError when a step of this many images can't be served; `key` is where this term is configured."""


class Objective(nn.Module, ABC):
    """One term of the loss. Buffers are its state and are saved; parameters live in its heads, never here."""

    hides_patches: ClassVar[bool] = False
    """Whether the term masks patches of the student's views, which then has a learnt vector in their place."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the term reads the teacher's features. When no term does, the teacher sees no images: it follows the
        student and is exported, at no cost but the moving average.
        """
        return True

    @property
    def needs_frozen(self) -> bool:
        """Whether the term reads the features of `teacher.frozen` in place of the moving average's."""
        return False

    def meet_frozen(self, embed_dim: int | None) -> None:
        """Take note of the frozen teacher's width; None where there is none. Called once, before heads are built.

        Raises:
            ConfigError: when the term needs one.
        """

    @abstractmethod
    def build_heads(self, role: Role) -> nn.Module:
        """New heads for one network. The teacher's start as a copy of the student's parameters of the same name;
        what only the student has (a predictor) is simply absent from the teacher's.
        """

    def check_backbone(self, backbone: Backbone) -> None:
        """Raise ConfigError when this backbone can't serve the term. Called once, before anything starts."""

    @abstractmethod
    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """The term on one (micro-)batch. `watch` asks for the statistics that cost something; they must not change the
        loss. Statistics for the state are gathered here and applied in `finish_step`.
        """

    def student_masks(self, views: Views) -> Mapping[str, Bool[Tensor, "batch views patches"]]:
        """Patches of the grid that the student must do without in this step, by view group, on the CPU; a function of
        the images' seeds. Asked for only where `hides_patches`.
        """
        return {}

    def frozen(self, heads: nn.Module, progress: Progress) -> Iterable[nn.Parameter]:
        """Parameters of the student's heads that get no gradient in this step (prototypes in the first epochs)."""
        return ()

    def finish_step(self) -> None:
        """Apply what the micro-batches of this step gathered (centre, queue), across processes. Once a step."""
