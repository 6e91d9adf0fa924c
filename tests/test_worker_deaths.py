"""Workers that die: by chance and nothing changes, by an image and it is named and left out, all the time and it is said."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GROUPS
from PIL import Image
from tiny_runs import config_for, noisy_pictures, weights

from glocal.data import open_source
from glocal.data.folder import FileSource
from glocal.data.source import ImageSource
from glocal.errors import TrainingError, UnreadableImageError
from glocal.training.loop import pretrain
from glocal.views.loader import LoadedBatch, make_loader
from glocal.views.worker_deaths import MOST_IN_A_ROW, DeathRegister


class Deadly(ImageSource):
    """Twelve plain images, of which one kills whoever decodes it, or can't be decoded."""

    name = "deadly"

    def __init__(self, image: int, kills: bool, once: Path | None = None) -> None:
        self.image, self.kills, self.once = image, kills, once

    def __len__(self) -> int:
        return 12

    def key(self, index: int) -> str:
        return f"picture{index}"

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        if index == self.image and not (self.once is not None and self.once.exists()):
            if self.once is not None:
                self.once.touch()
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise UnreadableImageError("no picture")
        return Image.fromarray(np.full((40, 40, 3), 20 * index, dtype=np.uint8))

    def fingerprint(self) -> str:
        return "0" * 16


def batches(source: ImageSource, workers: int) -> list[LoadedBatch]:
    return list(
        make_loader(source, GROUPS, batch_size=4, seed=3, workers=workers, total_steps=5, keep_bytes=0)
    )


def same(a: list[LoadedBatch], b: list[LoadedBatch]) -> bool:
    pixels = [[batch.views.groups[name].pixels for batch in run for name in GROUPS] for run in (a, b)]
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(*pixels, strict=True))


def test_an_image_that_kills_twice_is_named_and_left_out() -> None:
    seen = batches(Deadly(5, kills=True), workers=1)
    assert same(seen, batches(Deadly(5, kills=False), workers=0))
    notes = [note for batch in seen for note in batch.notes]
    assert ["SIGKILL) while it decoded 'picture5'; another one tries again" in notes[0]] == [True]
    assert "for the second time; the image is left out" in notes[1] and len(notes) == 2
    reasons = {reason for batch in seen for key, reason in batch.unreadable if key == "picture5"}
    assert reasons == {"Two processes died while they decoded it (the last: SIGKILL)."}


def test_a_death_by_chance_changes_nothing(tmp_path: Path) -> None:
    chance = Deadly(5, kills=True, once=tmp_path / "died")
    seen = batches(chance, workers=1)
    assert (tmp_path / "died").exists()
    assert same(seen, batches(Deadly(99, kills=False), workers=0))
    assert not any(batch.unreadable for batch in seen)


def test_workers_that_do_nothing_but_die_end_in_a_sentence() -> None:
    deaths = DeathRegister()
    for _ in range(MOST_IN_A_ROW - 1):
        assert "another one takes over" in deaths.note(None, -9, "")
    with pytest.raises(TrainingError, match=r"8 worker processes died.*SIGKILL.*speed.workers=0"):
        deaths.note(None, -9, "")


def test_a_run_goes_on_when_its_workers_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two steps, and whatever they are at: the weights are those of a run without workers."""
    folder = noisy_pictures(tmp_path / "images")
    expected = weights(pretrain(config_for(folder, tmp_path / "whole", "training.steps=9")))
    original, count = FileSource.read, {"images": 0}

    def read(self: FileSource, index: int, at_least: int | None = None) -> Image.Image:
        count["images"] += 1
        if os.getpid() != main and count["images"] >= 30 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        return original(self, index, at_least)

    main = os.getpid()
    monkeypatch.setattr(FileSource, "read", read)
    more = ["training.steps=9", "speed.workers=1", "speed.keep_decoded_mb=0"]
    out = pretrain(config_for(folder, tmp_path / "run", *more))
    assert (tmp_path / "died").exists()
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(out).items())
    assert "A worker process died" in capsys.readouterr().err
    assert len(open_source(str(folder))) == 41
