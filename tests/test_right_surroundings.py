"""What stands around a figure: which split was opened, what is kept and reused, what is compared and said."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_fakes import QUIET, blocks, colour_encoder
from evaluation_fakes import coloured, small_encoder
from narrowing import present
from PIL import Image

from glocal.data.open import open_role, open_source
from glocal.errors import DataError, ModelError
from glocal.evaluation.all_protocols import evaluate_all
from glocal.evaluation.base import evaluate, open_split
from glocal.evaluation.compare import compare
from glocal.evaluation.results import Result, Skip, read_results, write_result
from glocal.evaluation.segmentation.masks import open_segmentation, open_train_and_test
from glocal.extraction.feature_files import clear_kept
from glocal.extraction.image_embeddings import extract_embeddings
from glocal.extraction.journal import Journal


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def split_folder(root: Path, splits: tuple[str, ...] = ("train", "test"), images: int = 6) -> Path:
    """Class folders below split folders; every image is of its class's colour, test's a little darker."""
    for number, split in enumerate(splits):
        source = coloured(images, 2, seed=number, side=16)
        for index in range(images):
            save(
                root / split / f"class{present(source.labels)[index]}" / f"{index}.png", source.pixels[index]
            )
    return root


def test_a_role_opens_its_own_split_and_no_other(tmp_path: Path) -> None:
    root = split_folder(tmp_path / "set")
    assert open_role(root, "test").name == "set/test" and open_role(root, "test").split == "test"
    assert open_role(root / "train", "test").name == "train"  # no splits below: everything
    assert open_role(f"{root}:train", "test").split == "train"  # as asked
    without = split_folder(tmp_path / "other", ("train", "val"))
    with pytest.raises(DataError, match=r"has the splits train, val and no test"):
        open_role(without, "test")


def test_a_named_split_is_opened_and_told(tmp_path: Path) -> None:
    root = split_folder(tmp_path / "set")
    assert open_split(f"{root}:train", "test", "train").split == "train"
    with pytest.raises(DataError, match="names the split 'test'; needed: train"):
        open_split(f"{root}:test", "train")
    result = evaluate("correspondence", small_encoder(), root, overrides=["images=2"], work=QUIET)
    assert result.sources["images"] == {"name": "set/test", "split": "test", "images": 6}
    assert result.made["precision"] == "float32" and result.made["device"] == "cpu"
    assert result.made["seconds"] > 0 and "torch" in result.made["versions"]


def test_pictures_replaced_at_equal_size_are_embedded_again(tmp_path: Path) -> None:
    source = coloured(2, 2, side=16)
    for index in range(2):
        path = tmp_path / "images" / f"{index}.bmp"  # the size of a bmp doesn't depend on its pixels
        save(path, source.pixels[index])
    work = replace(QUIET, cache=tmp_path / "kept")
    first = extract_embeddings(small_encoder(), open_source(tmp_path / "images"), work=work).first
    prints = open_source(tmp_path / "images").fingerprint()
    save(tmp_path / "images" / "0.bmp", 255 - source.pixels[0])
    again = open_source(tmp_path / "images")
    assert again.fingerprint() != prints
    assert not torch.equal(extract_embeddings(small_encoder(), again, work=work).first[0], first[0])


def test_a_file_written_anew_has_another_state_and_the_same_fingerprint(tmp_path: Path) -> None:
    save(tmp_path / "images" / "0.png", coloured(1, 1).pixels[0])
    source = open_source(tmp_path / "images")
    before = [source.fingerprint(), source.state(), source.subset([0]).state()]
    os.utime(tmp_path / "images" / "0.png", ns=(1, 1))
    later = open_source(tmp_path / "images")
    after = [later.fingerprint(), later.state(), later.subset([0]).state()]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, False]


@pytest.mark.parametrize("what", ["byte", "label of the file"])
def test_damaged_kept_features_are_made_anew_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    source, work = coloured(5, 2), replace(QUIET, cache=tmp_path)
    first = extract_embeddings(small_encoder(), source, work=work).first
    file = next(tmp_path.rglob("cls*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-7 if what == "byte" else content.index(b"checksum") + 12] ^= 1
    file.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(extract_embeddings(small_encoder(), source, work=work).first, first)
    assert "is damaged" in caplog.text and file.name in caplog.text
    caplog.clear()
    extract_embeddings(small_encoder(), source, work=work)
    assert caplog.text == ""


def test_a_damaged_line_of_a_journal_is_dropped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, ["x"])
    for name in ("a", "b", "c"):
        journal.add(name, {"score": 0.125})
    (file,) = tmp_path.glob("*.jsonl")
    file.write_text(file.read_text().replace('"b", {"score": 0.125', '"b", {"score": 0.625'))
    read = Journal(tmp_path, ["x"])
    assert (read.get("a"), read.get("b"), read.get("c")) == ({"score": 0.125}, None, {"score": 0.125})
    assert "1 line(s) are damaged" in caplog.text
    assert len(file.read_text().splitlines()) == 2


def test_kept_features_can_be_cleared_and_nothing_else(tmp_path: Path) -> None:
    work = replace(QUIET, cache=tmp_path / "features")
    extract_embeddings(small_encoder(), coloured(5, 2), work=work)
    Journal(work.cache, ["x"]).add("a", 1)
    (tmp_path / "results.json").write_text("{}")
    files, size = clear_kept(tmp_path)
    assert files == 3 and size > 5 * 64 * 4
    assert list(tmp_path.rglob("*.safetensors")) == [] and (tmp_path / "results.json").exists()


def voc_style(root: Path, values: int, names: list[str]) -> None:
    source = blocks(len(names), classes=values, seed=3)
    for index, name in enumerate(names):
        save(root / f"JPEGImages/{name}.jpg", source.pixels[index])
        save(root / f"SegmentationClass/{name}.png", source.masks[index])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names[:-1]))
    (root / "ImageSets/Segmentation/val.txt").write_text(names[-1])


def test_a_folder_in_the_form_of_voc_has_the_classes_of_its_data(tmp_path: Path) -> None:
    voc_style(tmp_path / "mine", 3, ["a", "b", "c"])
    train, test = open_train_and_test(tmp_path / "mine")
    assert (train.num_classes, test.class_names) == (3, ("0", "1", "2"))
    (tmp_path / "mine/labelmap.txt").write_text(
        "# label:colour\nsoil:0,0,0::\ncrop:1,1,1::\nweed:2,2,2::\nrest:3,3,3::\n"
    )
    assert open_train_and_test(tmp_path / "mine")[1].class_names == ("soil", "crop", "weed")
    voc_style(tmp_path / "published", 3, ["2007_000032", "2007_000039", "2008_000123"])
    assert open_train_and_test(tmp_path / "published")[0].num_classes == 21


@pytest.mark.parametrize("form", ["images/{split}", "{split}/images"])
def test_plain_folders_of_images_and_masks(tmp_path: Path, form: str) -> None:
    for seed, split in enumerate(("train", "test")):
        source, folder = blocks(3, seed=seed), form.format(split=split)
        for index in range(3):
            save(tmp_path / folder / f"{index}.jpg", source.pixels[index])
            save(tmp_path / folder.replace("images", "masks") / f"{index}.png", source.masks[index])
    save(tmp_path / form.format(split="train") / "alone.jpg", source.pixels[0])
    train, test = open_train_and_test(tmp_path)
    assert (len(train), len(test), train.num_classes) == (3, 3, 3)
    assert "1 without a mask" in train.source.name
    assert np.array_equal(test.mask(1), blocks(3, seed=1).masks[1])


def test_a_repaired_mask_and_changed_boxes_are_seen(tmp_path: Path) -> None:
    voc_style(tmp_path / "mine", 3, ["a", "b", "c"])
    mask = tmp_path / "mine/SegmentationClass/c.png"
    before = open_segmentation(tmp_path / "mine", "val").checked().source.state()
    save(mask, np.asarray(Image.open(mask)).T.copy())
    changed = open_segmentation(tmp_path / "mine", "val").checked().source.state()
    assert changed != before
    work, settings = replace(QUIET, cache=tmp_path / "kept"), ["methods=[lost]", "object_classes=[1]"]
    encoder, root = colour_encoder(), tmp_path / "mine"
    wide = evaluate("discovery", encoder, root, overrides=[*settings, "smallest_object=1"], work=work)
    whole = np.ones((32, 32), np.uint8)
    save(mask, whole)
    again = evaluate("discovery", encoder, root, overrides=[*settings, "smallest_object=1"], work=work)
    fresh = evaluate("discovery", encoder, root, overrides=[*settings, "smallest_object=1"], work=QUIET)
    assert again.rows == fresh.rows != wide.rows


@pytest.mark.parametrize(
    "protocol",
    [
        "knn",
        "linear",
        "logistic",
        "statistics",
        "retrieval",
        "correspondence",
        "knn-seg",
        "hummingbird",
        "overclustering",
        "linear-seg-100",
    ],
)
def test_features_that_are_no_numbers_are_refused(protocol: str) -> None:
    encoder = small_encoder()
    with torch.no_grad():
        encoder.backbone.get_parameter("norm.weight")[3] = torch.nan
    data = {"train": blocks(12, name="train"), "test": blocks(6, seed=1, name="test")}
    for source in data.values():
        source.labels = np.arange(len(source)) % 2
    with pytest.raises(ModelError, match=r"layer -\d aren't finite"):
        evaluate(protocol, encoder, data, work=QUIET)


def test_a_model_without_patches_has_a_class_token_and_no_mean_patch(tmp_path: Path) -> None:
    work, encoder = replace(QUIET, cache=tmp_path), colour_encoder(patches=False)
    assert extract_embeddings(encoder, blocks(3), work=work).first.shape == (3, 8)
    with pytest.raises(ModelError, match="no patches, so there is no 'mean_patches'"):
        extract_embeddings(encoder, blocks(3), what=["mean_patches"], work=work)


def test_compare_tells_every_setting_that_decides_and_none_that_was_picked(tmp_path: Path) -> None:
    def write(run: str, settings: dict[str, object], picked: str, device: str = "cpu") -> None:
        made = {"precision": "float32", "device": device}
        write_result(
            tmp_path / run / "results.json",
            Result(
                "linear",
                1,
                settings,
                {"top1": 1.0},
                model={"fingerprint": run},
                picked={"input": picked},
                made=made,
            ),
        )

    write("a", {"memory": 500, "transform": {"size": 32}}, "cls")
    write("b", {"memory": 5000, "transform": {"size": 32}}, "cls+mean")
    write("c", {"memory": 500, "transform": {"size": 48}}, "cls", device="H200")
    warnings = compare([tmp_path / "a", tmp_path / "b"]).warnings
    assert len(warnings) == 1 and "memory differs" in warnings[0] and "5000" in warnings[0]
    other = " ".join(compare([tmp_path / "a", tmp_path / "c"]).warnings)
    assert "transform.size differs" in other and "device differs" in other


def test_results_of_several_writers_all_stay(tmp_path: Path) -> None:
    def write(number: int) -> None:
        write_result(tmp_path / "results.json", Result("knn", 1, {"k": number}, {"top1": float(number)}))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert sorted(r.settings["k"] for r in read_results(tmp_path / "results.json")) == list(range(40))


def test_a_protocol_that_breaks_is_a_named_failure_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("glocal.evaluation.classification.knn.KnnConfig.run", broken)
    data = {"train": coloured(30, 3, name="train"), "test": coloured(12, 3, seed=1, name="test")}
    settings = ["linear.least_steps=20", "linear.epochs=1", "correspondence.images=2"]
    found = list(evaluate_all(small_encoder(), data, overrides=settings, out=tmp_path, work=QUIET))
    failures = [f for f in found if isinstance(f, Skip) and f.failed]
    assert [f.protocol for f in failures] == ["knn"] and "ZeroDivisionError: by nought" in failures[0].reason
    assert any(isinstance(f, Result) and f.protocol == "statistics" for f in found)
    assert [s["failed"] for s in json.loads((tmp_path / "results.json").read_text())["skipped"]].count(
        True
    ) == 1


@pytest.mark.parametrize("form", ["isc", "copydays"])
def test_copy_detection_is_not_measured_as_retrieval(tmp_path: Path, form: str) -> None:
    pictures = coloured(4, 2, side=16).pixels
    for index, picture in enumerate(pictures):
        save(tmp_path / ("references" if form == "isc" else "original") / f"{index:04d}.png", picture)
        save(tmp_path / ("queries" if form == "isc" else "jpeg/75") / f"{index:04d}q.png", picture)
    if form == "isc":
        (tmp_path / "ground_truth.csv").write_text("".join(f"{i:04d}q,{i:04d}\n" for i in range(4)))
    with pytest.raises(DataError, match="glocal evaluate copy_detection"):
        evaluate("retrieval", small_encoder(), tmp_path, work=QUIET)
    assert evaluate("copy_detection", small_encoder(), tmp_path, work=QUIET).numbers["queries"] == 4


def test_a_test_split_without_labels_is_passed_over_for_val() -> None:
    data = {
        "train": coloured(40, 2, name="train"),
        "test": coloured(10, 2, name="t"),
        "val": coloured(20, 2, seed=1, name="v"),
    }
    data["test"].labels = None
    result = evaluate("knn", small_encoder(), data, overrides=["ks=[1]"], work=QUIET)
    assert result.sources["test"]["name"] == "v" and "t has no labels: val was tested" in result.notes


@pytest.mark.parametrize("protocol", ["knn", "linear", "logistic"])
def test_class_folders_without_splits_are_divided_and_said(tmp_path: Path, protocol: str) -> None:
    source = coloured(40, 2, side=16)
    for index in range(40):
        save(
            tmp_path / "set" / f"class{present(source.labels)[index]}" / f"{index}.png", source.pixels[index]
        )
    quick = {
        "knn": ["ks=[1]"],
        "linear": ["least_steps=20", "epochs=1"],
        "logistic": ["shares=[]", "per_class=[2]"],
    }
    result = evaluate(protocol, small_encoder(), tmp_path / "set", overrides=quick[protocol], work=QUIET)
    assert [s["images"] for s in result.sources.values()] == [32, 8]
    assert "set has no splits: a fifth of every class" in result.notes[0]


def test_one_image_is_prepared_as_evaluations_do(tmp_path: Path) -> None:
    source, encoder = coloured(1, 1), small_encoder()
    expected = extract_embeddings(encoder, source, work=QUIET).first
    image = source.read(0)
    image.save(tmp_path / "a.png")
    for given in (image, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(encoder.features(encoder.transform(given)).cls, expected)
