"""What the ladder measures of a trained model: the same protocols at the same settings for every row."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from glocal.config import apply_overrides
from glocal.data import ImageSource, hold_out, open_source
from glocal.evaluation.classification.knn import KnnConfig
from glocal.evaluation.classification.logistic import LowShot
from glocal.evaluation.correspondence import Correspondence
from glocal.evaluation.retrieval.copy_detection import CopyDetection
from glocal.evaluation.segmentation.knn_segmentation import KnnSegmentation
from glocal.extraction.work import Work
from glocal.ladder.rows import Ground
from glocal.models.encoder import Encoder

# The convex optimum on class and mean patch, penalty picked on a tenth of train: half the time of the grid of SGD heads.
_LINEAR = LowShot(
    shares=(1.0,), per_class=(), seeds=1, features="cls+mean_patches", strengths=(0.01, 0.1, 1.0)
)
HELD_OUT = 0.1
"""Share of the training images that tuning is measured on, so that no test image decides a setting."""


def measure(
    encoder: Encoder, ground: Ground, data: Path, *, tuning: bool = False, knn: Sequence[str] = ()
) -> dict[str, float]:
    """Figures in per cent, by name. With `tuning`, k-NN and correspondence on a held-out part of the training images.

    Features are computed once for all figures, in bfloat16, as the runs are trained: k-NN and linear on CIFAR-10 take 51 s
    of a core, 72 s in float32, and are within 0.05 point of it. `knn` are settings of k-NN that a control asks for.
    """
    encoder = replace(encoder, precision="bfloat16")
    neighbours = apply_overrides(KnnConfig(ks=(20,)), knn)
    with tempfile.TemporaryDirectory(prefix="glocal-features-") as kept:
        return _measure(encoder, ground, data, Work(cache=Path(kept), progress=False), neighbours, tuning)


def _measure(
    encoder: Encoder, ground: Ground, data: Path, work: Work, neighbours: KnnConfig, tuning: bool
) -> dict[str, float]:
    train = open_source(f"{data}/{ground.train}")
    if tuning:
        rest, queries = hold_out(train, round(HELD_OUT * len(train)), seed=0)
        return _labelled(encoder, rest, queries, work, neighbours)
    figures: dict[str, float] = {}
    if ground.test is not None:
        splits = train, open_source(f"{data}/{ground.test}")
        figures |= _labelled(encoder, *splits, work, neighbours)
        fitted = _LINEAR.run(encoder, dict(zip(("train", "test"), splits, strict=True)), work)
        figures["linear"] = fitted.numbers["100_percent_top1"]
    if ground.camvid:
        segmentation = KnnSegmentation(size=128, neighbours=(10,), distances=("cosine",))
        figures["camvid"] = segmentation.run(encoder, data / "camvid", work).numbers["mIoU"]
    if ground.copies:
        copies = CopyDetection(references=str(data / "imagenet_sample_1k"))
        figures["copies"] = copies.run(encoder, data / "copydetect_mini", work).numbers["recall_at_1"]
        figures["correspondence"] = _correspondence(encoder, open_source(data / "copydetect_mini"), work)
    return figures


def _labelled(
    encoder: Encoder, bank: ImageSource, queries: ImageSource, work: Work, neighbours: KnnConfig
) -> dict[str, float]:
    figures = {"correspondence": _correspondence(encoder, queries, work)}
    if bank.labels is not None:
        splits = {"train": bank, "test": queries}
        figures["knn"] = neighbours.run(encoder, splits, work).numbers["k20_top1"]
    return figures


def _correspondence(encoder: Encoder, images: ImageSource, work: Work) -> float:
    protocol = Correspondence(images=min(1000, len(images)))
    return protocol.run(encoder, {"test": images}, work).numbers["accuracy"]
