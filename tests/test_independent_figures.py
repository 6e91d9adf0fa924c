"""Figures of whole protocols recomputed by other code, from pixels on: scikit-learn, plain NumPy and loops, in float64.

Nothing of the evaluation room takes part in the expected value but the draw of held-out images and what a protocol says
of itself in its result.
"""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_fakes import QUIET, blocks
from evaluation_fakes import small_encoder
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, confusion_matrix
from sklearn.neighbors import KNeighborsClassifier
from test_davis import write_video

from glocal.data import open_source
from glocal.evaluation.base import evaluate
from glocal.evaluation.classification.labels import split_held_out
from glocal.evaluation.classification.logistic import LowShot
from glocal.evaluation.objects.davis_data import DavisVideos
from glocal.models.encoder import Encoder

pytestmark = pytest.mark.slow
Array = NDArray[np.float64]
WITHIN_AN_IMAGE = 100 / 197
"""Per cent: float32 and float64 may part over one tie."""


def digits(first: int, last: int, folder: Path) -> Path:
    """Handwritten digits as a folder of classes."""
    images = load_digits()
    for index in range(first, last):
        path = folder / str(images.target[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images.images[index] * 15).astype(np.uint8)).convert("RGB").save(path)
    return folder


def seen(encoder: Encoder, image: Image.Image, side: int = 32) -> tuple[Array, Array]:
    """Class embedding and patches of one image in float64."""
    pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) / 255.0
    normal = (pixels - np.array(encoder.mean)) / np.array(encoder.std)
    with torch.no_grad():
        features = encoder.backbone.double()(torch.from_numpy(normal).permute(2, 0, 1)[None])
    encoder.backbone.float()
    return features.cls[0].numpy(), features.patches[0].numpy()


def class_embeddings(encoder: Encoder, folder: Path) -> tuple[Array, NDArray[np.int64], list[str]]:
    paths = sorted(folder.glob("*/*.png"))
    vectors = np.stack([seen(encoder, Image.open(path))[0] for path in paths])
    return vectors, np.array([int(path.parent.name) for path in paths]), [path.stem for path in paths]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    digits(0, 600, root / "train")
    digits(600, 797, root / "test")
    return root


def test_nearest_neighbours_and_logistic_regression_by_scikit_learn(split: Path) -> None:
    encoder = small_encoder()
    result = evaluate("knn", encoder, split, overrides=["ks=[1,20]"], work=QUIET)
    (x, y, _), (test_x, test_y, _) = (class_embeddings(encoder, split / part) for part in ("train", "test"))
    for k in (1, 20):
        fitted = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
        )
        expected = 100 * fitted.fit(x, y).score(test_x, test_y)
        assert result.numbers[f"k{k}_top1"] == pytest.approx(expected, abs=WITHIN_AN_IMAGE) and expected > 25
    config = LowShot(shares=(1.0,), per_class=(), seeds=1, strengths=(0.01, 1.0))
    linear = evaluate(config, encoder, split, work=QUIET)
    scale = np.sqrt((x**2).mean())
    rest, held = split_held_out(y, 0.1, seed=0)
    models = [
        LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(x[rest] / scale, y[rest]) for c in (0.01, 1.0)
    ]
    best = max(models, key=lambda model: model.score(x[held] / scale, y[held]))
    expected = 100 * best.score(test_x / scale, test_y)
    assert (
        linear.numbers["100_percent_top1"] == pytest.approx(expected, abs=WITHIN_AN_IMAGE) and expected > 25
    )


def test_the_linear_probe_by_autograd(split: Path) -> None:
    encoder = small_encoder()
    settings = ["inputs=[cls]", "learning_rates=[0.05]", "epochs=8", "least_steps=1", "batch_size=100"]
    result = evaluate("linear", encoder, split, overrides=settings, work=QUIET)
    (x, y, _), (test_x, test_y, _) = (class_embeddings(encoder, split / part) for part in ("train", "test"))
    head = torch.nn.Linear(x.shape[1], 10).double()
    with torch.no_grad():
        start = torch.randn(x.shape[1], 10, generator=torch.Generator().manual_seed(1)) * 0.01
        head.weight.copy_(start.T)
        head.bias.zero_()
    optimiser = torch.optim.SGD(head.parameters(), lr=0.05 * 100 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 48)
    order = torch.Generator().manual_seed(0)
    for _ in range(8):
        for rows in torch.randperm(600, generator=order).split(100):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(
                head(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])
            ).backward()
            optimiser.step()
            schedule.step()
    predicted = head(torch.from_numpy(test_x)).argmax(1).numpy()
    assert result.numbers["top1"] == pytest.approx(100 * (predicted == test_y).mean(), abs=WITHIN_AN_IMAGE)
    assert result.numbers["top1"] > 25


