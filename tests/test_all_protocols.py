"""Every protocol in one go: what can't be run is named, features are shared, interrupted work goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dense_fakes import QUIET, blocks, colour_encoder
from evaluation_fakes import coloured, small_encoder
from narrowing import of_kind

from glocal.errors import ConfigError
from glocal.evaluation.all_protocols import evaluate_all
from glocal.evaluation.base import PROTOCOLS, evaluate, protocol_class
from glocal.evaluation.results import Result, Skip, read_results, read_skips
from glocal.evaluation.segmentation.clustering import OverClustering
from glocal.evaluation.segmentation.linear_segmentation import LinearSegmentation
from glocal.evaluation.segmentation.masks import CheckedSource
from glocal.extraction.feature_stream import Skipped
from glocal.extraction.patch_stream import iterate_patches
from glocal.extraction.random_crops import RandomCrops
from glocal.extraction.work import Work
from glocal.models.preprocessing import FeatureTransform


def test_every_protocol_gives_a_result_or_a_named_skip(tmp_path: Path) -> None:
    data = {"train": coloured(60, 3, name="train"), "test": coloured(30, 3, seed=1, name="test")}
    overrides = ["linear.least_steps=20", "linear.epochs=1", "correspondence.images=8"]
    found = list(evaluate_all(small_encoder(), data, overrides=overrides, out=tmp_path, work=QUIET))
    assert [f.protocol for f in found] == list(PROTOCOLS)
    results, skips = read_results(tmp_path / "results.json"), read_skips(tmp_path / "results.json")
    assert {r.protocol for r in results} == {
        "knn",
        "linear",
        "logistic",
        "statistics",
        "retrieval",
        "correspondence",
    }
    assert {s.protocol for s in skips} == set(PROTOCOLS) - {r.protocol for r in results}
    reasons = {s.protocol: s.reason for s in skips}
    assert "by its name" in reasons["finetune"] and "no masks" in reasons["knn-seg"]
    assert skips[0].data == "train: train, test: test" and skips[0].model == results[0].model

    again = list(evaluate_all(small_encoder(), data, overrides=overrides, out=tmp_path, work=QUIET))
    assert [type(f) for f in again] == [type(f) for f in found]
    assert len(read_skips(tmp_path / "results.json")) == len(skips)
    assert [r.numbers for r in read_results(tmp_path / "results.json")] == [r.numbers for r in results]


def test_a_protocol_that_is_run_after_all_is_no_longer_skipped(tmp_path: Path) -> None:
    data = {"train": coloured(60, 3, name="train"), "test": coloured(30, 3, seed=1, name="test")}
    path, other = tmp_path / "results.json", {"train": data["train"]}
    quick = ["linear.least_steps=20", "linear.epochs=1", "correspondence.images=8"]
    for given in (data, other):
        list(evaluate_all(small_encoder(), given, overrides=quick, out=tmp_path, work=QUIET))
    assert [s.data for s in read_skips(path) if s.protocol == "finetune"] == [
        "train: train, test: test",
        "train: train",
    ]
    assert [s.data for s in read_skips(path) if s.protocol == "knn"] == ["train: train"]
    evaluate("finetune", small_encoder(), data, overrides=["epochs=1"], out=tmp_path, work=QUIET)
    assert [s.data for s in read_skips(path) if s.protocol == "finetune"] == ["train: train"]


def test_settings_go_to_the_protocol_they_name() -> None:
    data = {"train": coloured(30, 3, name="train"), "test": coloured(12, 3, seed=1, name="test")}
    with pytest.raises(ConfigError, match=r"names no protocol.*knn\.ks"):
        list(evaluate_all(small_encoder(), data, overrides=["ks=[3]"], work=QUIET))
    with pytest.raises(ConfigError, match="Did you mean 'ks'"):
        list(evaluate_all(small_encoder(), data, overrides=["knn.kz=[3]"], work=QUIET))


def test_quick_settings_are_told_and_do_not_replace_full_ones(tmp_path: Path) -> None:
    encoder, data = (
        colour_encoder(),
        {"train": blocks(8, name="train"), "test": blocks(4, seed=1, name="test")},
    )
    for settings in (["size=32", "neighbours=[1]"], ["size=64", "neighbours=[1]"]):
        evaluate("knn-seg", encoder, data, overrides=settings, out=tmp_path, work=QUIET)
    found = read_results(tmp_path / "results.json")
    assert [r.settings["size"] for r in found] == [32, 64]
    quick = {
        name: protocol_class(name).quick(encoder) for name in ("linear-seg", "overclustering", "hummingbird")
    }
    assert {config.model_dump()["size"] for config in quick.values()} == {14 * 8}
    assert of_kind(LinearSegmentation, quick["linear-seg"]).steps == 1000
    assert of_kind(OverClustering, quick["overclustering"]).seeds == 1


def test_dense_features_are_kept_and_continued(tmp_path: Path) -> None:
    encoder, source = small_encoder(), coloured(300, 3, bad=(5, 270))
    transform, tile = FeatureTransform(), FeatureTransform().resolve(encoder).tile(encoder)
    assert tile == 256  # so there are two files
    work = replace(QUIET, cache=tmp_path)

    def stream(used: Work) -> tuple[list[int], torch.Tensor, list[str]]:
        skipped = Skipped()
        batches = list(iterate_patches(encoder, source, transform, -1, used, skipped))
        assert sum(b.seen for b in batches) == 300
        return (
            [i for b in batches for i in b.indices],
            torch.cat([b.patches for b in batches]),
            skipped.notes(),
        )

    plain = stream(QUIET)
    assert len(plain[0]) == 298 and len(plain[2]) == 3
    for step in ("computed", "read", "last missing", "first broken"):
        files = sorted(tmp_path.rglob("*.safetensors"))
        if step == "last missing":
            files[1].unlink()
        if step == "first broken":
            files[0].write_bytes(b"cut short")
        source.reads = 0
        kept = stream(work)
        assert kept[0] == plain[0] and torch.equal(kept[1], plain[1]) and kept[2] == plain[2]
        assert source.reads == {"computed": 300, "read": 0, "last missing": 44, "first broken": 256}[step]
        assert len(sorted(tmp_path.rglob("*.safetensors"))) == 2
    other = list(iterate_patches(encoder, source, transform, -2, work, Skipped()))
    assert not torch.equal(torch.cat([b.patches for b in other]), plain[1])


def test_kept_files_name_their_own_unreadable_images_only(tmp_path: Path) -> None:
    train, test = coloured(12, 3, bad=(5,), name="train"), coloured(12, 3, seed=1, bad=(2,), name="test")
    for _ in range(2):
        skipped = Skipped()
        for source in (train, test):
            list(
                iterate_patches(
                    small_encoder(), source, FeatureTransform(), -1, replace(QUIET, cache=tmp_path), skipped
                )
            )
        assert set(skipped.images) == {("train", 5), ("test", 2)}


def test_dense_features_too_large_to_keep_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glocal.extraction.patch_stream.LARGEST_KEPT", 1000)
    list(
        iterate_patches(
            small_encoder(), coloured(3, 3), FeatureTransform(), -1, replace(QUIET, cache=tmp_path), Skipped()
        )
    )
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_sources_of_other_pixels_have_other_fingerprints() -> None:
    source = blocks(3)
    crops = [RandomCrops(source, seed, number, (0.25, 1.0)) for seed, number in ((0, 1), (0, 2), (1, 1))]
    prints = {s.fingerprint() for s in (source, CheckedSource(source), *crops)}
    assert len(prints) == 5


@pytest.mark.parametrize("name", ["knn-seg", "hummingbird", "linear-seg"])
def test_kept_features_change_no_number(tmp_path: Path, name: str) -> None:
    encoder, data = (
        colour_encoder(),
        {"train": blocks(8, name="train"), "test": blocks(4, seed=1, name="test")},
    )
    config = protocol_class(name).quick(encoder).model_copy(update={"size": 32})
    if name == "linear-seg":
        config = config.model_copy(update={"steps": 20})
    plain = evaluate(config, encoder, data, work=QUIET)
    for _ in range(2):
        kept = evaluate(config, encoder, data, work=replace(QUIET, cache=tmp_path))
        assert isinstance(kept, Result) and kept.numbers == plain.numbers and kept.rows == plain.rows


def test_a_skip_survives_its_file(tmp_path: Path) -> None:
    encoder = colour_encoder(patches=False)
    data = {"train": blocks(4, name="train"), "test": blocks(2, seed=1, name="test")}
    found = {f.protocol: f for f in evaluate_all(encoder, data, out=tmp_path, work=QUIET)}
    skip = found["knn-seg"]
    assert isinstance(skip, Skip) and "patch tokens" in skip.reason
    assert skip in read_skips(tmp_path / "results.json")
    statistics = found["statistics"]
    assert isinstance(statistics, Result) and "patches left out" in statistics.notes[-1]
    assert isinstance(found["correspondence"], Skip) and "patch tokens" in found["correspondence"].reason
