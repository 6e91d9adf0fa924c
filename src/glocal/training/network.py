"""The two networks of self-distillation, and the one step's forward pass over all objectives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from glocal.errors import ConfigError
from glocal.models.backbone import Backbone
from glocal.models.build import build_backbone
from glocal.models.features import Features, Masks
from glocal.models.frozen_teacher import FrozenTeacher, load_frozen
from glocal.models.position import make_tables_constant
from glocal.models.teacher import freeze
from glocal.objectives.base import Branch, Objective, Role
from glocal.schedules import Progress, Schedule, value_at
from glocal.training.config import RunConfig
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.keeping import kept_patches
from glocal.views.randomness import hash_seed

Built = TypeVar("Built")


class Network(nn.Module):
    """A backbone and, by name of the objective, the heads that its features go through."""

    def __init__(
        self, backbone: Backbone, heads: Mapping[str, nn.Module], hides_patches: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        # Here, not in the backbone: only training needs it, so it is neither the teacher's nor exported.
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.embed_dim)) if hides_patches else None
        self._embed: Callable[..., Features] | None = None

    def compile_passes(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile whole passes of the backbone: one graph for every view group, whatever stochastic depth drops.

        Only those of `features`: who asks the backbone itself, at other sizes, gets it as it is.
        """
        make_tables_constant()
        self._embed = torch.compile(self.backbone.forward, dynamic=False, backend=backend)

    def features(
        self,
        views: Views,
        groups: Mapping[str, ViewGroup],
        role: Role,
        masks: Mapping[str, Bool[Tensor, "batch views patches"]] | None = None,
    ) -> dict[str, Features]:
        """One backbone pass for each view group that this role sees, on the patches that it keeps, without those under
        `masks`; leading axes (batch, views).
        """
        features = {}
        for number, (name, group) in enumerate(groups.items()):
            if group.seen_by in (role, "both"):
                batch = views.groups[name]
                pixels = (batch.for_teacher if role == "teacher" else batch.pixels).flatten(0, 1)
                kept = None
                if role == "student" or group.keep_patches_of == "both":
                    rows, columns = self.backbone.grid(pixels)
                    kept = kept_patches(views.seed, number, group, rows * columns)
                hidden = None
                if masks and name in masks and self.mask_token is not None:
                    hidden = Masks(masks[name].flatten(0, 1), self.mask_token)
                embed = self._embed or self.backbone
                features[name] = embed(pixels, kept, hidden).unflatten(group.count)
        return features


@dataclass(frozen=True)
class StepInput:
    """What one step is computed from; `watch` asks for the scalars that cost something."""

    views: Views
    progress: Progress
    watch: bool


