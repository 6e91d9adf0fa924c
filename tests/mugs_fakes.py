"""Small networks with Mugs' terms, and views for them."""

from __future__ import annotations

import numpy as np
import torch
from conftest import make_views, small_config

from glocal.objectives import InstanceConfig, LocalGroupConfig
from glocal.objectives.base import ObjectiveConfig
from glocal.objectives.by_contrast.queue_contrast import ContrastiveHeadConfig
from glocal.schedules import Progress
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)
GROUPS = {
    "teacher": ViewGroup(count=2, size=32, area=(0.4, 1.0), seen_by="teacher"),
    "global": ViewGroup(count=2, size=32, area=(0.4, 1.0), seen_by="student"),
    "local": ViewGroup(count=3, size=16, area=(0.1, 0.4), seen_by="student"),
}
COMMON = {
    "head": ContrastiveHeadConfig(hidden=24, out_dim=8, predictor_hidden=24),
    "queue": 40,
    "storage": "fp32",
}
INSTANCE = InstanceConfig(**COMMON)
LOCAL_GROUP = LocalGroupConfig(**COMMON, memory=20, neighbours=3)
STUDENT_VIEWS = [("global", 0), ("global", 1), ("local", 0), ("local", 1), ("local", 2)]


def build(groups: dict[str, ViewGroup] = GROUPS, **objectives: ObjectiveConfig) -> SelfDistillation:
    """Both networks, the teacher with weights of its own."""
    model = build_distillation(small_config(views=groups, objectives=objectives))
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            noise = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    return model


def run(
    model: SelfDistillation, views: Views, watch: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    outcome: tuple[torch.Tensor, dict[str, torch.Tensor]] = model(StepInput(views, PROGRESS, watch))
    return outcome


def views_of(batch: int, seed: int, first: int = 0, groups: dict[str, ViewGroup] = GROUPS) -> Views:
    """Views of images `first` to `first + batch - 1`."""
    views = make_views(batch, groups, seed=seed)
    return type(views)(views.groups, views.seed, views.index + first, views.source_size)


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()
