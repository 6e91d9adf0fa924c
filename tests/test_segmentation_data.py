"""Mask layouts: CamVid by name, VOC, ADE20K and Cityscapes by their folders; crops of images and masks alike."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from dense_fakes import MaskSource, blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glocal.errors import ConfigError, DataError, UnreadableImageError
from glocal.evaluation.segmentation.masks import open_segmentation, open_train_and_test
from glocal.extraction.random_crops import RandomCrops


def save(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette([7 * i % 256 for i in range(768)])
    image.save(path)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    mask = np.zeros((12, 16), np.uint8)
    mask[0], mask[1] = 255, 20
    for name in ("a", "b", "c"):
        save(root / f"JPEGImages/{name}.jpg", picture())
        save(root / f"SegmentationClass/{name}.png", mask, palette=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("c\n")
    train, test = open_train_and_test(tmp_path)
    assert (len(train), len(test), train.num_classes) == (2, 1, 21)
    assert np.array_equal(test.mask(0), mask) and test.class_names[20] == "tv"
    assert test.source.read(0).size == (16, 12) and test.source.key(0) == "JPEGImages/c.jpg"
    assert pickle.loads(pickle.dumps(test.source)).fingerprint() == test.source.fingerprint()
    assert train.source.fingerprint() != test.source.fingerprint()
    (root / "JPEGImages/c.jpg").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError):
        test.source.read(0)
    with pytest.raises(DataError, match="none of the splits"):
        open_segmentation(tmp_path, "test")


def test_ade20k(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        save(tmp_path / f"ADEChallengeData2016/images/{split}/x.jpg", picture())
        save(
            tmp_path / f"ADEChallengeData2016/annotations/{split}/x.png",
            np.tile(np.array([0, 1, 150, 3], np.uint8), (12, 4)),
        )
    train, test = open_train_and_test(tmp_path)
    assert train.num_classes == 150 and test.mask(0)[0, :4].tolist() == [255, 0, 149, 2]


def test_cityscapes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save(tmp_path / f"leftImg8bit/{split}/ulm/ulm_1_leftImg8bit.png", picture())
        values = np.tile(np.array([7, 0, 33, 26], np.uint8), (12, 4))
        save(tmp_path / f"gtFine/{split}/ulm/ulm_1_gtFine_labelIds.png", values)
    _, test = open_train_and_test(tmp_path)
    assert test.mask(0)[0, :4].tolist() == [0, 255, 18, 13] and test.class_names[13] == "car"


def test_camvid(real_data: Path) -> None:
    train, test = open_train_and_test(real_data / "camvid")
    assert (len(train), len(test), test.num_classes) == (367, 233, 11)
    raw = test.source.read_mask(0)
    assert (raw == 11).any() and ((test.mask(0) == 255) == (raw == 11)).all()
    assert test.mask(0).shape == (360, 480) and test.objects == (8, 9, 10)


def test_unknown_layouts_count_the_values_of_both_splits() -> None:
    sources = {"train": blocks(4, classes=2), "test": blocks(4, classes=4)}
    assert open_train_and_test(sources)[0].num_classes == 4
    ignoring = open_segmentation(sources, "test", ignore=[0])
    assert ignoring.num_classes == 3 and ignoring.class_names == ("1", "2", "3")
    assert set(np.unique(ignoring.mask(0))) <= {0, 1, 2, 255}
    with pytest.raises(ConfigError, match="leaves no class"):
        open_segmentation(sources, "train", ignore=[0, 1])


def test_colour_masks_are_refused() -> None:
    source = MaskSource(picture()[None], [picture()])
    with pytest.raises(DataError, match="Colour-coded"):
        open_segmentation({"test": source}, "test", num_classes=3).mask(0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3))
def test_crops_cut_images_and_masks_alike(seed: int, round_: int) -> None:
    values = np.random.default_rng(seed).integers(0, 255, (2, 13, 17)).astype(np.uint8)
    source = MaskSource(values[..., None].repeat(3, -1), list(values))
    cropped = RandomCrops(source, seed, round_, area=(0.3, 1.0))
    image, mask = np.asarray(cropped.read(1))[..., 0], cropped.read_mask(1)
    assert np.array_equal(image, mask) and mask.size > 0
    assert np.array_equal(mask, RandomCrops(source, seed, round_, area=(0.3, 1.0)).read_mask(1))


def test_crops_cover_the_asked_range() -> None:
    source = RandomCrops(blocks(1, cells=25), 0, 0, area=(0.25, 1.0))
    boxes = [source.box(index, 200, 100) for index in range(500)]
    shares = [w * h / 20000 for _, _, w, h, _ in boxes]
    assert min(shares) < 0.3 and max(shares) > 0.9 and min(shares) > 0.2
    assert 0.4 < np.mean([mirrored for *_, mirrored in boxes]) < 0.6
    assert all(left >= 0 and left + w <= 200 and top >= 0 and top + h <= 100 for left, top, w, h, _ in boxes)
