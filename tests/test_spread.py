"""The terms that spread embeddings (coding rate, KoLeo, kernel density, SIGReg) against slow NumPy versions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GROUPS, make_views, small_config
from narrowing import of_kind

from glocal.objectives import CharacteristicConfig, CodingRateConfig, SpreadConfig
from glocal.objectives.base import ObjectiveConfig, Role
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.by_spread.characteristic import Characteristic, random_lines
from glocal.objectives.by_spread.coding_rate import coding_rate
from glocal.objectives.by_spread.spread import kernel_density_loss, nearest_distance_loss
from glocal.schedules import Progress
from glocal.training.network import Network, SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views

PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)
HEAD = ProjectionConfig(hidden=24, out_dim=8)


def build(term: ObjectiveConfig) -> SelfDistillation:
    model = build_distillation(small_config(objectives={"term": term}))
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            noise = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    return model


def embeddings(network: Network, views: Views, role: Role) -> np.ndarray:
    """(batch, all views, dim) class embeddings in float64, through the term's head."""
    features = network.features(views, GROUPS, role)
    cls = network.heads["term"](torch.cat([f.cls for f in features.values()], dim=1))
    return np.asarray(cls.detach().double().numpy())


def slow_rate(z: np.ndarray, distortion: float) -> float:
    """Z (images, width) of one view."""
    n, p = z.shape
    second = sum(np.outer(row, row) for row in z)
    return float((p + n) / (p * n) * 0.5 * np.linalg.slogdet(np.eye(p) + p / (n * distortion) * second)[1])


@pytest.mark.parametrize(
    ("targets", "spread_of"), [("teacher", "mean"), ("teacher", "student"), ("student", "mean")]
)
def test_coding_rate_equals_a_loop(targets: str, spread_of: str) -> None:
    term = CodingRateConfig(head=HEAD, targets=targets, spread_of=spread_of, expansion=0.7, distortion=0.2)
    model = build(term)
    views = make_views(6, seed=1)
    loss, scalars = model(StepInput(views, PROGRESS, True))
    ours = embeddings(model.student, views, "student")
    theirs = ours if targets == "student" else embeddings(model.teacher, views, "teacher")
    cosines = [
        ours[i, s] @ theirs[i, t]
        for i in range(6)
        for s in range(5)
        for t in range(theirs.shape[1])
        if s != t
    ]
    mixed = targets == "teacher" and spread_of == "mean"
    rates = [slow_rate((ours[:, v] + theirs[:, v]) / 2 if mixed else ours[:, v], 0.2) for v in range(2)]
    assert scalars["term.alignment"].item() == pytest.approx(np.mean(cosines), rel=1e-5)
    assert scalars["term.coding_rate"].item() == pytest.approx(np.mean(rates), rel=1e-5)
    assert loss.item() == pytest.approx(-np.mean(cosines) - 0.7 * np.mean(rates), rel=1e-5)


def test_coding_rate_is_largest_for_directions_that_differ() -> None:
    apart, alike = torch.eye(8)[None], torch.eye(8)[:1].expand(8, 8)[None]
    assert coding_rate(apart, 0.05) > 2 * coding_rate(alike, 0.05)


@pytest.mark.parametrize("form", ["koleo", "kernel_density"])
def test_spread_equals_a_loop(form: str) -> None:
    model = build(SpreadConfig(weight=1.0, form=form, concentration=3.0))
    views = make_views(6, seed=2)
    loss, scalars = model(StepInput(views, PROGRESS, True))
    x = embeddings(model.student, views, "student")[:, :2]
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    terms, nearest = [], []
    for view in range(2):
        for i in range(6):
            others = [x[j, view] for j in range(6) if j != i]
            nearest.append(max(x[i, view] @ y for y in others))
            if form == "koleo":
                terms.append(-np.log(min(np.linalg.norm(x[i, view] - y) for y in others) + 1e-8))
            else:
                terms.append(np.log(np.mean([np.exp(3.0 * (x[i, view] @ y - 1)) for y in others])))
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert scalars["term.nearest_cosine"].item() == pytest.approx(np.mean(nearest), rel=1e-5)


def test_repeated_images_leave_the_spread_finite() -> None:
    point = torch.nn.functional.normalize(torch.randn(1, 1, 8), dim=-1)
    x = point.repeat(1, 4, 1).requires_grad_()
    hidden = torch.eye(4, dtype=torch.bool)
    cosine = (x @ x.transpose(1, 2)).masked_fill(hidden, -torch.inf)
    for loss in (kernel_density_loss(cosine, hidden, 4.0), nearest_distance_loss(x, x, cosine.detach())):
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert loss.isfinite() and gradient.isfinite().all()
    assert kernel_density_loss(cosine, hidden, 4.0).item() == pytest.approx(0.0, abs=1e-5)


def slow_epps_pulley(y: np.ndarray, reach: float = 5.0, points: int = 17) -> float:
    """The whole axis of frequencies, complex numbers, one line."""
    t = np.linspace(-reach, reach, points)
    empirical = np.array([np.mean(np.exp(1j * f * y)) for f in t])
    gaussian = np.exp(-(t**2) / 2)
    integrand = np.abs(empirical - gaussian) ** 2 * gaussian
    return float(
        len(y) * sum((integrand[i] + integrand[i + 1]) / 2 * (t[i + 1] - t[i]) for i in range(points - 1))
    )


@pytest.mark.parametrize("tokens", ["class", "patches"])
def test_characteristic_equals_a_loop(tokens: str) -> None:
    model = build(CharacteristicConfig(weight=1.0, projections=5, tokens=tokens))
    views = make_views(4, seed=3)
    loss, _ = model(StepInput(views, PROGRESS, False))
    features = model.student.features(views, GROUPS, "student")["global"]
    lines = random_lines(32, 5, step=50).double().numpy()
    values = []
    for view in range(2):
        x = features.cls[:, view] if tokens == "class" else features.patches[:, view].flatten(0, 1)
        values += [slow_epps_pulley(x.detach().double().numpy() @ line) for line in lines.T]
    assert loss.item() == pytest.approx(np.mean(values), rel=1e-5)


def test_characteristic_tells_a_gaussian_from_what_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    term = of_kind(Characteristic, build(CharacteristicConfig()).objectives["term"])
    gaussian = torch.randn(512, 64, generator=generator)
    two_points = torch.randint(2, (512, 64), generator=generator) * 2.0 - 1.0
    assert term.statistic(gaussian) < 1.5
    assert all(term.statistic(x) > 10 for x in (two_points, 0.1 * gaussian, torch.zeros(512, 64)))


def test_every_step_has_its_own_lines() -> None:
    assert torch.equal(random_lines(8, 3, 5), random_lines(8, 3, 5))
    assert not torch.equal(random_lines(8, 3, 5), random_lines(8, 3, 6))


def test_none_of_these_pays_for_the_teacher() -> None:
    terms = [SpreadConfig(), CharacteristicConfig(), CodingRateConfig(head=HEAD, targets="student")]
    assert not any(build(term).objectives["term"].needs_teacher for term in terms)


def test_one_image_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        SpreadConfig().check_batch("objectives.spread", 1, GROUPS)
