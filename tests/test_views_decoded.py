"""Images that are decoded once: equal bytes, shared by the workers, within the limit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_loader import GROUPS, Pictures, _assert_equal

from glocal.errors import UnreadableImageError
from glocal.views.decoded import PAGE, DecodedImages
from glocal.views.groups import ViewGroup
from glocal.views.loader import LoadedBatch, ViewDataset, make_loader
from glocal.views.sampling import EpochSampler


class Counted(Pictures):
    """Writes down every decoding, across processes."""

    def __init__(self, log: Path, length: int, broken: tuple[int, ...] = ()) -> None:
        super().__init__(length, broken)
        self.log = log

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        return super().read(index, at_least)

    def decoded(self) -> list[int]:
        return sorted(int(line) for line in self.log.read_text().split())


def _epochs(source: Pictures, workers: int, keep_bytes: int) -> list[LoadedBatch]:
    return list(
        make_loader(
            source, GROUPS, batch_size=4, seed=3, workers=workers, total_steps=9, keep_bytes=keep_bytes
        )
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_each_image_is_decoded_once_and_the_views_are_the_same(tmp_path: Path, workers: int) -> None:
    source = Counted(tmp_path / "log", 12)
    kept = _epochs(source, workers, keep_bytes=12 * 3 * PAGE)
    assert source.decoded() == list(range(12))
    _assert_equal(kept, _epochs(Pictures(12), 0, keep_bytes=0))


def test_workers_share_what_any_of_them_decoded(tmp_path: Path) -> None:
    source = Counted(tmp_path / "log", 12)
    loader = make_loader(
        source, GROUPS, batch_size=4, seed=3, workers=2, total_steps=9, keep_bytes=12 * 3 * PAGE
    )
    first = list(loader)
    # Two workers may both decode an image at an epoch's border; new workers of a second pass find all of them.
    decoded = source.decoded()
    assert set(decoded) == set(range(12))
    _assert_equal(list(loader), first)
    assert source.decoded() == decoded


def test_an_image_larger_than_its_slot_is_decoded_each_time(tmp_path: Path) -> None:
    source = Counted(tmp_path / "log", 9)
    fits = [source.array(i).size <= PAGE for i in range(9)]
    assert 0 < sum(fits) < 9
    images = DecodedImages(source, keep_bytes=9 * PAGE + 100)
    for _ in range(3):
        for index in range(9):
            assert np.array_equal(images.read(index), source.array(index))
    assert source.decoded() == sorted(i for i in range(9) for _ in range(1 if fits[i] else 3))


@pytest.mark.parametrize("keep_bytes", [0, 9 * PAGE - 1])
def test_without_room_for_a_page_an_image_nothing_is_kept(tmp_path: Path, keep_bytes: int) -> None:
    source = Counted(tmp_path / "log", 9)
    images = DecodedImages(source, keep_bytes=keep_bytes)
    assert [images.read(4).shape for _ in range(2)] == [source.array(4).shape] * 2
    assert source.decoded() == [4, 4]


def test_memory_that_is_refused_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("glocal.views.decoded.mmap.mmap", refuse)
    source = Pictures(5)
    assert np.array_equal(DecodedImages(source).read(2), source.array(2))


def test_a_broken_image_stays_broken_and_a_copy_begins_empty(tmp_path: Path) -> None:
    source = Counted(tmp_path / "log", 5, broken=(3,))
    images = DecodedImages(source)
    for _ in range(2):
        with pytest.raises(UnreadableImageError, match="picture-3"):
            images.read(3)
    images.read(1)
    copy = pickle.loads(pickle.dumps(images))
    assert len(pickle.dumps(images)) < 2000 and torch.equal(
        torch.from_numpy(copy.read(1)), torch.from_numpy(images.read(1))
    )
    assert source.decoded() == [1, 1, 3, 3]


class Reducible(Pictures):
    """Gives what was asked for, as a JPEG decoder that can reduce to any size would."""

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        side = at_least or 900
        return Image.fromarray(np.zeros((side, side * 3 // 2, 3), dtype=np.uint8))


@pytest.mark.parametrize("at_least", [1, 100, 700, None])
def test_no_view_enlarges_what_the_decoder_reduced(at_least: int | None) -> None:
    groups = {
        "large": ViewGroup(count=4, size=224, area=(0.25, 1.0)),
        "flat": ViewGroup(count=4, size=(96, 32), area=(0.05, 0.3)),
    }
    key = EpochSampler(length=16, batch_size=16, seed=0, total_steps=1).at(0)
    views = ViewDataset(Reducible(16), groups, at_least).render(key).views
    for name, group in groups.items():
        sides = torch.tensor(group.height_width)
        assert (views.groups[name].box[..., 2:] >= sides - 1).all(), "a side is rounded to a pixel"
    shorter = int(views.source_size.min())
    assert shorter == 900 if at_least is None else shorter == max(at_least, 518)
