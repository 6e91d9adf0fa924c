"""The whitened patch embedding: what it does to patches, from what it is computed, and when it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config
from narrowing import of_kind, present
from PIL import Image

from glocal.data import open_source
from glocal.models.backbone import BackboneConfig
from glocal.models.initialisation import whiten
from glocal.models.vit import PatchEmbed
from glocal.recipes import configure
from glocal.training.loop import pretrain
from glocal.training.network import build_distillation
from glocal.training.whitening import patch_moments, start_whitened
from glocal.views.groups import ViewGroup


def whitened(patches: np.ndarray, width: int) -> tuple[np.ndarray, torch.nn.Conv2d]:
    """Outputs over patches of 3x2x2 numbers, and the projection."""
    projection = torch.nn.Conv2d(3, width, 2, 2)
    covariance = np.cov(patches, rowvar=False, bias=True)
    whiten(
        projection, torch.from_numpy(patches.mean(0)), torch.from_numpy(covariance), torch.Generator().manual_seed(0)
    )  # fmt: skip
    weight = projection.weight.detach().flatten(1).double().numpy()
    return patches @ weight.T + present(projection.bias).detach().double().numpy(), projection


@pytest.mark.parametrize("width", [12, 30, 5])
def test_outputs_are_uncorrelated_with_mean_variance_one(width: int) -> None:
    generator = np.random.default_rng(0)
    # Variances within a factor of 4, so that the floor of 0.01 changes them by little.
    patches = generator.normal(size=(5000, 12)) * np.linspace(1, 2, 12) + 3.0
    outputs, _ = whitened(patches @ np.linalg.qr(generator.normal(size=(12, 12)))[0], width)
    covariance = np.cov(outputs, rowvar=False, bias=True)
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-4)
    assert np.trace(covariance) / width == pytest.approx(1, abs=1e-4)
    values = np.linalg.eigvalsh(covariance)[-min(width, 12) :]
    assert values.max() / values.min() < 1.04
    if width <= 12:
        np.testing.assert_allclose(covariance, np.eye(width), atol=0.04)


def test_weak_directions_are_not_blown_up() -> None:
    generator = np.random.default_rng(0)
    spread = np.r_[np.ones(6), np.full(6, 1e-4)]
    outputs, projection = whitened(generator.normal(size=(5000, 12)) * spread, 12)
    assert np.linalg.eigvalsh(np.cov(outputs, rowvar=False))[:6].max() < 1e-3
    assert projection.weight.abs().max() < 20


def test_moments_are_those_of_the_normalised_images() -> None:
    config = small_config(
        data="digits",
        backbone=BackboneConfig(size="micro", patch_size=4, image_size=8),
        views={"global": ViewGroup(count=2, size=8, area=(0.4, 1.0))},
    )
    source = open_source("digits")
    model = build_distillation(config)
    moments = patch_moments(source, config, of_kind(PatchEmbed, model.student.backbone.patch_embed))
    images = np.stack([np.asarray(source.read(i)) for i in range(len(source))]).astype(np.float64) / 255
    images = (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    cut = images.reshape(-1, 2, 4, 2, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 48)
    assert len(cut) - 32 < moments.patches <= len(cut)
    np.testing.assert_allclose(moments.mean, cut.mean(0), atol=0.01)
    np.testing.assert_allclose(moments.covariance, np.cov(cut, rowvar=False), atol=0.05)


def test_both_networks_start_whitened_and_equal_in_every_process() -> None:
    config = small_config()
    source = open_source("digits")
    models = [build_distillation(config) for _ in range(2)]
    drawn = models[0].student.backbone.get_parameter("patch_embed.proj.weight").detach().clone()
    for model in models:
        torch.manual_seed(len(str(model)))
        start_whitened(model, source, config)
    first, second = (model.student.backbone.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(
        models[0].teacher.backbone.get_parameter("patch_embed.proj.weight"), first["patch_embed.proj.weight"]
    )
    assert first["patch_embed.proj.weight"].shape == drawn.shape
    assert not torch.equal(drawn, first["patch_embed.proj.weight"])


def test_fewer_patches_than_pixels_still_whiten(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    config = small_config(data=str(tmp_path))
    model = build_distillation(config)
    start_whitened(model, open_source(str(tmp_path)), config)
    assert bool(model.student.backbone.get_parameter("patch_embed.proj.weight").isfinite().all())


def test_a_run_starts_whitened(tmp_path: Path) -> None:
    fast = [
        "training.steps=1",
        "training.batch_size=8",
        "probe.enabled=false",
        "speed.workers=0",
        "speed.precision=fp32",
    ]
    more = ["backbone.patch_embed_init=whitened", "optimiser.learning_rate=1e-12"]
    config = configure("dino", data="digits", out=str(tmp_path), preset="cifar", overrides=[*fast, *more])
    pretrain(config)
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["teacher"]
    model = build_distillation(config)
    start_whitened(model, open_source("digits"), config)
    expected = model.student.backbone.get_parameter("patch_embed.proj.weight")
    torch.testing.assert_close(state["backbone.patch_embed.proj.weight"], expected.detach())