def test_rankme_by_singular_values(split: Path) -> None:
    encoder = small_encoder()
    found = evaluate("statistics", encoder, {"test": open_source(split / "test")}, work=QUIET)
    singular = np.linalg.svd(class_embeddings(encoder, split / "test")[0], compute_uv=False)
    share = singular / singular.sum()
    assert found.numbers["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def cosines(queries: Array, database: Array) -> Array:
    ours, others = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, database))
    product: Array = ours @ others.T
    return product


def class_and_gem(cls: Array, patches: Array) -> Array:
    """The class embedding beside the fourth root of the mean fourth power of what is positive in the patches."""
    gem: Array = (np.maximum(patches, 1e-6) ** 4).mean(0) ** 0.25
    return np.concatenate([cls, gem])


def test_copy_detection_by_scikit_learn(tmp_path: Path, split: Path) -> None:
    encoder, generator = small_encoder(), np.random.default_rng(0)
    originals = sorted((split / "test").glob("*/*.png"))
    truth: list[tuple[str, str]] = []
    for number in range(40):
        (tmp_path / "queries").mkdir(exist_ok=True)
        pixels = np.asarray(Image.open(originals[number])).astype(int)
        noisy = np.clip(pixels + generator.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / "queries" / f"Q{number:03d}.png")
        truth.append((f"Q{number:03d}", f"R{number:03d}" if number < 30 else ""))
    for number, path in enumerate(p for p in originals if p not in originals[30:40]):
        (tmp_path / "references").mkdir(exist_ok=True)
        Image.open(path).save(tmp_path / "references" / f"R{number:03d}.png")
    with (tmp_path / "ground_truth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("query_id", "reference_id"), *truth])
    result = evaluate("copy_detection", encoder, tmp_path, work=QUIET)
    queries, references = (
        np.stack(
            [
                class_and_gem(*seen(encoder, Image.open(path)))
                for path in sorted((tmp_path / name).glob("*.png"))
            ]
        )
        for name in ("queries", "references")
    )
    scores = cosines(queries, references)
    best = np.argsort(-scores, axis=1)[:, :10]
    right = best == np.where(np.arange(40) < 30, np.arange(40), -1)[:, None]
    ranked = np.take_along_axis(scores, best, axis=1)
    expected = 100 * average_precision_score(right.ravel(), ranked.ravel()) * right.sum() / 30
    assert result.numbers["micro_ap"] == pytest.approx(expected, abs=0.05)
    assert result.numbers["recall_at_1"] == pytest.approx(100 * right[:30, 0].mean(), abs=1e-6)
    assert 5 < expected < 99.9


def revisited_average_precision(order: NDArray[np.int64], positives: set[int], junk: set[int]) -> float:
    """The trapezoid rule on the ranked list without junk, item by item."""
    ranked = [item for item in order.tolist() if item not in junk]
    area, found = 0.0, 0
    for place, item in enumerate(ranked):
        if item in positives:
            before = 1.0 if place == 0 else found / place
            found += 1
            area += (before + found / (place + 1)) / 2 / len(positives)
    return area


def test_revisited_map_item_by_item(tmp_path: Path, split: Path) -> None:
    encoder, generator = small_encoder(), np.random.default_rng(1)
    paths = sorted((split / "test").glob("*/*.png"))
    (tmp_path / "jpg").mkdir()
    for path in paths:
        Image.open(path).save(tmp_path / "jpg" / f"{path.stem}.png")
    chosen, names = paths[::20], [path.stem for path in paths]
    judged = []
    for path in chosen:
        same = [i for i, other in enumerate(paths) if other.parent.name == path.parent.name and other != path]
        kinds = generator.integers(0, 3, len(same))
        parts = {name: np.array(same)[kinds == kind] for kind, name in enumerate(("easy", "hard", "junk"))}
        parts["junk"] = np.append(parts["junk"], paths.index(path))
        judged.append({"bbx": [0.0, 0.0, 8.0, 8.0], **parts})
    truth = {"imlist": names, "qimlist": [path.stem for path in chosen], "gnd": judged}
    (tmp_path / "gnd_rdigits.pkl").write_bytes(pickle.dumps(truth, 2))
    result = evaluate("retrieval", encoder, tmp_path, overrides=["descriptor.resize=squash"], work=QUIET)
    vectors = np.stack([seen(encoder, Image.open(path))[0] for path in paths])
    order = np.argsort(-cosines(vectors[::20], vectors), axis=1, kind="stable")
    groups = {
        "easy": ({"easy"}, {"junk", "hard"}),
        "medium": ({"easy", "hard"}, {"junk"}),
        "hard": ({"hard"}, {"junk", "easy"}),
    }
    for name, (wanted, ignored) in groups.items():
        values = []
        for ranked, of_query in zip(order, judged, strict=True):
            good, junk = ({int(i) for kind in kinds for i in of_query[kind]} for kinds in (wanted, ignored))
            if good:
                values.append(revisited_average_precision(ranked, good, junk))
        measured = next(v for key, v in result.numbers.items() if key.lower() == f"{name}/map")
        assert measured == pytest.approx(100 * np.mean(values), abs=0.05), name


def test_segmentation_by_nearest_patches_in_loops() -> None:
    encoder, train, test = small_encoder(), blocks(12, seed=3), blocks(5, seed=4)
    settings = ["neighbours=[3]", "distances=[cosine]", "size=32"]
    result = evaluate("knn-seg", encoder, {"train": train, "test": test}, overrides=settings, work=QUIET)
    bank, labels = [], []
    for index in range(12):
        bank.append(seen(encoder, train.read(index))[1])
        labels += [train.masks[index][r : r + 8, c : c + 8] for r in range(0, 32, 8) for c in range(0, 32, 8)]
    memory = np.concatenate(bank)
    mean, deviation = memory.mean(0), memory.std(0)
    true, predicted = [], []
    for index in range(5):
        scores = cosines((seen(encoder, test.read(index))[1] - mean) / deviation, (memory - mean) / deviation)
        for patch, row in enumerate(scores):
            near = np.stack([labels[i] for i in np.argsort(-row)[:3]])
            voted = np.array(
                [[np.bincount(near[:, r, c], minlength=3).argmax() for c in range(8)] for r in range(8)]
            )
            top, left = 8 * (patch // 4), 8 * (patch % 4)
            true.append(test.masks[index][top : top + 8, left : left + 8].ravel())
            predicted.append(voted.ravel())
    counts = confusion_matrix(np.concatenate(true), np.concatenate(predicted), labels=[0, 1, 2])
    iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    assert result.numbers["mIoU"] == pytest.approx(100 * iou.mean(), abs=0.05) and iou.mean() > 0.5


def contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels unlike the one to the right, below or diagonally below."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def contour_accuracy(truth: NDArray[np.bool_], given: NDArray[np.bool_]) -> float:
    """F by dilating whole contours with a disk."""
    radius = int(np.ceil(0.008 * np.hypot(*truth.shape)))
    span = np.arange(-radius, radius + 1)
    disk = span[:, None] ** 2 + span**2 <= radius**2
    lines = contour(truth), contour(given)
    if not lines[0].any() or not lines[1].any():
        return float(lines[0].any() == lines[1].any())
    recall, precision = (
        (line & ndimage.binary_dilation(other, disk)).sum() / line.sum()
        for line, other in (lines, lines[::-1])
    )
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def test_video_segmentation_from_the_pictures_it_saves(tmp_path: Path) -> None:
    root = write_video(tmp_path)
    settings = [f"save={tmp_path / 'saved'}", "short_side=32"]
    result = evaluate("davis", small_encoder(), root, overrides=settings, work=QUIET)
    truth = DavisVideos(root, "val").read_masks("moving")
    pictures = sorted((tmp_path / "saved").rglob("*.png"))
    given = [np.asarray(Image.open(path)) for path in pictures]
    assert len(given) == len(truth) >= 4
    objects = range(1, int(truth[0].max()) + 1)
    pairs = [[(t == o, g == o) for t, g in zip(truth[1:-1], given[1:-1], strict=True)] for o in objects]
    region = np.mean([[(t & g).sum() / max(1, (t | g).sum()) for t, g in of] for of in pairs])
    edge = np.mean([[contour_accuracy(t, g) for t, g in of] for of in pairs])
    assert result.numbers["J_mean"] == pytest.approx(100 * region, abs=1e-6)
    assert result.numbers["F_mean"] == pytest.approx(100 * edge, abs=1e-6)
    assert result.numbers["J&F"] == pytest.approx(50 * (region + edge), abs=1e-6)
