"""Before an evaluation starts it says what it will take: images, disk and time; what was kept doesn't count."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import torch
from evaluation_fakes import coloured, small_encoder

from glocal.evaluation.classification.knn import KnnConfig
from glocal.evaluation.classification.linear import LinearProbe, train_heads
from glocal.evaluation.classification.logistic import LowShot
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
    tile = transform.tile(encoder)
    source.reads = 0
    many = 10**9
    ahead = tell_plan("knn", encoder, source, transform, 0, images=many, gib=3.0, operations=1e15)
    assert ahead is not None and source.reads == min(2 * tile, 700)
    one = seconds_an_image(encoder, source, transform)
    assert 0.1 < ahead.embedding / (many * one) < 10  # a busy machine: the order is what counts
    assert 0.1 < ahead.answering * operations_a_second(torch.device("cpu")) / 1e15 < 10
    assert "3.0 GiB on disk in TMPDIR, mapped" in ahead.told() and " d " in ahead.told()
    assert tell_plan("knn", encoder, source, transform, 0, images=100, gib=0.1) is None


def test_operations_are_those_of_the_fit() -> None:
    """Counted on what the code multiplies, or against a measured time."""
    probe = LinearProbe(inputs=("cls",), learning_rates=(0.1, 0.2), epochs=4, least_steps=1, batch_size=512)
    assert probe.operations(4096, 10, 50, 128) == 4 * 4 * 4096 * 128 * 2 * 50
    inputs, labels = torch.randn(4096, 128), torch.randint(50, (4096,))
    began = time.process_time()
    train_heads(inputs, labels, 50, [0.1, 0.2], epochs=4, batch_size=512)
    taken = time.process_time() - began
    expected = probe.operations(4096, 10, 50, 128) / operations_a_second(torch.device("cpu"))
    assert 0.02 < expected / taken < 5
    knn = KnnConfig().operations(1000, 100, 10, 64)
    assert knn == 2 * 1000 * 100 * 64
    shots = LowShot(shares=(1.0,), per_class=(), seeds=5)
    assert shots.operations(1000, 1, 10, 64) == 4 * 1000 * 64 * (64 + 15 * 6 * 10)
