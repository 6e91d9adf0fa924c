"""Distillation from a frozen model: the loss by hand, other widths, patches and pixels, and a run of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_views, small_config
from narrowing import of_kind, present

import glocal
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.errors import ConfigError
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.export import export_backbone
from glocal.models.frozen_teacher import FrozenTeacher
from glocal.models.vit import VisionTransformer
from glocal.objectives import DistilConfig, ImageLevelConfig
from glocal.recipes import configure
from glocal.schedules import Progress
from glocal.training import loop
from glocal.training.config import TeacherConfig
from glocal.training.gradients import backward
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views

PROGRESS = Progress(step=5, total_steps=10, steps_per_epoch=5)


def large(folder: Path, **settings: object) -> str:
    torch.manual_seed(1)
    values = {
        "size": "micro",
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 4,
        "patch_size": 16,
        "image_size": 32,
    }
    model = VisionTransformer(BackboneConfig.model_validate(values | settings))
    return str(export_backbone(model, folder, mean=(0.5,) * 3, std=(0.25,) * 3))


def build(spec: str, term: DistilConfig = DistilConfig(), **teacher: object) -> SelfDistillation:
    return build_distillation(
        small_config(objectives={"distil": term}, teacher=TeacherConfig(frozen=spec, **teacher))
    )


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def standard(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5))


def huber(a: np.ndarray, b: np.ndarray) -> float:
    d = np.abs(a - b)
    return float(np.where(d < 1, d**2 / 2, d - 0.5).mean(-1))


def centre(
    box: list[float], flip: torch.Tensor, row: int, column: int, grid: tuple[int, int]
) -> tuple[float, float]:
    """A patch's centre in source pixels."""
    top, left, height, width = box
    across = (column + 0.5) / grid[1]
    return top + (row + 0.5) / grid[0] * height, left + (1 - across if flip else across) * width


def by_hand(model: SelfDistillation, views: Views, distance: str) -> tuple[float, float]:
    """Every student patch against the teacher patch that holds its centre, in every teacher view; loops only."""
    state = {n: p.detach().double().numpy() for n, p in model.student.heads["distil"].named_parameters()}
    student, teacher = model.student_features(views, PROGRESS), model.frozen_features(views)
    scale = unit if distance == "cosine" else standard
    far = (lambda s, t: 1 - (unit(s) * t).sum(-1)) if distance == "cosine" else huber
    image, patch_loss, weight = [], 0.0, 0
    for b in range(len(views)):
        wanted = np.mean(
            [scale(f.cls[b, v].double().numpy()) for f in teacher.values() for v in range(f.cls.shape[1])], 0
        )
        for name, s in student.items():
            geometry = views.groups[name]
            for v in range(s.cls.shape[1]):
                projected = (
                    s.cls[b, v].detach().double().numpy() @ state["image.weight"].T + state["image.bias"]
                )
                image.append(far(projected, wanted))
                for number in range(s.patches.shape[2]):
                    y, x = centre(
                        geometry.box[b, v].tolist(), geometry.flip[b, v], *divmod(number, s.grid[1]), s.grid
                    )
                    found = []
                    for other, t in teacher.items():
                        for u in range(t.cls.shape[1]):
                            top, left, height, width = views.groups[other].box[b, u].tolist()
                            down, across = (y - top) / height, (x - left) / width
                            if not (0 <= down < 1 and 0 <= across < 1):
                                continue
                            across = 1 - across if views.groups[other].flip[b, u] else across
                            cell = int(down * t.grid[0]) * t.grid[1] + min(
                                int(across * t.grid[1]), t.grid[1] - 1
                            )
                            found.append(scale(t.patches[b, u, cell].double().numpy()))
                    if found:
                        own = s.patches[b, v, number].detach().double().numpy()
                        own = own @ state["patch.weight"].T + state["patch.bias"]
                        patch_loss += len(found) * far(own, np.mean(found, 0))
                        weight += len(found)
    return float(np.mean(image)), patch_loss / weight


