"""Intervals of figures against slow bootstraps and formulae, and whether two models differ."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from dense_fakes import blocks, colour_encoder
from evaluation_fakes import coloured, small_encoder
from typer.testing import CliRunner

import glocal
from glocal import cli
from glocal.evaluation.base import evaluate
from glocal.evaluation.classification.labelled import confusion
from glocal.evaluation.compare import as_tables, as_text, cells_of, compare
from glocal.evaluation.intervals import STATISTICS, Samples, difference, intervals, jackknife
from glocal.evaluation.results import read_items, read_results
from glocal.extraction.work import Work

QUIET = Work(progress=False)


def test_a_mean_has_the_interval_of_the_formula() -> None:
    values = np.random.default_rng(0).normal(50, 10, (400, 1))
    low, high = intervals({"x": Samples(values)})["x"]
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.2 * half)
    assert intervals({"x": Samples(values)})["x"] == (low, high)  # the same every time
    assert intervals({"x": Samples(values[:1])}) == {}


def slow_iou(weights: np.ndarray, values: np.ndarray) -> float:
    classes = values.shape[1] // 3
    scores = []
    for number in range(classes):
        hit, true, predicted = (
            sum(w * row[number + k * classes] for w, row in zip(weights, values, strict=True))
            for k in range(3)
        )
        if true + predicted - hit > 0:
            scores.append(hit / (true + predicted - hit))
    return 100 * float(np.mean(scores))


def slow_class_mean(weights: np.ndarray, values: np.ndarray) -> float:
    means = []
    for label in np.unique(values[:, 1]):
        of_class = values[:, 1] == label
        if weights[of_class].sum():
            means.append((weights[of_class] * values[of_class, 0]).sum() / weights[of_class].sum())
    return float(np.mean(means))


def test_statistics_equal_slow_versions_under_any_weights() -> None:
    generator = np.random.default_rng(1)
    weights = generator.poisson(1.0, (5, 12)).astype(np.float32)
    true, predicted = generator.integers(0, 9, (2, 12, 3))
    pixels = np.concatenate([np.minimum(true, predicted), true, predicted], axis=1).astype(np.float32)
    expected = [slow_iou(w, pixels) for w in weights]
    assert np.allclose(STATISTICS["iou"](weights, pixels), expected)
    answers = np.stack([100.0 * generator.integers(0, 2, 12), generator.integers(0, 4, 12)], 1).astype(
        np.float32
    )
    expected = [slow_class_mean(w, answers) for w in weights]
    assert np.allclose(STATISTICS["class_mean"](weights, answers), expected)
    assert np.allclose(STATISTICS["mean"](weights, answers[:, :1]), weights @ answers[:, 0] / weights.sum(1))


def test_pairing_sees_what_separate_intervals_hide() -> None:
    generator = np.random.default_rng(2)
    hard = generator.normal(50, 30, (300, 1))  # the items differ much more than the models
    better = hard + generator.normal(1.0, 2.0, hard.shape)
    one, other = Samples(hard), Samples(better)
    low, high = difference(one, other)
    assert 0 < low < 1.0 < high < 2
    apart = intervals({"one": one, "other": other})
    assert apart["one"].high > apart["other"].low
    same = difference(one, Samples(generator.permutation(hard)))
    assert same.low < 0 < same.high


def test_results_keep_intervals_and_each_images_prediction(tmp_path: Path) -> None:
    data = {"train": coloured(60, 3, name="train"), "test": coloured(40, 3, seed=1, name="test", bad=(4,))}
    for protocol, settings, name in (
        ("knn", ["ks=[3]"], "k3_top1"), ("linear", ["least_steps=20", "epochs=1"], "top1"),
        ("logistic", ["per_class=[2]", "shares=[]"], "2_per_class_top1"),
    ):  # fmt: skip
        evaluate(protocol, small_encoder(), data, overrides=settings, out=tmp_path, work=QUIET)
        result = read_results(tmp_path / "results.json")[-1]
        low, high = result.intervals[name]
        assert low <= result.numbers[name] <= high and high - low > 1
        samples, predictions = read_items(tmp_path, result)
        assert np.isclose(samples[name].values.mean(), result.numbers[name])
        assert predictions["place"].tolist() == [i for i in range(40) if i != 4]
        assert "95 % interval" in [str(c.header) for c in result.table().columns]
    knn = read_results(tmp_path / "results.json")[0]
    _, predictions = read_items(tmp_path, knn)
    counts = confusion(predictions, "k3")
    assert counts.sum() == 39 and 100 * np.trace(counts) / 39 == pytest.approx(knn.numbers["k3_top1"])
    by_class = 100 * np.mean(np.diag(counts) / counts.sum(1))
    assert by_class == pytest.approx(knn.numbers["k3_per_class"])


def test_compare_tells_what_does_not_differ_and_writes_tables(tmp_path: Path) -> None:
    data = {"train": coloured(60, 3, name="train"), "test": coloured(90, 3, seed=1, name="test")}
    for run, seed in (("same", 0), ("again", 0), ("noise", 5)):
        encoder = small_encoder(seed)
        encoder.name = run
        evaluate("knn", encoder, data, overrides=["ks=[3]"], out=tmp_path / run, work=QUIET)
    found = compare([tmp_path / run for run in ("same", "again", "noise")])
    top1 = next(m for m in found.numbers if m.name == "k3_top1")
    assert found.alike[top1][:2] == [False, True]  # the first is not set against itself
    assert cells_of(found, top1)[1].endswith("=") and "±" in cells_of(found, top1)[0]
    assert "does not differ" in str(as_tables(found)[-1].caption)
    rows = list(csv.DictReader(io.StringIO(as_text(found, "csv"))))
    row = next(r for r in rows if r["measure"] == "k3_top1" and "again" in r["model"])
    assert (
        float(row["low"]) <= float(row["value"]) <= float(row["high"])
        and row["differs_from_first"] == "false"
    )
    markdown, latex = as_text(found, "markdown").splitlines(), as_text(found, "latex")
    assert len({line.count("|") for line in markdown if line.startswith("|")}) == 1
    assert r"k3\_top1" in latex and latex.count("\\\\") == len(found.numbers) + 1
    shown = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "same"), f"to={tmp_path / 't.md'}"])
    assert shown.exit_code == 0 and (tmp_path / "t.md").read_text().startswith("| protocol")


def test_python_measures_in_one_line() -> None:
    data = {"train": coloured(60, 3, name="train"), "test": coloured(30, 3, seed=1, name="test")}
    result = glocal.evaluate("knn", small_encoder(), data, ks=[1], transform__size=24)
    assert set(result.numbers) == {"k1_top1", "k1_per_class"} and result.settings["resolution"] == 24


@pytest.mark.parametrize(
    ("protocol", "figure", "settings"),
    [
        ("knn-seg", "mIoU", ["size=32"]),
        ("hummingbird", "mIoU", ["size=32", "memory=200"]),
        (
            "linear-seg-100",
            "mIoU",
            ["size=32", "augment=false", "epochs=4", "rate=1.0", "batch=4", "output=32"],
        ),
        ("correspondence", "accuracy", []),
        ("retrieval", "map", []),
        ("discovery", "CorLoc_lost", ["object_classes=[1,2]", "smallest_object=1"]),
    ],
)
def test_figures_made_item_by_item_have_intervals_around_them(
    protocol: str, figure: str, settings: list[str]
) -> None:
    data = {"train": blocks(8, seed=1, name="train"), "test": blocks(8, seed=2, name="test")}
    for source in data.values():
        source.pixels = np.clip(
            source.pixels + np.random.default_rng(0).normal(0, 60, source.pixels.shape), 0, 255
        )
        source.pixels, source.labels = source.pixels.astype(np.uint8), np.arange(8) % 2
    result = evaluate(protocol, colour_encoder(), data, overrides=settings, work=QUIET)
    low, high = result.intervals[figure]
    assert low <= result.numbers[figure] <= high
    samples = result.samples[figure]
    whole = STATISTICS[samples.statistic](
        np.ones((1, len(samples.values)), np.float32), np.asarray(samples.values, np.float32)
    )
    assert whole[0] == pytest.approx(result.numbers[figure], rel=1e-4)


def test_micro_ap_under_any_weights_is_that_of_repeated_queries() -> None:
    generator = np.random.default_rng(3)
    scores = generator.integers(0, 9, (12, 4)) / 9.0  # with ties
    right = generator.random((12, 4)) < 0.4
    positives = right.sum(1) + generator.integers(0, 2, 12)
    values = np.concatenate([scores, right, positives[:, None]], axis=1).astype(np.float32)
    weights = generator.poisson(1.0, (5, 12)).astype(np.float32)
    for name in ("micro_ap", "recall_at_precision_90"):
        for counted, figure in zip(weights, STATISTICS[name](weights, values), strict=True):
            repeated = np.repeat(np.arange(12), counted.astype(int))
            total = positives[repeated].sum(keepdims=True)
            one = np.concatenate([scores[repeated].ravel(), right[repeated].ravel(), total])
            expected = Samples(one[None], name).figure()
            assert figure == pytest.approx(expected, abs=1e-4)


def test_the_jackknife_of_a_mean_has_the_formulas_width() -> None:
    values = np.random.default_rng(0).normal(5, 2, 1000)
    widths = []
    for start in range(20):
        drawn = np.random.default_rng(start).permutation(values)
        low, high = jackknife(lambda places: float(np.take(drawn, places).mean()), 1000)  # noqa: B023
        assert (low + high) / 2 == pytest.approx(values.mean())
        widths.append((high - low) / 2)
    assert np.mean(widths) == pytest.approx(1.96 * values.std() / 1000**0.5, rel=0.2)


@pytest.mark.parametrize(
    ("protocol", "without"), [("statistics", {"dimension_std_min"}), ("overclustering", set())]
)
def test_figures_without_labels_and_of_clusters_have_intervals(protocol: str, without: set[str]) -> None:
    config = (
        {"clusters": 6, "components": 3, "seeds": 2, "restarts": 1, "size": 32}
        if protocol != "statistics"
        else {}
    )
    overrides = [f"{name}={value}" for name, value in config.items()]
    result = evaluate(protocol, colour_encoder(), {"test": blocks(40)}, overrides=overrides, work=QUIET)
    figures = {name for name in result.numbers if not name.endswith("_std")} - without
    assert set(result.intervals) == figures
    for name, (low, high) in result.intervals.items():
        assert low <= result.numbers[name] + 1e-9 and result.numbers[name] - 1e-9 <= high
