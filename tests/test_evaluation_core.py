"""Extraction, its cache, labels, results.json and comparison."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import MemorySource, coloured, small_encoder
from narrowing import present
from PIL import Image
from rich.console import Console

from glocal.config import apply_overrides
from glocal.errors import ConfigError, DataError
from glocal.evaluation.base import PROTOCOLS, ProtocolConfig, evaluate, protocol_class
from glocal.evaluation.classification.knn import KnnConfig
from glocal.evaluation.classification.labels import align_labels, labelled_rows, split_held_out
from glocal.evaluation.compare import as_tables, compare
from glocal.evaluation.results import Result, read_results, write_result
from glocal.extraction.feature_stream import Skipped, iterate_features, iterate_pixels
from glocal.extraction.image_embeddings import SHARD, extract_embeddings, gem
from glocal.extraction.random_crops import RandomCrops
from glocal.extraction.work import Work
from glocal.models.preprocessing import FeatureTransform

QUIET = Work(progress=False)


def test_features_do_not_depend_on_batch_size_or_workers() -> None:
    encoder, source = small_encoder(), coloured(150, 3, bad=(4, 70))
    transform = FeatureTransform(size=64)  # a tile of 128, so that batches of 7 and 50 cut it unevenly

    def stream(batch_size: int, workers: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
        skipped = Skipped()
        batches = list(iterate_features(encoder, source, transform, batch_size, workers, skipped=skipped))
        assert max(len(b.indices) for b in batches) <= batch_size
        assert sum(b.seen for b in batches) == 150
        assert len(skipped) == 2
        full = [b for b in batches if len(b.indices)]
        features = [b.features[0] for b in full]
        cls, patches = (torch.cat([getattr(f, name) for f in features]) for name in ("cls", "patches"))
        return np.concatenate([b.indices for b in full]), cls, patches

    indices, cls, patches = stream(64, 0)
    assert indices.tolist() == [i for i in range(150) if i not in (4, 70)]
    for batch_size, workers in ((7, 0), (50, 2), (1000, 1)):
        other = stream(batch_size, workers)
        assert np.array_equal(other[0], indices)
        assert torch.equal(other[1], cls)
        assert torch.equal(other[2], patches)


def test_layers_are_counted_from_the_end() -> None:
    encoder, source = small_encoder(), coloured(4, 2)
    batch = next(iterate_features(encoder, source, FeatureTransform(), layers=(-1, -3)))
    pixels = next(iterate_pixels(source, FeatureTransform().resolve(encoder), 8)).pixels
    expected = encoder.intermediate(encoder.normalise(pixels), [-3])[0]
    assert torch.equal(batch.features[1].cls, expected.cls)
    assert not torch.equal(batch.features[0].cls, expected.cls)


@pytest.mark.parametrize("mode", ["crop", "squash", "shorter", "native"])
def test_a_mask_stays_on_its_image(mode: str) -> None:
    # A blocky image whose red channel is its mask: after both transforms they must still agree inside the blocks.
    mask = np.kron(np.arange(12).reshape(3, 4) * 20, np.ones((40, 40))).astype(np.uint8)
    image = Image.fromarray(np.repeat(mask[:, :, None], 3, axis=2))
    transform = FeatureTransform(resize=mode, size=96, crop_fraction=0.875).resolve(small_encoder())
    pixels, moved = transform.image(image, 8), transform.mask(mask, 8)
    assert pixels.shape[1:] == moved.shape
    assert all(side % 8 == 0 for side in moved.shape)
    assert set(np.unique(moved)) <= set(np.unique(mask))
    agree = np.abs(pixels[0].numpy().astype(int) - moved) <= 2
    assert agree.mean() > 0.85


def test_crop_is_the_published_resize_and_central_crop() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    transform = FeatureTransform(size=224, crop_fraction=0.875)
    # torchvision: the longer side is truncated (426.67 to 426), the margin 101 is half of 202.
    resized = image.resize((426, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((101, 16, 325, 240)))
    assert np.array_equal(transform.image(image, 16).permute(1, 2, 0).numpy(), expected)
    # Half a pixel of margin goes to the even side, in torchvision as in Python: 0.5 to 0, 1.5 to 2.
    for width, left in ((257, 16), (259, 18), (261, 18)):
        assert transform.placement(256, width, 16).crop == (16, left, 224, 224)


def test_a_size_that_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"size=30 is no multiple.*size=32"):
        FeatureTransform(size=30).resolve(small_encoder())


def test_cache_continues_where_it_stopped(tmp_path: Path) -> None:
    encoder, source = small_encoder(), coloured(SHARD + 30, 3, side=16, bad=(1, SHARD + 2))
    work = Work(cache=tmp_path, progress=False)
    full = extract_embeddings(encoder, source, work=work)
    assert source.reads == SHARD + 30
    again = extract_embeddings(encoder, source, work=work)
    assert source.reads == SHARD + 30
    assert torch.equal(full.first, again.first)
    assert again.skipped.notes() == full.skipped.notes()

    shards = sorted(tmp_path.rglob("*.safetensors"))
    assert len(shards) == 4  # the class token and, along with it, the mean patch
    shards[1].write_bytes(b"cut short")
    resumed = extract_embeddings(encoder, source, work=work)
    assert source.reads == SHARD + 60  # the broken shard only
    assert torch.equal(full.first, resumed.first)
    assert np.array_equal(full.indices, resumed.indices)

    reads = source.reads
    along = extract_embeddings(encoder, source, what=["cls", "mean_patches"], work=work)
    assert source.reads == reads
    anew = extract_embeddings(encoder, source, what=["mean_patches"], work=QUIET)
    assert torch.equal(along.vectors["mean_patches"], anew.first)
    more = extract_embeddings(encoder, source, what=["cls", "mean_patches@-2"], work=work)
    assert torch.equal(more.vectors["cls"], full.first)
    other = extract_embeddings(small_encoder(seed=1), source, work=work)
    assert not torch.equal(other.first, full.first)


def test_an_interrupted_extraction_keeps_whole_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, source = small_encoder(), coloured(SHARD + 30, 3, side=16)
    read = source.read

    def interrupted(index: int, at_least: int | None = None) -> Image.Image:
        if index == SHARD + 5:
            raise KeyboardInterrupt
        return read(index, at_least)

    monkeypatch.setattr(source, "read", interrupted)
    work = Work(cache=tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        extract_embeddings(encoder, source, work=work)
    monkeypatch.undo()
    source.reads = 0
    found = extract_embeddings(encoder, source, work=work)
    assert source.reads == 30
    assert torch.equal(found.first, extract_embeddings(encoder, source, work=QUIET).first)


def test_readouts_against_plain_numpy() -> None:
    encoder, source = small_encoder(), coloured(5, 2)
    found = extract_embeddings(encoder, source, what=["cls@-2", "mean_patches", "gem_patches"], work=QUIET)
    pixels = next(iterate_pixels(source, FeatureTransform().resolve(encoder), 8)).pixels
    last = encoder.features(encoder.normalise(pixels)).patches.numpy().astype(np.float64)
    assert np.allclose(found.vectors["mean_patches"], last.mean(1), atol=1e-5)
    expected = (np.maximum(last, 1e-6) ** 4).mean(1) ** 0.25
    assert np.allclose(found.vectors["gem_patches"], expected, atol=1e-4)
    assert np.allclose(gem(torch.from_numpy(last)), expected)
    with pytest.raises(ConfigError, match="mean_patches"):
        extract_embeddings(encoder, source, what=["mean_patch"], work=QUIET)
    with pytest.raises(ConfigError, match="from the end"):
        extract_embeddings(encoder, source, what=["cls@3"], work=QUIET)


def test_only_unreadable_images_is_an_error() -> None:
    with pytest.raises(DataError, match=r"none of its 2 images.*0\.png is cut short"):
        extract_embeddings(small_encoder(), coloured(2, 2, bad=(0, 1)), work=QUIET)


def test_skips_are_counted_and_named() -> None:
    source, skipped = coloured(40, 2, name="photos"), Skipped()
    for index in range(25):
        skipped.add(source, index, "cut short")
        skipped.add(source, index, "cut short")
    notes = skipped.notes()
    assert notes[0] == "photos: skipped 25 unreadable images"
    assert notes[1] == "  0.png: cut short"
    assert notes[-1] == "  and 5 more"


def test_labels_are_matched_by_name() -> None:
    train = MemorySource(
        np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 2, 2]), ["ant", "bee", "cat"], name="train"
    )
    test = MemorySource(np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1]), ["cat", "dog"], name="test")
    labels = align_labels(train, test)
    assert labels.test.tolist() == [2, 3, 3]
    assert labels.classes == 4
    assert any("test lacks 2 of 3 classes: ant, bee" in note for note in labels.notes)
    assert any("dog; 2 images count as wrong" in note for note in labels.notes)


def test_large_label_numbers_cost_nothing_and_match() -> None:
    train, test = coloured(30, 3), coloured(12, 3, seed=1)
    numbers = np.array([5, 10**12, 10**12 + 7])
    assert train.labels is not None and test.labels is not None
    train.labels, test.labels = numbers[train.labels], numbers[test.labels]
    pair = align_labels(train, test)
    assert pair.classes == 3 and np.array_equal(numbers[pair.train], train.labels)
    assert np.array_equal(numbers[pair.test], test.labels) and pair.notes == []
    test.labels = np.full(12, 5)
    few = align_labels(train, test)
    assert few.test.tolist() == [0] * 12 and few.classes < 10


@pytest.mark.parametrize(
    ("labels", "message"), [(None, "no labels"), (np.zeros(4), "1 class with"), (-np.ones(4), "no labels")]
)
def test_sources_that_no_classifier_can_use(labels: np.ndarray | None, message: str) -> None:
    source = MemorySource(np.zeros((4, 8, 8, 3), np.uint8), labels)
    with pytest.raises(DataError, match=message):
        align_labels(source, source)


def test_held_out_images_come_from_every_class_that_can_spare_one() -> None:
    labels = np.array([0] * 30 + [1] * 2 + [2])
    fit, held = split_held_out(labels, 0.1, seed=3)
    assert sorted([*fit, *held]) == list(range(33))
    assert np.bincount(labels[held], minlength=3).tolist() == [3, 1, 0]


def test_random_crops_are_a_function_of_the_image_alone() -> None:
    source = coloured(6, 2)
    one, other = RandomCrops(source, 0, 0, (0.25, 1.0)), RandomCrops(source, 0, 1, (0.25, 1.0))
    pixels = [np.asarray(one.read(i)) for i in range(6)]
    assert all(np.array_equal(np.asarray(one.read(i)), pixels[i]) for i in reversed(range(6)))
    assert not np.array_equal(np.asarray(other.read(0)), pixels[0])
    areas = [p.shape[0] * p.shape[1] / 1600 for p in pixels]
    assert min(areas) > 0.2
    assert len(set(areas)) > 1


def test_results_merge_by_protocol_model_and_data(tmp_path: Path) -> None:
    path = tmp_path / "out" / "results.json"

    def result(protocol: str, top1: float, data: str = "test") -> Result:
        numbers = {"top1": top1, "spread": float("nan")}
        model = {"name": "m", "fingerprint": "f"}
        return Result(protocol, 1, {"cut": np.int64(3)}, numbers, model=model, data={data: "d"})

    for one in (result("knn", 1.0), result("linear", 2.0), result("knn", 3.0), result("knn", 4.0, "other")):
        write_result(path, one)
    found = read_results(path)
    assert [(r.protocol, r.numbers["top1"]) for r in found] == [("linear", 2.0), ("knn", 3.0), ("knn", 4.0)]
    assert np.isnan(found[0].numbers["spread"])
    assert json.loads(path.read_text())["results"][0]["numbers"]["spread"] is None
    assert [p.name for p in path.parent.iterdir() if p.suffix != ".lock"] == ["results.json"]
    path.write_text('{"format": 99}')
    with pytest.raises(DataError, match="layout 99"):
        read_results(path)


def test_a_terminal_shows_the_first_rows_only() -> None:
    rows = [{"image": f"{i}.png", "hit": float(i)} for i in range(45)]
    table = Result("discovery", 1, {}, {"hit": 1.0}, rows=rows).rows_table()
    assert table is not None and table.row_count == 40 and table.caption == "and 5 more in results.json"
    assert Result("knn", 1, {}, {"top1": 1.0}).rows_table() is None


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    result = Result(
        "knn", 1, {}, {"top1": 1.0}, rows=[{"image": "a[red].png"}], notes=["skipped b[bold].png"]
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(result.table(), result.rows_table())
    shown = console.export_text()
    assert "a[red].png" in shown and "b[bold].png" in shown


def test_evaluate_writes_what_it_needs_to_be_repeated(tmp_path: Path) -> None:
    data = {"train": coloured(40, 2, name="train"), "test": coloured(20, 2, seed=1, name="test")}
    overrides = ["ks=[1, 3]", "transform.size=24"]
    result = evaluate("knn", small_encoder(), data, overrides=overrides, out=tmp_path, work=QUIET)
    stored = read_results(tmp_path / "results.json")[0]
    assert stored.to_json() == result.to_json()
    assert stored.settings["resolution"] == 24
    assert stored.settings["ks"] == [1, 3]
    assert {"layer", "norm"} <= set(stored.settings)
    assert stored.model["fingerprint"] == small_encoder().fingerprint()
    assert stored.data["train: train"] == data["train"].fingerprint()
    assert "k3_top1" in stored.numbers
    with pytest.raises(ConfigError, match=r"no protocol 'kn'.*'knn'"):
        evaluate("kn", small_encoder(), data)
    with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
        evaluate("knn", small_encoder(), data, overrides=["temprature=1"])


def test_every_protocol_has_its_class() -> None:
    for name in PROTOCOLS:
        kind = protocol_class(name)
        assert issubclass(kind, ProtocolConfig)
        assert kind.protocol == name
        assert apply_overrides(kind(), []) == kind()


def test_compare_puts_runs_side_by_side_and_warns(tmp_path: Path) -> None:
    data = {"train": coloured(40, 2, name="train"), "test": coloured(20, 2, seed=1, name="test")}
    for run, size in (("a", 32), ("b", 24)):
        config = KnnConfig(ks=(1,), transform={"size": size})
        evaluate(config, small_encoder(), data, out=tmp_path / run, work=QUIET)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert [name.rpartition("/")[2] for name in found.columns] == ["a", "b"]
    values = next(v for m, v in found.numbers.items() if m.name == "k1_top1")
    assert all(v is not None for v in values)
    assert any("resolution differs" in line for line in found.warnings)
    (table,) = as_tables(compare([tmp_path / "a", tmp_path / "b"]))
    assert table.row_count == len(found.numbers) and "resolution differs" in str(table.caption)
    evaluate(KnnConfig(ks=(3,)), small_encoder(), data, out=tmp_path / "a", work=QUIET)
    again = compare([tmp_path / "a", tmp_path / "b"])
    assert any("several knn results" in line for line in again.warnings)
    shown = {m.name: v for m, v in again.numbers.items()}
    assert shown["k3_top1"][1] is None and shown["k1_top1"][0] is None  # the latest of run a is k=3 only
    with pytest.raises(DataError, match="has no results"):
        compare([tmp_path / "nothing"])


def test_features_are_held_once() -> None:
    source = coloured(SHARD + 9, 3, side=16)
    found = extract_embeddings(small_encoder(), source, what=["cls", "cls@-1", "mean_patches"], work=QUIET)
    assert found.vectors["cls"].data_ptr() == found.vectors["cls@-1"].data_ptr()
    one = extract_embeddings(small_encoder(), source, work=QUIET)
    assert torch.equal(one.first, found.first)
    assert labelled_rows(one, present(source.labels))[0].data_ptr() == one.first.data_ptr()
    some = np.where(np.arange(len(source)) % 2, present(source.labels), -1)
    assert torch.equal(labelled_rows(one, some)[0], one.first[1::2])
