"""Controls without learning: raw pixels, random weights, k-means patches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import coloured, small_encoder
from typer.testing import CliRunner

from glocal import cli
from glocal.data import open_source
from glocal.errors import DataError
from glocal.evaluation import baselines as controls
from glocal.evaluation.base import evaluate
from glocal.evaluation.baselines import KMeansBackbone, baselines, kmeans_patches, pixels, random_weights
from glocal.evaluation.classification.knn import KnnConfig
from glocal.extraction.work import Work

QUIET = Work(progress=False)


@pytest.fixture(autouse=True)
def _few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "SAMPLED", 3000)
    monkeypatch.setattr(controls, "kmeans_patches", partial(kmeans_patches, centroids=12))


def slow_codes(patches: np.ndarray, model: KMeansBackbone) -> np.ndarray:
    """The triangle code of Coates et al., patch by patch in float64."""
    mean, whitening, centroids = (t.double().numpy() for t in (model.mean, model.whitening, model.centroids))
    rows = []
    for patch in patches.astype(np.float64):
        around = patch - patch.mean()
        normal = around / np.sqrt((around**2).mean() + 10 / 255**2)
        distance = np.sqrt((((normal - mean) @ whitening - centroids) ** 2).sum(1))
        rows.append(np.maximum(0, distance.mean() - distance))
    return np.array(rows)


def test_pixels_are_pixels_and_centred_ones_correlate() -> None:
    image = torch.rand(2, 3, 32, 32)
    plain, centred = (pixels(small_encoder(), centred=c) for c in (False, True))
    assert torch.equal(plain.features(plain.normalise(image)).cls, image.flatten(1))
    found = torch.nn.functional.normalize(centred.features(centred.normalise(image)).cls)
    expected = np.corrcoef(image.flatten(1).numpy())[0, 1]
    assert float(found[0] @ found[1]) == pytest.approx(expected, abs=1e-5)
    patches = plain.features(image).patches
    assert patches.shape == (2, 16, 3 * 64)
    corner = (image[0] - image[0].mean((1, 2), keepdim=True))[:, :8, :8]
    assert torch.allclose(patches[0, 0], corner.flatten())


def test_k_means_codes_equal_a_slow_version() -> None:
    source = coloured(40, 2, side=20)
    encoder = kmeans_patches(small_encoder(), source, centroids=12)
    model = encoder.backbone
    assert isinstance(model, KMeansBackbone)
    image = torch.rand(1, 3, 32, 32)
    features = encoder.features(image)
    every = torch.nn.functional.unfold(image, 6)[0].T.numpy()
    codes = slow_codes(every, model).reshape(27, 27, 12)
    quadrants = [
        codes[r, c].mean((0, 1)) for r in (slice(0, 14), slice(13, 27)) for c in (slice(0, 14), slice(13, 27))
    ]
    # adaptive pooling lists channels first
    assert np.allclose(features.cls[0].view(12, 4).T.numpy(), quadrants, atol=2e-4)
    assert features.patches.shape == (1, 16, 12)
    white = model.whitened(
        torch.nn.functional.unfold(torch.rand(9, 3, 32, 32), 6).transpose(1, 2).flatten(0, 1)
    )
    assert white.shape[1] == 108 and bool(white.isfinite().all())
    with pytest.raises(DataError, match="too few for 999999 centroids"):
        kmeans_patches(small_encoder(), source, centroids=999_999)


def test_random_weights_are_another_draw_of_the_same_network() -> None:
    encoder = small_encoder()
    one, same, other = random_weights(encoder, 0), random_weights(encoder, 0), random_weights(encoder, 1)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint() != encoder.fingerprint()
    assert one.backbone.config == encoder.backbone.config


def test_every_baseline_goes_through_the_protocols(tmp_path: Path) -> None:
    data = {"train": coloured(60, 3, name="train"), "test": coloured(30, 3, seed=1, name="test")}
    names = []
    for baseline in baselines(small_encoder(), data["train"]):
        config = KnnConfig(ks=(1,))
        result = evaluate(
            config, baseline.encoder, data, overrides=baseline.overrides_of("knn"), out=tmp_path, work=QUIET
        )
        names.append(result.model["name"])
        assert result.numbers["k1_top1"] > 50  # the classes are colours
        quick = ["inputs=[cls,cls+mean]", "least_steps=20", "epochs=1"]
        assert evaluate("linear", baseline.encoder, data, overrides=quick, work=QUIET).numbers["top1"] > 30
        evaluate("correspondence", baseline.encoder, data, overrides=["images=3"], work=QUIET)
        assert baseline.overrides_of("all") in ([], ["knn.distance=L2"])
    assert names == [
        f"baseline: {n}" for n in ("pixels", "pixels, centred", "random weights", "k-means patches")
    ]


def test_the_command_measures_them_beside_the_model(tmp_path: Path) -> None:
    from glocal.models.export import export_backbone

    encoder = small_encoder()
    export_backbone(encoder.backbone, tmp_path / "model", mean=encoder.mean, std=encoder.std, image_size=32)
    digits = open_source("digits", "test")
    for index in range(20):
        path = tmp_path / "small" / str(digits.labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.read(index).save(path)
    words = [
        "evaluate",
        "knn",
        f"model={tmp_path / 'model'}",
        f"train={tmp_path}/small",
        f"test={tmp_path}/small",
        f"out={tmp_path / 'out'}",
        "ks=[1]",
    ]
    result = CliRunner().invoke(cli.app, [*words, "baselines=true"])
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "out")])
    assert result.output.count("knn v2") == 5 and "k-means" in shown.output
