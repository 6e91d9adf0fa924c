"""Local-group discrimination, Mugs' middle term: an image seen among its nearest neighbours, told from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from glocal.errors import ConfigError, ModelError
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.features import Features
from glocal.objectives.base import Branch, Role, Term
from glocal.objectives.by_contrast.gathered_memory import GatheredMemory
from glocal.objectives.by_contrast.queue_contrast import (
    ContrastiveHead,
    Positive,
    QueueContrast,
    QueueContrastConfig,
)
from glocal.objectives.by_contrast.relation_block import ImageToken, RelationBlock
from glocal.objectives.by_contrast.ring_memory import Nearest
from glocal.objectives.view_pairs import View
from glocal.schedules import Progress
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup


class LocalGroupConfig(QueueContrastConfig):
    """Mugs' local-group discrimination: what is remembered, how neighbours are found, and the contrast behind it."""

    kind: Literal["local_group"] = "local_group"
    shares_heads: ClassVar[bool] = False
    neighbours: Annotated[int, Field(ge=1)] = 8
    """Rows that a view's token attends to."""
    memory: Positive = 65536
    """Rows of each network's memory; a step writes one an image."""
    query: ImageToken = ImageToken(tokens="class")
    """What stands for a view: looks neighbours up and enters the relation block."""
    row: ImageToken = ImageToken(tokens="class")
    """What is remembered of an image's first large view. Best of the same space as `query`."""
    student_rows: Literal["weak", "all"] = "weak"
    """Whether the student's memory takes only images whose first large view has weak augmentation, or all."""
    double_advance: bool = False
    """Move the memories' pointers twice as far as was written (the reference's bug); needs `fill_random`."""

    def check_batch(self, key: str, batch_size: int, groups: Mapping[str, ViewGroup]) -> None:
        """Every key and every row of a step must fit."""
        super().check_batch(key, batch_size, groups)
        if self.memory < batch_size:
            raise ValueError(
                f"{key}.memory={self.memory} is smaller than the {batch_size} rows of one step. Set {key}.memory to at "
                f"least {batch_size}, better many times that, or lower training.batch_size"
            )

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> LocalGroup:
        """Make the term.

        Raises:
            ConfigError: when there are more neighbours than rows.
        """
        return LocalGroup(self, embed_dim, groups)


class LocalGroupHeads(nn.Module):
    """The relation block and the contrastive head behind it."""

    def __init__(self, relation: RelationBlock, contrast: ContrastiveHead) -> None:
        super().__init__()
        self.relation, self.contrast = relation, contrast


class FoundNeighbours(NamedTuple):
    """Images by number in the data set: whose views asked, and whose rows the teacher's memory gave (-1: noise)."""

    image: Int64[Tensor, " queries"]
    neighbour: Int64[Tensor, "queries k"]
    valid: Bool[Tensor, "queries k"]


