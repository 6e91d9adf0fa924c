"""Controls without learning: raw pixels, random weights, k-means patches."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import coloured, small_encoder
from narrowing import of_kind, present
from typer.testing import CliRunner

from glocal import cli
from glocal.data import open_source
from glocal.errors import DataError
from glocal.evaluation import baselines as controls
from glocal.evaluation import beside
from glocal.evaluation.base import evaluate
from glocal.evaluation.baselines import KMeansBackbone, baselines, kmeans_patches, pixels, random_weights
from glocal.evaluation.beside import measure_beside
from glocal.evaluation.classification.knn import KnnConfig
from glocal.evaluation.results import Result
from glocal.extraction.work import Work
from glocal.models.vit import VisionTransformer

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
    export_backbone(
        of_kind(VisionTransformer, encoder.backbone),
        tmp_path / "model",
        mean=encoder.mean,
        std=encoder.std,
        image_size=32,
    )
    digits = open_source("digits", "test")
    for index in range(20):
        path = tmp_path / "small" / str(present(digits.labels)[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.read(index).save(path)
    words = [
        "evaluate",
        "knn",
        f"model={tmp_path / 'model'}",
        f"train={tmp_path}/small",
        f"test={tmp_path}/small",
        "ks=[1]",
    ]
    result = CliRunner().invoke(cli.app, [*words, f"out={tmp_path / 'out'}", "baselines=true"])
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "out")])
    assert result.output.count("knn v2") == 5 and "k-means" in shown.output
    plain = CliRunner().invoke(cli.app, [*words, f"out={tmp_path / 'other'}"])
    assert "k1_top1 of raw pixels" in plain.output and "random weights" in plain.output, plain.output
    none = CliRunner().invoke(cli.app, [*words, f"out={tmp_path / 'none'}", "baselines=false"])
    assert "raw pixels" not in none.output


def test_what_a_model_must_beat_stands_beside_it_and_is_paid_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = {"train": open_source("digits", "train"), "test": open_source("digits", "test")}
    digits = {name: source.subset(np.arange(200)) for name, source in digits.items()}
    blind = random_weights(small_encoder(), 3)
    blind.name = "a model"
    config, work = KnnConfig(ks=(1,)), Work(cache=tmp_path, progress=False)
    result = evaluate(config, blind, digits, work=work, beside=measure_beside)
    alone = evaluate(config, pixels(blind, centred=True), digits, work=QUIET)
    assert result.baselines["raw pixels"] == alone.numbers and "random weights" in result.baselines
    assert result.numbers["k1_top1"] < alone.numbers["k1_top1"]
    assert "BELOW RAW PIXELS: k1_top1" in result.notes[-1]
    assert Result.from_json(result.to_json()).baselines == result.baselines

    def paid_again(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("glocal.evaluation.baselines.PixelBackbone.forward", paid_again)
    assert evaluate(config, blind, digits, work=work, beside=measure_beside).baselines == result.baselines
    other = Work(cache=tmp_path / "other", progress=False)
    with pytest.raises(AssertionError):
        evaluate(config, blind, digits, work=other, beside=measure_beside)
    monkeypatch.setattr(beside, "MOST_IMAGES", 399)
    assert evaluate(config, blind, digits, work=other, beside=measure_beside).baselines == {}


@pytest.mark.parametrize(
    ("protocol", "settings"), [("correspondence", ["images=8"]), ("retrieval", []), ("statistics", [])]
)
def test_baselines_stand_beside_cheap_protocols_only(protocol: str, settings: list[str]) -> None:
    images = {"images": coloured(24, 3), "test": coloured(24, 3)}
    result = evaluate(
        protocol, small_encoder(), images, overrides=settings, work=QUIET, beside=measure_beside
    )
    assert set(result.baselines) == (set() if protocol == "statistics" else {"raw pixels", "random weights"})
