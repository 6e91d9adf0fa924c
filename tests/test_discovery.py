"""LOST and TokenCut on features whose object is known, boxes, and CorLoc end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from dense_fakes import QUIET, MaskSource, colour_encoder
from PIL import Image

from glocal.errors import DataError, ModelError
from glocal.evaluation.objects import discovery
from glocal.evaluation.objects.discovery import (
    Discovery,
    box_overlap,
    component,
    lost,
    mask_boxes,
    padded_keys,
    region_box,
    tokencut,
)

OBJECT = np.zeros((8, 10), bool)
OBJECT[2:5, 3:7] = True


def object_keys(noise: float = 0.1, seed: int = 0) -> torch.Tensor:
    """Background and object point in opposite directions, roughly."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.zeros(16)
    direction[0] = 1
    sign = torch.from_numpy(np.where(OBJECT.ravel(), -1.0, 1.0)).float()
    return sign[:, None] * direction + noise * torch.randn(80, 16, generator=generator)


@pytest.mark.parametrize("find", [lost, tokencut])
def test_the_object_is_found(find: Callable[..., np.ndarray]) -> None:
    assert np.array_equal(find(object_keys(), (8, 10)), OBJECT)


def test_lost_equals_a_slow_version() -> None:
    for seed in range(5):
        keys = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
        gram = [[sum(float(a * b) for a, b in zip(p, q, strict=True)) for q in keys] for p in keys]
        degree = [sum(value > 0 for value in row) for row in gram]
        order = sorted(range(20), key=lambda place: degree[place])
        seed_patch = order[0]
        group = [place for place in order[:6] if gram[seed_patch][place] > 0]
        held = {place for place in range(20) if sum(gram[member][place] for member in group) > 0} | {
            seed_patch
        }
        region, front = {seed_patch}, [seed_patch]
        while front:
            place = front.pop()
            row, column = divmod(place, 5)
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= r < 4 and 0 <= c < 5 and r * 5 + c in held - region:
                    region.add(r * 5 + c)
                    front.append(r * 5 + c)
        assert set(np.flatnonzero(lost(keys, (4, 5), expansion=6)).tolist()) == region


@pytest.mark.parametrize("iterate_from", [2, 1000])
def test_tokencut_equals_the_generalised_problem(iterate_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "LANCZOS_FROM", iterate_from)
    keys = object_keys(noise=0.6, seed=3)
    unit = keys.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    weight = np.where(unit @ unit.T > 0.2, 1, 1e-5)
    degree = np.diag(weight.sum(1))
    _, vectors = scipy.linalg.eigh(degree - weight, degree)
    vector = vectors[:, 1]
    seed = int(np.abs(vector).argmax())
    side = (vector > vector.mean()) == (vector > vector.mean())[seed]
    assert np.array_equal(tokencut(keys, (8, 10)), component(side.reshape(8, 10), seed))


def test_boxes() -> None:
    assert region_box(OBJECT, 16, (120, 160)).tolist() == [48, 32, 112, 80]
    edge = np.ones((8, 10), bool)
    assert region_box(edge, 16, (120, 155)).tolist() == [0, 0, 155, 120]
    overlap = box_overlap(np.array([0, 0, 4, 4.0]), np.array([[2, 2, 6, 6.0], [9, 9, 10, 10.0]]))
    assert overlap.tolist() == pytest.approx([4 / 28, 0])
    mask = np.zeros((20, 20), np.uint8)
    mask[2:6, 3:9], mask[10:12, 10:12], mask[15:20, 0:5] = 1, 1, 2
    assert mask_boxes(mask, (1,), 5).tolist() == [[3, 2, 9, 6]]
    assert mask_boxes(mask, (1, 2), 1).tolist() == [[3, 2, 9, 6], [10, 10, 12, 12], [0, 15, 5, 20]]
    assert len(mask_boxes(mask, (4,), 1)) == 0


def squares(count: int = 4) -> MaskSource:
    """One red square on green, at patch borders and elsewhere in every image; sides are no whole patches."""
    masks = np.zeros((count, 60, 76), np.uint8)
    for index in range(count):
        masks[index, 16:40, 8 * index : 8 * index + 24] = 1
    colours = np.array([[40, 230, 40], [230, 40, 40]], np.uint8)
    return MaskSource(colours[masks], list(masks))


