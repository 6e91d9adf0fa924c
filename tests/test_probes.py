"""What is measured while a run goes on never ends it, however few labelled images there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import config_for, noisy_pictures, records

from glocal.data import open_source
from glocal.models.vit import VisionTransformer
from glocal.training import loop
from glocal.training.loop import pretrain
from glocal.training.metrics_log import read_records
from glocal.training.probes import training_probes
from glocal.training.verdict import RunVerdict
from glocal.views import augment as augmentation
from glocal.views.batch import Views


def class_folders(root: Path, *counts: int, broken: int = 0) -> Path:
    """So many pictures in each class, and files in the first class that are none."""
    rng = np.random.default_rng(0)
    for label, count in enumerate(counts):
        (root / str(label)).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / str(label) / f"{number}.png")
    for number in range(broken):
        (root / "0" / f"broken{number}.png").write_bytes(b"no picture")
    return root


@pytest.mark.parametrize(
    ("counts", "broken"),
    [((1,), 0), ((4,), 0), ((1, 1), 0), ((1, 2), 0), ((1, 4), 0), ((4, 1), 0), ((12, 12), 2), ((1, 3), 20)],
)
def test_a_probe_answers_or_is_left_out(tmp_path: Path, counts: tuple[int, ...], broken: int) -> None:
    """A class of one image may be held out whole; what can't be decoded is missing from the bank."""
    folder = class_folders(tmp_path / "images", *counts, broken=broken)
    config = config_for(folder, tmp_path / "run", "probe.enabled=true")
    backbone = VisionTransformer(config.backbone)
    for probe in training_probes(config, open_source(str(folder))):
        (accuracy,) = probe(backbone).values()
        assert 0 <= accuracy <= 1


def test_a_run_on_few_labelled_images_is_probed(tmp_path: Path) -> None:
    """Twenty-five files of which two are no pictures: nineteen neighbours at most, where twenty are asked for."""
    folder = class_folders(tmp_path / "images", 12, 11, broken=2)
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=1", "probe.enabled=true"))
    assert not [record for record in records(out) if "failed" in record]
    assert [record["step"] for record in records(out) if any(name.startswith("knn") for name in record)] == [
        0,
        1,
    ]


def test_scores_of_abandoned_steps_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a retreat the verdict knows the scores that metrics.jsonl holds: those that a resumed run would read."""
    augment, look, known, count = augmentation.augment, RunVerdict.look, [], {"step": 0}

    def poisoned(*arguments: Any) -> Views:
        views = augment(*arguments)
        count["step"] += 1
        if 5 <= count["step"] <= 10:
            for group in views.groups.values():
                group.pixels.fill_(float("nan"))
        return views

    def looked(self: RunVerdict, backbone: torch.nn.Module, step: int) -> dict[str, float]:
        before = [
            (r["step"], r["verdict.score"])
            for r in read_records(self._folder.metrics)
            if "verdict.score" in r
        ]
        known.append((self._scores == before, step))
        return look(self, backbone, step)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "augment", poisoned)
    monkeypatch.setattr(RunVerdict, "look", looked)
    folder = noisy_pictures(tmp_path / "images")
    more = (
        "training.steps=12",
        "training.checkpoint_every=4",
        "verdict.enabled=true",
        "verdict.every=3",
        "verdict.images=8",
    )
    pretrain(config_for(folder, tmp_path / "run", *more))
    assert known == [(True, step) for step in (0, 3, 6, 9, 6, 9, 12)]
