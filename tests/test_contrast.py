"""NT-Xent against a slow NumPy version, with the student's own views and with the teacher's as targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GROUPS, make_views, small_config
from narrowing import present

from glocal.errors import ConfigError
from glocal.objectives import ContrastConfig
from glocal.objectives.base import Role
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.by_contrast.step_info_nce import step_info_nce
from glocal.schedules import Progress
from glocal.training.network import Network, SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)
HEAD = ProjectionConfig(hidden=24, out_dim=8)
TWO = {"global": GROUPS["global"]}


def build(groups: dict[str, ViewGroup], **settings: object) -> SelfDistillation:
    term = ContrastConfig.model_validate({"head": HEAD, **settings})
    model = build_distillation(small_config(views=groups, objectives={"contrast": term}))
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            noise = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    return model


def projected(network: Network, views: Views, groups: dict[str, ViewGroup], role: Role) -> np.ndarray:
    """(batch, all views, dim) in float64."""
    features = network.features(views, groups, role)
    cls = torch.cat([f.cls for f in features.values()], dim=1)
    return np.asarray(network.heads["contrast"](cls).detach().double().numpy())


def slow_contrast(anchors: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """One pair of views at a time; view t of an image is no target of its own view t."""
    terms = []
    for i in range(anchors.shape[0]):
        for s in range(anchors.shape[1]):
            others = [
                anchors[i, s] @ targets[j, v]
                for j in range(len(anchors))
                if j != i
                for v in range(targets.shape[1])
            ]
            for t in range(targets.shape[1]):
                if s != t:
                    logits = np.array([anchors[i, s] @ targets[i, t], *others]) / temperature
                    terms.append(np.log(np.exp(logits).sum()) - logits[0])
    return float(np.mean(terms))


@pytest.mark.parametrize("groups", [TWO, GROUPS], ids=["two views", "five views"])
@pytest.mark.parametrize("targets", ["student", "teacher"])
def test_loss_equals_one_pair_at_a_time(groups: dict[str, ViewGroup], targets: str) -> None:
    model = build(groups, targets=targets)
    views = make_views(4, groups, seed=1)
    loss, _ = model(StepInput(views, PROGRESS, False))
    anchors = projected(model.student, views, groups, "student")
    keys = anchors if targets == "student" else projected(model.teacher, views, groups, "teacher")
    assert loss.item() == pytest.approx(slow_contrast(anchors, keys, 0.2), rel=1e-5)


def test_two_views_are_the_published_cross_entropy() -> None:
    """The concatenated form of SimCLR: every view is classified as its other view among all others."""
    model = build(TWO)
    views = make_views(5, TWO, seed=2)
    loss, _ = model(StepInput(views, PROGRESS, False))
    z = model.student.heads["contrast"](model.student.features(views, TWO, "student")["global"].cls)
    z = torch.cat([z[:, 0], z[:, 1]])
    logits = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(10).roll(5))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_watched_figures_equal_their_definition() -> None:
    model = build(TWO)
    views = make_views(6, TWO, seed=3)
    _, scalars = model(StepInput(views, PROGRESS, True))
    z = projected(model.student, views, TWO, "student")
    cosine = np.einsum("bd,bd->b", z[:, 0], z[:, 1])
    hits = []
    for i in range(6):
        for s in range(2):
            others = [z[i, s] @ z[j, t] for j in range(6) if j != i for t in range(2)]
            hits.append(cosine[i] > max(others))
    assert scalars["contrast.positive_similarity"].item() == pytest.approx(cosine.mean(), rel=1e-4)
    assert scalars["contrast.accuracy"].item() == pytest.approx(np.mean(hits))


def test_without_a_negative_loss_and_gradient_are_zero() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = step_info_nce(logits, torch.ones(3, 4, dtype=torch.bool), logits[:, :1]).sum()
    loss.backward()
    assert loss.item() == 0.0 and not present(logits.grad).any()


def test_a_run_without_need_of_the_teacher_pays_for_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(TWO)
    assert not model.objectives["contrast"].needs_teacher
    monkeypatch.setattr(model.teacher.backbone, "forward", None)
    loss, scalars = model(StepInput(make_views(3, TWO), PROGRESS, True))
    assert loss.isfinite() and scalars["teacher_cls"].shape == (6, 32)


def test_one_image_a_step_is_refused() -> None:
    config = small_config(objectives={"contrast": ContrastConfig(head=HEAD)})
    with pytest.raises(ValueError, match="at least 2"):
        config.objectives["contrast"].check_batch("objectives.contrast", 1, GROUPS)


def test_a_single_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="another student view"):
        build({"global": GROUPS["global"].model_copy(update={"count": 1})})