def test_corloc_end_to_end() -> None:
    source = squares()
    source.bad = (3,)
    source.masks[2] = np.zeros((60, 76), np.uint8)
    result = Discovery(methods=("tokencut",)).run(colour_encoder(), {"test": source}, QUIET)
    assert result.numbers == {"CorLoc_tokencut": 100.0, "images": 2.0}
    notes = "\n".join(result.notes)
    assert "3.png" in notes and "1 image(s) without a true object" in notes
    assert result.settings["norm"] is False


def test_finished_images_are_kept_when_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, source, protocol = colour_encoder(), squares(), Discovery(methods=("tokencut",))
    plain, work, score = (
        protocol.run(encoder, {"test": source}, QUIET),
        replace(QUIET, cache=tmp_path),
        Discovery._score,
    )
    asked: list[int] = []

    def interrupted(self: Discovery, *arguments: Any) -> object:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return score(self, *arguments)

    monkeypatch.setattr(Discovery, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        protocol.run(encoder, {"test": source}, work)
    (journal,) = tmp_path.glob("*.jsonl")
    journal.write_text(journal.read_text()[:-3])  # the second image's line is cut short
    resumed = protocol.run(encoder, {"test": source}, work)
    assert len(asked) == 3 + 3
    assert resumed.numbers == plain.numbers and resumed.rows == plain.rows
    protocol.run(encoder, {"test": source}, work)
    assert len(asked) == 3 + 3


def test_large_images_can_be_shrunk_with_their_boxes() -> None:
    native = Discovery(methods=("tokencut",)).run(colour_encoder(4), {"test": squares()}, QUIET)
    quick = Discovery.quick(colour_encoder(4))
    assert quick.longest_side == 128
    shrunk = Discovery(methods=("tokencut",), longest_side=38).run(
        colour_encoder(4), {"test": squares()}, QUIET
    )
    assert shrunk.numbers == native.numbers == {"CorLoc_tokencut": 100.0, "images": 4.0}
    assert "at most 38" in shrunk.settings["resolution"] and "native" in native.settings["resolution"]
    same = Discovery(methods=("tokencut",), longest_side=76).run(
        colour_encoder(4), {"test": squares()}, QUIET
    )
    assert same.rows == native.rows


def test_keys_of_padded_images() -> None:
    keys, grid = padded_keys(colour_encoder(), squares().pixels[0])
    assert grid == (8, 10) and keys.shape == (80, 8)
    assert keys[-1].abs().sum() < keys[0].abs().sum()
    with pytest.raises(ModelError, match="one a patch"):
        padded_keys(colour_encoder(patches=False), squares().pixels[0])


def test_voc_boxes_are_read(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / "VOC2007" / folder).mkdir(parents=True)
    source = squares(2)
    for index in range(2):
        Image.fromarray(source.pixels[index]).save(tmp_path / f"VOC2007/JPEGImages/{index}.jpg", quality=95)
        box = f"<xmin>{8 * index + 1}</xmin><ymin>17</ymin><xmax>{8 * index + 24}</xmax><ymax>40</ymax>"
        text = f"<annotation><object><name>a</name><bndbox>{box}</bndbox></object></annotation>"
        (tmp_path / f"VOC2007/Annotations/{index}.xml").write_text(text)
    (tmp_path / "VOC2007/ImageSets/Main/trainval.txt").write_text("0\n1\n")
    result = Discovery(methods=("tokencut",)).run(colour_encoder(), tmp_path, QUIET)
    assert result.numbers["CorLoc_tokencut"] == 100 and result.settings["boxes"] == "VOC annotations"
    assert result.rows[0]["tokencut"] == 1.0
    (tmp_path / "VOC2007/Annotations/1.xml").write_text("<annot")
    with pytest.raises(DataError, match="can't be read"):
        Discovery().run(colour_encoder(), tmp_path, QUIET)


def test_no_object_classes_is_an_error() -> None:
    with pytest.raises(DataError, match="object_classes"):
        Discovery(object_classes=[7]).run(colour_encoder(), {"test": squares()}, QUIET)
    with pytest.raises(DataError, match="has an object"):
        Discovery(smallest_object=10_000).run(colour_encoder(), {"test": squares()}, QUIET)
