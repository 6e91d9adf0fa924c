"""What Mugs' instance and local-group terms share: contrastive heads, the key queue and the pairs of views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from glocal.models.heads import PredictionHead
from glocal.objectives.base import Objective, ObjectiveConfig, Role
from glocal.objectives.by_contrast.gathered_memory import GatheredMemory
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.by_contrast.queue_info_nce import Queue, info_nce
from glocal.objectives.by_contrast.ring_memory import StorageType
from glocal.objectives.view_pairs import pair_table, repeat_over_batch, views_seen_by
from glocal.schedules import Progress, Schedule, value_at
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

Positive = Annotated[int, Field(ge=1)]


class ContrastiveHeadConfig(ProjectionConfig):
    """A projection onto the unit sphere, and the student's predictor behind it (Mugs)."""

    hidden: Positive = 2048
    """Width of its hidden layers."""
    layers: Positive = 3
    """Its linear layers."""
    out_dim: Positive = 256
    """Width of what it puts out."""
    predictor_hidden: Positive = 4096
    """Hidden width of the student's predictor."""
    init: Literal["trunc_normal", "fan_in"] = "trunc_normal"
    """How weights are drawn, as `backbone.init`."""

    def with_predictor(self, embed_dim: int, role: Role) -> ContrastiveHead:
        """A new head for embeddings of this size."""
        return ContrastiveHead(self, embed_dim, role)


class ContrastiveHead(nn.Module):
    """Projection, then for the student prediction; either way onto the unit sphere.

    >>> import torch
    >>> ContrastiveHead(ContrastiveHeadConfig(hidden=8, out_dim=4), 16, "teacher")(torch.randn(5, 16)).shape
    torch.Size([5, 4])
    """

    def __init__(self, config: ContrastiveHeadConfig, embed_dim: int, role: Role) -> None:
        super().__init__()
        self.projection = config.build(embed_dim)
        self.prediction = (
            PredictionHead(config.out_dim, hidden=config.predictor_hidden) if role == "student" else None
        )

    def forward(self, x: Float[Tensor, "*batch embed_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Unit vectors, float32: predictions of the student, keys of the teacher."""
        projected: Tensor = self.projection(x)
        return projected if self.prediction is None else self.prediction(projected)


class QueueContrastConfig(ObjectiveConfig):
    """What the instance and the local-group term have in common: head, queue, temperature and pairs."""

    head: ContrastiveHeadConfig = ContrastiveHeadConfig()
    temperature: float | Schedule = 0.2
    """Divides the similarities: lower weighs the hardest negatives more."""
    pair_weights: Literal["flat", "balanced"] = "balanced"
    """`balanced`: views as large as the teacher's share one half, smaller ones the other (Mugs). `flat`: every pair
    counts alike."""
    skip_same_number: bool = False
    """Leave out the pair of the student's and the teacher's n-th view though they are different crops (reference)."""
    queue: Positive = 65536
    """Keys to be told apart from; a step writes one a teacher view and image."""
    exclude_own: bool = True
    """An image's keys and rows of earlier epochs are neither its negatives nor its neighbours."""
    storage: StorageType = "bf16"
    """Of queue and memories."""
    fill_random: bool = False
    """Queue and memories start full of noise that counts as rows (reference), instead of empty."""

    def check_batch(self, key: str, batch_size: int, groups: Mapping[str, ViewGroup]) -> None:
        """Every key of a step must fit into the queue, or some would be lost before they served once."""
        keys = batch_size * len(views_seen_by("teacher", groups))
        if self.queue < keys:
            raise ValueError(
                f"{key}.queue={self.queue} is smaller than the {keys} keys of one step ({batch_size} images x "
                f"{keys // batch_size} teacher views). Set {key}.queue to at least {keys}, better many times that, or "
                "lower training.batch_size"
            )


class QueueContrast(Objective):
    """Pairs of views, a key queue and the InfoNCE between them; subclasses say what is told apart."""

    def __init__(self, config: QueueContrastConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.embed_dim, self.contrast = embed_dim, config
        self.teacher_views = views_seen_by("teacher", groups)
        self.student_views = views_seen_by("student", groups)
        self.pairs = pair_table(
            self.teacher_views, self.student_views, groups, config.pair_weights, config.skip_same_number
        )
        self.queue = GatheredMemory(
            config.queue, config.head.out_dim, config.storage, unit_rows=True, fill_random=config.fill_random
        )

    def against_queue(
        self,
        predictions: Float[Tensor, "batch student_views out_dim"],
        keys: Float[Tensor, "batch teacher_views out_dim"],
        views: Views,
        progress: Progress,
    ) -> Float[Tensor, ""]:
        """Mean over images of the weighted mean over pairs; keeps the keys for the end of the step."""
        batch, students = predictions.shape[:2]
        device = predictions.device
        image = views.index.to(device, non_blocking=True)
        pairs = repeat_over_batch(self.pairs, batch, students, keys.shape[1], device)
        loss = info_nce(
            predictions.flatten(0, 1),
            keys.flatten(0, 1),
            Queue(self.queue.rows(), self.queue.images()),
            pairs,
            value_at(self.contrast.temperature, progress),
            image.repeat_interleave(students) if self.contrast.exclude_own else None,
        )
        self.queue.gather(keys, image)
        return loss / batch

    def watch_queue(self) -> dict[str, Tensor]:
        """How full the queue is, and how many steps old its keys are on average."""
        return {"queue_fill": self.queue.fill(), "queue_age": self.queue.mean_age()}

    def finish_step(self) -> None:
        """Enqueue this step's keys of all processes."""
        self.queue.finish_step()