@pytest.mark.parametrize("distance", ["cosine", "smooth_l1"])
def test_the_loss_is_its_definition(tmp_path: Path, distance: str) -> None:
    model = build(large(tmp_path), DistilConfig(distance=distance, bilinear=False, patch_weight=0.5))
    views = make_views(2)
    loss, scalars = model(StepInput(views, PROGRESS, False))
    image, patch = by_hand(model, views, distance)
    assert scalars["distil.image"].item() == pytest.approx(image, rel=1e-5)
    assert scalars["distil.patch"].item() == pytest.approx(patch, rel=1e-4)
    assert loss.item() == pytest.approx(image + 0.5 * patch, rel=1e-4)


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_gradients_reach_the_student_whatever_the_teachers_patches(tmp_path: Path, patch: int) -> None:
    model = build(large(tmp_path, patch_size=patch, image_size=4 * patch), frozen_size=56)
    frozen = present(model._frozen_teacher[0])
    before = {n: p.clone() for n, p in frozen.named_parameters()}
    loss, scalars = model(StepInput(make_views(3), PROGRESS, True))
    loss.backward()
    assert 0 < loss < 4 and all(value.isfinite().all() for value in scalars.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.student.parameters())
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in frozen.named_parameters())
    assert not any("frozen" in name for name in model.state_dict())


@pytest.mark.parametrize("distance", ["cosine", "smooth_l1"])
def test_micro_batches_are_one_step(tmp_path: Path, distance: str) -> None:
    spec = large(tmp_path)
    gradients = []
    for parts in (1, 2):
        model = build(spec, DistilConfig(distance=distance))
        backward(model, StepInput(make_views(4), PROGRESS, False), parts)
        gradients.append(torch.cat([present(p.grad).flatten() for p in model.student.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_frozen_teacher_sees_its_own_pixels() -> None:
    torch.manual_seed(0)
    backbone = VisionTransformer(BackboneConfig(size="micro", patch_size=8, image_size=32)).eval()
    encoder = Encoder("large", backbone, 64, 8, 32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1))
    teacher = FrozenTeacher(encoder, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pixels = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    ours = Encoder("student", backbone, 64, 8, 32, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(
        teacher(ours.normalise(pixels)).patches,
        encoder.features(encoder.normalise(pixels)).patches,
        atol=1e-4,
        rtol=1e-4,
    )
    larger = FrozenTeacher(encoder, mean=IMAGENET_MEAN, std=IMAGENET_STD, size=64)
    assert larger(torch.zeros(1, 3, 32, 48)).grid == (5, 8) and teacher(torch.zeros(1, 3, 30, 44)).grid == (
        4,
        6,
    )


def test_a_term_without_a_frozen_model_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"none is named\. Set teacher\.frozen=MODEL"):
        build_distillation(small_config(objectives={"distil": DistilConfig()}))


def test_a_student_learns_from_a_frozen_model_beside_another_term(tmp_path: Path) -> None:
    spec = large(tmp_path / "large")
    settings = ["training.batch_size=8", "training.steps=10", "training.log_every=1", "probe.enabled=false",
                "verdict.enabled=false", "speed.workers=0", "speed.precision=fp32", f"teacher.frozen={spec}",
                "optimiser.warmup_epochs=0"]  # fmt: skip
    config = configure("distil", data="digits", out=str(tmp_path / "run"), preset="cifar", overrides=settings)
    dino = configure("dino", data="DATA", out="x", preset="cifar")
    image = ImageLevelConfig(head=of_kind(ImageLevelConfig, dino.objectives["image"]).head)
    config = config.model_copy(update={"objectives": config.objectives | {"image": image}})
    run = loop.pretrain(config)
    losses = [json.loads(line)["distil"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.85 * losses[0]
    assert glocal.load(run).embed_dim == 128