class LocalGroup(QueueContrast):
    """InfoNCE between views that a relation block has put among their nearest neighbours.

    Zhou et al. 2022 (arXiv 2203.14415), local-group discrimination. Each network remembers recent images; a view's
    token fetches its nearest rows there (no gradient), one transformer block mixes them, the backbone's final norm and
    a contrastive head follow. Departures from the reference: query and rows are the class token behind the norm by
    default, which had the best k-NN and the purest neighbours in our study (there: the mean of all tokens before the
    norm, against that of patches behind it); rows never written and an image's own rows are not retrieved,
    and what is missing is not attended to; one pointer, one bfloat16 copy; and those of `instance`.

    After a watched step `found` holds the teacher's neighbours, for `neighbour_purity` where labels exist.
    """

    def __init__(self, config: LocalGroupConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__(config, embed_dim, groups)
        if config.neighbours > config.memory:
            raise ConfigError(
                f"neighbours is {config.neighbours}, more than the memory's {config.memory} rows. Lower neighbours or "
                "raise memory."
            )
        if config.double_advance and not config.fill_random:
            raise ConfigError("double_advance leaves rows that are never written; it needs fill_random=true.")
        self.config, self.groups = config, dict(groups)
        self.backbone_config: BackboneConfig | None = None
        self.memories = nn.ModuleDict(
            {
                role: GatheredMemory(
                    config.memory, embed_dim, config.storage,
                    fill_random=config.fill_random, double_advance=config.double_advance,
                )
                for role in ("student", "teacher")
            }
        )  # fmt: skip
        self.found: FoundNeighbours | None = None

    def check_backbone(self, backbone: Backbone) -> None:
        """The relation block takes the backbone's shape; what asks for the class token needs one.

        Raises:
            ConfigError: for a query or row with the class token of a backbone that has none.
        """
        for name, wanted in (("query", self.config.query), ("row", self.config.row)):
            if not backbone.config.class_token and wanted.needs_class_token():
                raise ConfigError(
                    f"local_group's {name}.tokens is '{wanted.tokens}' ({wanted.norm} the norm), but with "
                    "backbone.pooling=class_attention no class token is among the tokens. "
                    f"Set {name}.tokens=patches."
                )
        self.backbone_config = backbone.config

    def build_heads(self, role: Role) -> LocalGroupHeads:
        """Relation block, projection, and the student's predictor."""
        if self.backbone_config is None:
            raise ModelError(
                "The relation block takes its shape from the backbone; call check_backbone first."
            )
        relation = RelationBlock(self.backbone_config)
        return LocalGroupHeads(relation, self.config.head.with_predictor(self.embed_dim, role))

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Look up, relate, contrast; rows are remembered at the end of the step."""
        image = views.index.to(views.device, non_blocking=True)
        predictions, near_student = self._relate("student", student, self.student_views, image)
        with torch.no_grad():
            keys, near_teacher = self._relate("teacher", teacher, self.teacher_views, image)
        loss = self.against_queue(predictions, keys, views, progress)
        self._remember(student, teacher, views, image)
        if not watch:
            return Term(loss, {})
        self._keep_found(near_teacher, image)
        scalars = self.watch_queue()
        for role, near in (("student", near_student), ("teacher", near_teacher)):
            memory = self.memory(role)
            similarity = near.similarity.sum() / near.valid.sum().clamp(min=1)
            scalars |= {f"{role}_memory_fill": memory.fill(), f"{role}_memory_age": memory.mean_age()}
            scalars[f"{role}_neighbour_similarity"] = similarity
        return Term(loss, scalars)

    def memory(self, role: str) -> GatheredMemory:
        """The rows that this network remembers."""
        memory = self.memories[role]
        assert isinstance(memory, GatheredMemory)
        return memory

    def finish_step(self) -> None:
        """Enqueue this step's keys and remember its rows, of all processes."""
        super().finish_step()
        for role in self.memories:
            self.memory(role).finish_step()

    def _relate(
        self, role: Role, branch: Branch, views: Sequence[View], image: Int64[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch views out_dim"], Nearest]:
        """Each view's token among its neighbours, through the final norm and the head."""
        heads = branch.heads
        assert isinstance(heads, LocalGroupHeads)
        means = {name: self.config.query.of(branch.features[name]) for name in dict(views)}
        queries = torch.stack([means[name][:, number] for name, number in views], dim=1)
        flat = queries.flatten(0, 1)
        exclude = image.repeat_interleave(len(views)) if self.config.exclude_own else None
        near = self.memory(role).nearest(flat.detach(), self.config.neighbours, exclude)
        related = branch.backbone.norm(heads.relation(flat, near.rows, near.valid))
        return heads.contrast(related).unflatten(0, queries.shape[:2]), near

    def _remember(
        self, student: Branch, teacher: Branch, views: Views, image: Int64[Tensor, " batch"]
    ) -> None:
        """Keep a row of each image's first large view: all of the teacher's, those of weak views of the student's."""
        name, number = _first_large(self.teacher_views, self.groups)
        self.memory("teacher").gather(self._row(teacher.features[name], number), image)
        name, number = _first_large(self.student_views, self.groups)
        rows = self._row(student.features[name], number)
        if self.config.student_rows == "weak":
            # Coins live on the CPU, so their number is known without waiting for the device.
            weak = (~views.groups[name].strong[:, number]).nonzero()[:, 0].to(image.device, non_blocking=True)
            rows, image = rows[weak], image[weak]
        self.memory("student").gather(rows, image)

    def _row(self, features: Features, number: int) -> Float[Tensor, "batch 1 dim"]:
        one = Features(
            features.cls[:, number],
            features.patches[:, number],
            features.grid,
            features.tokens_before_norm[:, number],
        )
        return self.config.row.of(one).detach()[:, None]

    def _keep_found(self, near: Nearest, image: Int64[Tensor, " batch"]) -> None:
        source = self.memory("teacher").payload[near.slot]
        asking = image.repeat_interleave(len(self.teacher_views))
        self.found = FoundNeighbours(asking, source, near.valid & (source >= 0))


def neighbour_purity(neighbours: FoundNeighbours, labels: Int64[Tensor, " images"]) -> float:
    """Share of retrieved neighbours that have the label of the image that asked; NaN when there are none.

    >>> neighbours = FoundNeighbours(torch.tensor([0]), torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
    >>> neighbour_purity(neighbours, torch.tensor([7, 7, 3]))
    0.5
    """
    labels = labels.to(neighbours.image.device)
    same = labels[neighbours.image][:, None] == labels[neighbours.neighbour.clamp(min=0)]
    return float(same[neighbours.valid].float().mean())


def _first_large(views: Sequence[View], groups: Mapping[str, ViewGroup]) -> View:
    """The first view of the largest size."""
    return max(views, key=lambda view: groups[view[0]].height_width)
