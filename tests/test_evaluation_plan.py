"""Before an evaluation starts it says what it will take: images, disk and time; what was kept doesn't count."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from evaluation_fakes import coloured, small_encoder
from torch.utils.flop_counter import FlopCounterMode

from glocal.evaluation.classification.knn import KnnConfig, knn_classify
from glocal.evaluation.classification.linear import LinearProbe
from glocal.evaluation.classification.logistic import STEPS, LowShot
from glocal.evaluation.classification.softmax_regression import cross_entropy, whiten_rows
from glocal.extraction import plan
from glocal.extraction.plan import operations_a_second, seconds_an_image, tell_plan
from glocal.extraction.work import Work
from glocal.models.preprocessing import FeatureTransform


def test_a_plan_stands_before_the_first_image(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan, "TOLD_FROM", 0.0)
    data = {"train": coloured(60, 3), "test": coloured(30, 3, seed=1)}
    work = Work(cache=tmp_path, progress=False)
    with caplog.at_level(logging.INFO, logger="glocal.extraction"):
        KnnConfig(ks=(3,)).run(small_encoder(), data, work)
        first = caplog.messages[0]
        caplog.clear()
        KnnConfig(ks=(3,)).run(small_encoder(), data, work)
    assert first.startswith("knn: 90 images to embed, features take 0.0 GiB of memory; about ")
    assert caplog.messages[0].startswith("knn: 0 images to embed")  # they were kept


def test_time_is_measured_on_the_first_images(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, source = small_encoder(), coloured(700, 3)
    transform = FeatureTransform().resolve(encoder)
    source.reads = 0
    one = seconds_an_image(encoder, source, transform)
    assert one > 0 and source.reads == min(2 * transform.tile(encoder), 700)
    assert operations_a_second(torch.device("cpu")) > 1e7
    monkeypatch.setattr(plan, "seconds_an_image", lambda *given: 1e-3)
    monkeypatch.setattr(plan, "operations_a_second", lambda device: 1e11)
    ahead = tell_plan("knn", encoder, source, transform, 0, images=10**8, gib=3.0, operations=36e13)
    assert ahead is not None and (ahead.embedding, ahead.answering) == (1e5, 3600)
    assert ahead.told() == (
        "100,000,000 images to embed, features take 3.0 GiB on disk in TMPDIR, mapped; "
        "about 1 d 03:46:40 for the images, 01:00:00 for the rest"
    )
    assert tell_plan("knn", encoder, source, transform, 0, images=100, gib=0.1) is None


def test_operations_are_those_of_the_fit() -> None:
    """As torch counts them where heads learn and where all queries meet all rows; some whitening beside the steps."""
    probe = LinearProbe(inputs=("cls",), learning_rates=(0.1, 0.2), epochs=4, least_steps=1, batch_size=512)
    inputs, labels = torch.randn(4096, 128), torch.randint(50, (4096,))
    with FlopCounterMode(display=False) as counted:
        for start in range(0, 4096, 512):  # one epoch's products, as `_Learner` makes them
            error = torch.zeros(100, 128) @ inputs[start : start + 512].T
            error @ inputs[start : start + 512]
    assert probe.operations(4096, 10, 50, 128) == 4 * counted.get_total_flops()
    with FlopCounterMode(display=False) as counted:
        knn_classify(inputs, labels, inputs[:100], [10])
    assert KnnConfig().operations(4096, 100, 10, 128) == counted.get_total_flops()
    shots = LowShot(shares=(1.0,), per_class=(), seeds=5, strengths=(1.0,))
    with FlopCounterMode(display=False) as counted:
        data = whiten_rows(inputs, labels)
        for _ in range(STEPS):
            cross_entropy(
                data, torch.zeros(128, 50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
            )
    assert shots.operations(4096, 1, 50, 128) == counted.get_total_flops()