class SelfDistillation(nn.Module):
    """The student and every objective; `forward` gives the weighted sum of all terms.

    The teacher is held beside the module tree, so that no wrapper looks for its gradients and no optimiser finds it.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network,
        objectives: Mapping[str, Objective],
        groups: Mapping[str, ViewGroup],
        weights: Mapping[str, float | Schedule],
        autocast: torch.dtype | None = None,
        frozen_teacher: FrozenTeacher | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self._frozen_teacher = (frozen_teacher,)
        self.objectives = nn.ModuleDict(objectives)
        self._teacher = (teacher,)
        self.groups, self.weights, self.autocast = dict(groups), dict(weights), autocast

    @property
    def teacher(self) -> Network:
        """The moving average of the student."""
        return self._teacher[0]

    def terms(self) -> dict[str, Objective]:
        """The objectives by name."""
        return cast("dict[str, Objective]", dict(self.objectives.items()))

    def forward(self, given: StepInput) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of one batch with its whole graph, and detached scalars (see `loss`)."""
        teacher = self.teacher_features(given.views)
        frozen = self.frozen_features(given.views)
        return self.loss(self.student_features(given.views, given.progress), teacher, given, frozen)

    def student_features(self, views: Views, progress: Progress) -> dict[str, Features]:
        """What the student's backbone makes of the groups that it sees, with the masks of all terms that count now."""
        masks: dict[str, Tensor] = {}
        for name, objective in self.terms().items():
            if objective.hides_patches and value_at(self.weights[name], progress) != 0:
                for group, mask in objective.student_masks(views).items():
                    masks[group] = masks[group] | mask if group in masks else mask
        with self._precision(views):
            return self.student.features(views, self.groups, "student", masks)

    @torch.no_grad()
    def teacher_features(self, views: Views) -> dict[str, Features]:
        """What the teacher's backbone makes of the groups that it sees; nothing where no term reads it."""
        if not any(objective.needs_teacher for objective in self.terms().values()):
            return {}
        with self._precision(views):
            return self.teacher.features(views, self.groups, "teacher")

    @torch.no_grad()
    def frozen_features(self, views: Views) -> dict[str, Features]:
        """What the frozen model makes of the groups that a teacher sees; nothing where there is none."""
        frozen = self._frozen_teacher[0]
        if frozen is None:
            return {}
        with self._precision(views):
            return {
                name: frozen(views.groups[name].for_teacher.flatten(0, 1)).unflatten(group.count)
                for name, group in self.groups.items()
                if group.seen_by in ("teacher", "both")
            }

    def loss(
        self,
        student_features: Mapping[str, Features],
        teacher_features: Mapping[str, Features],
        given: StepInput,
        frozen_features: Mapping[str, Features] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted sum of all terms, and detached scalars by name ("image", "image.target_entropy", ...).

        Watched, `*.feature_gradient` says how hard each weighted term pulls at the student's features, which must be
        leaves of the graph for that.
        """
        total = torch.zeros((), device=given.views.device)
        scalars: dict[str, Tensor] = {}
        with self._precision(given.views):
            for name, objective in self.terms().items():
                student = Branch(self.student.backbone, self.student.heads[name], student_features)
                targets = (frozen_features or {}) if objective.needs_frozen else teacher_features
                teacher = Branch(self.teacher.backbone, self.teacher.heads[name], targets)
                term = objective(student, teacher, given.views, given.progress, given.watch)
                weighted = value_at(self.weights[name], given.progress) * term.loss
                total = total + weighted
                scalars[name] = term.loss.detach()
                if given.watch and weighted.requires_grad:
                    scalars[f"{name}.feature_gradient"] = _gradient_norm(weighted, student_features)
                scalars |= {f"{name}.{key}": value.detach() for key, value in term.scalars.items()}
        if given.watch:
            watched = next(iter((teacher_features or student_features).values()))
            scalars["teacher_cls"] = watched.cls.flatten(0, 1).detach().float()
        return total, scalars

    def _precision(self, views: Views) -> torch.autocast:
        """Autocast, a context for every pass: it keeps casts of weights, and those made without a graph have none."""
        return torch.autocast(views.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def finish_step(self) -> None:
        """Let every objective apply what this step gathered. Before the teacher moves: centres speak of its heads."""
        for objective in self.terms().values():
            objective.finish_step()

    def frozen(self, progress: Progress) -> list[nn.Parameter]:
        """Student parameters that stand still in this step."""
        return [p for n, o in self.terms().items() for p in o.frozen(self.student.heads[n], progress)]


def build_distillation(config: RunConfig, autocast: torch.dtype | None = None) -> SelfDistillation:
    """Make both networks and all objectives; the teacher starts as a copy of the student.

    Every part draws its initial weights from its own seed (run seed and the part's name), so that adding a term leaves
    the others' weights as they were: ablations compare like with like, and a term of weight 0 changes nothing.
    """
    objectives: dict[str, Objective] = {}
    students: dict[str, nn.Module] = {}
    teachers: dict[str, nn.Module] = {}
    backbone = seeded(config, "backbone", lambda: build_backbone(config.backbone))
    teacher_backbone = build_backbone(config.backbone.model_copy(update={"drop_path": 0.0}))
    size = config.teacher.frozen_size
    frozen = (
        load_frozen(config.teacher.frozen, config.mean, config.std, size) if config.teacher.frozen else None
    )
    for name, settings in config.active_objectives().items():
        shared = settings.head_of
        if shared in students:
            settings = settings.with_head_of(f"objectives.{name}", config.objectives[shared])
        objective = settings.build(backbone.embed_dim, config.views)
        objective.check_backbone(backbone)
        objective.meet_frozen(None if frozen is None else frozen.embed_dim)
        objectives[name] = objective
        if shared is not None and shared not in students:
            raise ConfigError(
                f"objectives.{name}.head_of is '{shared}'; it must name a term that comes before it: {', '.join(students) or 'none'}."
            )
        students[name] = (
            students[shared]
            if shared
            else seeded(config, name, functools.partial(objective.build_heads, "student"))
        )
        teachers[name] = teachers[shared] if shared else objective.build_heads("teacher")
    hides_patches = any(objective.hides_patches for objective in objectives.values())
    student, teacher = Network(backbone, students, hides_patches), Network(teacher_backbone, teachers)
    start = student.state_dict()
    teacher.load_state_dict({name: start[name] for name in teacher.state_dict()})
    freeze(teacher)
    weights = {name: settings.weight for name, settings in config.active_objectives().items()}
    return SelfDistillation(student, teacher, objectives, config.views, weights, autocast, frozen)


def _gradient_norm(loss: Tensor, features: Mapping[str, Features]) -> Tensor:
    """How hard a weighted term pulls at the backbone: the norm of its gradient by all of the student's features. Costs a
    backward pass through the term's own head, not through the backbone.
    """
    embeddings = [t for f in features.values() for t in (f.cls, f.patches, f.tokens_before_norm)]
    pulls = torch.autograd.grad(loss, embeddings, retain_graph=True, allow_unused=True)
    norms = [torch.linalg.vector_norm(g.float()) for g in pulls if g is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros_like(loss)


def seeded(config: RunConfig, purpose: str, build: Callable[[], Built]) -> Built:
    """Build under the seed of this purpose, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(config.seed, *purpose.encode()) & (2**63 - 1))
        return build()
