"""The relations term against slow NumPy versions: matched patches of two views, and the same view by an earlier self."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GROUPS, make_views, small_config
from narrowing import of_kind, present
from slow_matches import Place, all_matches
from torch import nn

from glocal.errors import ConfigError
from glocal.objectives import RelationsConfig
from glocal.objectives.base import Role
from glocal.objectives.by_relation.comparisons import centred_kernel_alignment
from glocal.objectives.by_relation.relations import _SALT, Relations
from glocal.schedules import Progress
from glocal.training.network import Network, SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.randomness import fold_in, uniforms

PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)


def build(groups: dict[str, ViewGroup] = GROUPS, **settings: object) -> SelfDistillation:
    model = build_distillation(
        small_config(views=groups, objectives={"term": RelationsConfig.model_validate(settings)})
    )
    perturb(model.teacher)
    return model


def earlier_self(model: SelfDistillation) -> nn.Module:
    return present(of_kind(Relations, model.objectives["term"]).earlier)


def perturb(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))


def arrays(
    network: Network, views: Views, role: Role, groups: dict[str, ViewGroup] = GROUPS
) -> dict[str, np.ndarray]:
    features = network.features(views, groups, role)
    return {name: f.patches.detach().double().numpy() for name, f in features.items()}


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def slow_cka(
    x: np.ndarray, y: np.ndarray, references: list[np.ndarray], image: int
) -> tuple[float, int] | None:
    n = len(x)
    if n < 3:
        return None
    centring = np.eye(n) - 1 / n
    gram_x, gram_y = (centring @ (z @ z.T) @ centring for z in (x, y))
    return 1 - np.sum(gram_x * gram_y) / np.linalg.norm(gram_x) / np.linalg.norm(gram_y), 1


def slow_gram(
    x: np.ndarray, y: np.ndarray, references: list[np.ndarray], image: int
) -> tuple[float, int] | None:
    if len(x) < 2:
        return None
    return np.mean((unit(x) @ unit(x).T - unit(y) @ unit(y).T) ** 2), 1


def slow_order(
    x: np.ndarray, y: np.ndarray, references: list[np.ndarray], image: int
) -> tuple[float, int] | None:
    others = [r for number, r in enumerate(references) if number != image]
    terms = []
    for a, b in zip(unit(x), unit(y), strict=True):
        p = np.exp([b @ r / 0.05 for r in others])
        q = np.exp([a @ r / 0.1 for r in others])
        terms.append(-(p / p.sum() * np.log(q / q.sum())).sum())
    return np.mean(terms), len(x)


SLOW = {"cka": slow_cka, "gram": slow_gram, "order": slow_order}


def reference_patches(patches: np.ndarray, views: Views) -> list[np.ndarray]:
    """A patch of every image's first view, drawn by the image's seed."""
    drawn = (uniforms(fold_in(views.seed, _SALT), 1)[:, 0] * patches.shape[2]).long()
    return [unit(patches[image, 0, number]) for image, number in enumerate(drawn.tolist())]


@pytest.mark.parametrize("form", SLOW)
def test_matched_patches_equal_a_loop_over_pairs_of_views(form: str) -> None:
    model = build(form=form)
    views = make_views(4, seed=3)
    loss, _ = model(StepInput(views, PROGRESS, False))
    student, teacher = arrays(model.student, views, "student"), arrays(model.teacher, views, "teacher")
    references = reference_patches(teacher["global"], views)
    terms = []
    for image in range(4):
        sets: dict[tuple[tuple[str, int], tuple[str, int]], list[tuple[Place, Place]]] = {}
        for one, two in all_matches(views, image, ["global"]):
            sets.setdefault((one[:2], two[:2]), []).append((one, two))
        for matches in sets.values():
            x = np.array([student[one[0]][image, one[1], one[2]] for one, _ in matches])
            y = np.array([teacher[two[0]][image, two[1], two[2]] for _, two in matches])
            term = SLOW[form](x, y, references, image)
            terms += [] if term is None else [term]
    values, weights = np.array(terms).T
    assert len(terms) > 10
    assert loss.item() == pytest.approx((values * weights).sum() / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("form", SLOW)
def test_an_earlier_self_is_compared_on_the_same_view(form: str, keep: float) -> None:
    """Whole views, and views of which the student saw a part."""
    groups = GROUPS | {"global": GROUPS["global"].model_copy(update={"keep_patches": keep})}
    model = build(groups, form=form, targets="earlier")
    perturb(earlier_self(model))
    views = make_views(3, groups, seed=4)
    loss, _ = model(StepInput(views, PROGRESS, False))
    features = model.student.features(views, groups, "student")["global"]
    whole = earlier_self(model)(views.groups["global"].pixels.flatten(0, 1))
    earlier = whole.unflatten(2).patches.double().numpy()
    references = reference_patches(earlier, views)
    terms = []
    for image in range(3):
        for view in range(2):
            kept = slice(None) if features.kept is None else features.kept[image, view].numpy()
            x = features.patches[image, view].detach().double().numpy()
            terms.append(present(SLOW[form](x, earlier[image, view][kept], references, image))[0])
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_alignment_ignores_rotation_and_scale_but_not_disorder() -> None:
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    every = torch.ones(1, 6, dtype=torch.bool)
    assert centred_kernel_alignment(x, 2.5 * x @ rotation + 1, every).item() == pytest.approx(1, abs=1e-5)
    assert centred_kernel_alignment(x, x.roll(1, dims=1), every).item() < 0.9


def test_the_earlier_self_is_the_start_until_it_is_renewed() -> None:
    model = build(form="gram", targets="earlier", refresh_steps=10)
    earlier, teacher = earlier_self(model), model.teacher.backbone

    def weight(backbone: nn.Module) -> torch.Tensor:
        return backbone.get_parameter("blocks.0.mlp.fc1.weight").clone()

    views = make_views(2)
    for step, renewed in ((0, True), (3, False), (10, True), (13, False)):
        perturb(model.teacher)
        before = weight(earlier)
        model(StepInput(views, Progress(step, 100, 10), False))
        assert torch.equal(weight(earlier), weight(teacher) if renewed else before)
    assert not any(p.requires_grad for p in earlier.parameters())
    assert not model.objectives["term"].needs_teacher


def test_it_stays_what_it_was_when_the_run_goes_on() -> None:
    model, other = build(targets="earlier"), build(targets="earlier")
    perturb(earlier_self(model))
    other.objectives.load_state_dict(model.objectives.state_dict())
    views = make_views(2)
    assert torch.equal(*(m(StepInput(views, PROGRESS, False))[0] for m in (model, other)))


def test_what_cannot_be_compared_is_refused() -> None:
    apart = {
        "student": ViewGroup(count=2, size=32, area=(0.4, 1.0), seen_by="student"),
        "teacher": ViewGroup(count=2, size=32, area=(0.4, 1.0), seen_by="teacher"),
    }
    with pytest.raises(ConfigError, match="both networks see"):
        build(apart, targets="earlier")
    with pytest.raises(ValueError, match="at least 2"):
        RelationsConfig(form="order").check_batch("objectives.term", 1, GROUPS)
