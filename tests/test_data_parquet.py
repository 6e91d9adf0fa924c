"""Parquet files in the Hugging Face image layout."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import red_corner
from PIL import Image

from glocal.data import ParquetSource, open_source
from glocal.errors import DataError, UnreadableImageError

REAL = Path(os.environ.get("GLOCAL_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["cat", "dog", "eel"]


def png(value: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (6, 4), (value, 0, 0) if mode == "RGB" else value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, first: int = 0, rows: int = 10, group: int = 4, **columns: Any) -> Path:
    """Write rows whose red value is `first` + row; `columns` replace or (None) remove columns."""
    cells = [{"bytes": png(first + i), "path": f"{first + i}.png"} for i in range(rows)]
    made: dict[str, Any] = {
        "image": pa.array(cells, IMAGE),
        "label": pa.array([i % 3 for i in range(rows)], pa.int64()),
    }
    made = {name: column for name, column in (made | columns).items() if column is not None}
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}
    table = pa.table(made).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, compression="zstd")
    return path


def reds(source: Any) -> list[int]:
    return [source.read(i).getpixel((0, 0))[0] for i in range(len(source))]


def test_one_file(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "birds.parquet"))
    assert reds(source) == list(range(10)) and source.name == "birds"
    assert source.labels is not None and source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0] and source.class_names == NAMES
    assert source.key(7) == "7.png" and not source.has_masks
    with pytest.raises(DataError, match="no masks"):
        source.read_mask(0)
    for index in (-1, 10):
        with pytest.raises(IndexError, match="0 to 9"):
            source.read(index)


def test_several_files_and_their_splits(tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    for name, first in [
        ("train-00001-of-00002", 20),
        ("train-00000-of-00002", 0),
        ("validation-0", 40),
        ("test", 60),
    ]:
        write(folder / f"{name}.parquet", first)
    assert reds(open_source(folder)) == [*range(10), *range(20, 30)]
    assert open_source(folder).name == "birds/train"
    assert reds(open_source(folder, "val")) == list(range(40, 50))
    assert reds(open_source(folder, "test")) == list(range(60, 70))
    assert len(open_source(folder, "all")) == 40
    assert reds(open_source(folder / "train-*.parquet")) == [*range(10), *range(20, 30)]
    assert reds(open_source(str(folder / "*.parquet"), "test")) == list(range(60, 70))
    (folder / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"none of split 'test'; seen: splits train, val"):
        open_source(folder, "test")
    with pytest.raises(DataError, match="none of split 'test'"):
        open_source(folder / "validation-0.parquet", "test")


@pytest.mark.parametrize("place", ["data/train-0.parquet", "train/0000.parquet"])
def test_files_in_the_folders_of_the_hub(tmp_path: Path, place: str) -> None:
    write(tmp_path / place)
    write(tmp_path / place.replace("train", "test"), 50)
    assert reds(open_source(tmp_path)) == list(range(10))
    assert reds(open_source(tmp_path, "test")) == list(range(50, 60))


def test_files_without_split_names_are_one_set(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", 10)
    write(tmp_path / "a.parquet")
    source = open_source(tmp_path)
    assert reds(source) == list(range(20)) and source.name == tmp_path.name
    assert source.key(13) == "13.png"


def test_other_layouts(tmp_path: Path) -> None:
    plain = [png(i) for i in range(10)]
    binary = open_source(write(tmp_path / "binary.parquet", image=pa.array(plain, pa.binary()), label=None))
    assert reds(binary) == list(range(10)) and binary.labels is None and binary.key(3) == "binary.parquet#3"
    large = open_source(write(tmp_path / "large.parquet", image=None, img=pa.array(plain, pa.large_binary())))
    assert reds(large) == list(range(10))
    nameless = pa.array([{"bytes": data, "path": None} for data in plain], IMAGE)
    assert open_source(write(tmp_path / "nameless.parquet", image=nameless)).key(9) == "nameless.parquet#9"


def test_an_image_by_path_lies_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(77))
    cells = pa.array([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "gone.png"}, None], IMAGE)
    source = open_source(write(tmp_path / "x.parquet", image=cells, label=None))
    assert source.read(0).getpixel((0, 0)) == (77, 0, 0)
    with pytest.raises(UnreadableImageError, match=r"x\.parquet#1: the file does not exist"):
        source.read(1)
    with pytest.raises(UnreadableImageError, match=r"x\.parquet#2: the column 'image' is empty"):
        source.read(2)


@pytest.mark.parametrize("labels", [[None, None, None], [-1, -1, -1], [0.5, 1.0, 2.0]])
def test_no_labels_at_all(tmp_path: Path, labels: list[Any]) -> None:
    source = open_source(write(tmp_path / "x.parquet", rows=3, label=pa.array(labels)))
    assert source.labels is None and source.class_names is None and len(source) == 3


def test_text_labels_and_labels_beyond_their_names(tmp_path: Path) -> None:
    text = open_source(write(tmp_path / "text.parquet", rows=3, label=pa.array(["owl", "ant", "owl"])))
    assert (
        text.labels is not None and text.labels.tolist() == [1, 0, 1] and text.class_names == ["ant", "owl"]
    )
    beyond = open_source(write(tmp_path / "beyond.parquet", rows=3, label=pa.array([0, 1, 5])))
    assert beyond.labels is not None and beyond.labels.tolist() == [0, 1, 5] and beyond.class_names is None


def test_masks(tmp_path: Path) -> None:
    masks = pa.array([{"bytes": png(i, "L"), "path": None} for i in range(10)], IMAGE)
    source = open_source(write(tmp_path / "x.parquet", mask=masks))
    assert source.has_masks and source.subset([3]).has_masks
    np.testing.assert_array_equal(source.read_mask(6), np.full((4, 6), 6, np.uint8))
    np.testing.assert_array_equal(source.subset([3]).read_mask(0), np.full((4, 6), 3, np.uint8))


def test_memory_limit_keeps_reads_right_and_memory_small(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", rows=40, group=4)
    one_group = ParquetSource([file])._group(0, "image").nbytes
    source = ParquetSource([file], memory_limit=3 * one_group)
    order = np.random.default_rng(0).integers(0, 40, 300)
    assert [red_corner(source.read(int(i))) for i in order] == order.tolist()
    assert source._kept == sum(group.nbytes for group in source._groups.values()) <= 3 * one_group


def test_pickle_leaves_open_files_and_groups_behind(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.parquet", rows=200, group=50))
    before = len(pickle.dumps(source))
    expected = reds(source)
    assert len(pickle.dumps(source)) == before
    again = pickle.loads(pickle.dumps(source))
    assert reds(again) == expected and again.key(5) == "5.png" and again.fingerprint() == source.fingerprint()


def test_threads_and_forked_processes_read_the_same(tmp_path: Path) -> None:
    source = ParquetSource([write(tmp_path / "x.parquet", rows=60, group=7)], memory_limit=2000)
    order = np.random.default_rng(1).permutation(60).tolist()
    source.read(0)
    with ThreadPoolExecutor(4) as pool:
        assert [red_corner(image) for image in pool.map(source.read, order)] == order
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with source._lock:  # a fork while a thread reads must not leave the child waiting for it
        child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(reds(source)))
        child.start()
    assert receiver.poll(20) and receiver.recv() == list(range(60))
    child.join()


def test_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    first = open_source(write(tmp_path / "x.parquet")).fingerprint()
    assert open_source(write(tmp_path / "x.parquet")).fingerprint() == first
    assert open_source(write(tmp_path / "x.parquet", first=3)).fingerprint() != first
    assert open_source(write(tmp_path / "y.parquet")).fingerprint() != first


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut\.parquet' can't be read as parquet.*downloaded whole"):
        open_source(cut)
    with pytest.raises(DataError, match=r"no image column; its columns: label \(int64\)"):
        open_source(write(tmp_path / "none.parquet", image=None))
    write(tmp_path / "more" / "a.parquet")
    write(tmp_path / "more" / "b.parquet", image=pa.array([png(i) for i in range(10)], pa.binary()))
    with pytest.raises(
        DataError, match=r"b\.parquet': column 'image' is binary, in .*a\.parquet' it is struct"
    ):
        open_source(tmp_path / "more")
    with pytest.raises(DataError, match="no rows"):
        open_source(write(tmp_path / "empty.parquet", rows=0))
    with pytest.raises(DataError, match="No file fits"):
        open_source(tmp_path / "nothing-*.parquet")
    (tmp_path / "more" / "c.txt").touch()
    with pytest.raises(DataError, match=r"also fits .*c\.txt.*parquet files only"):
        open_source(tmp_path / "more" / "*")


def test_a_damaged_row_group_spoils_its_rows_only(tmp_path: Path) -> None:
    file = write(tmp_path / "x.parquet", rows=8, group=4)
    column = pq.read_metadata(file).row_group(0).column(0)
    data = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(data)
    source = open_source(file)
    with pytest.raises(UnreadableImageError, match=r"x\.parquet, row group 0"):
        source.read(1)
    assert source.read(5).getpixel((0, 0)) == (5, 0, 0)


needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data in {REAL} (set GLOCAL_TEST_DATA)")


@needs_real
def test_real_cifar10() -> None:
    train, test = open_source(REAL / "cifar10"), open_source(REAL / "cifar10", "test")
    assert (len(train), len(test)) == (50_000, 10_000) and train.name == "cifar10/train"
    assert train.labels is not None and np.bincount(train.labels).tolist() == [5000] * 10
    assert train.class_names is not None and train.class_names[0] == "airplane"
    some = np.stack([np.asarray(test.read(i)) for i in range(0, 10_000, 20)])
    assert some.shape == (500, 32, 32, 3)
    # The published mean of the training pixels, which 500 test images meet to about a hundredth.
    np.testing.assert_allclose(some.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=0.02)
    key = train.key(17)
    assert train.labels[17] == train.class_names.index(key.split("/")[1])


@needs_real
def test_real_camvid_masks() -> None:
    sizes = {split: open_source(REAL / "camvid", split) for split in ("train", "val", "test")}
    assert {split: len(source) for split, source in sizes.items()} == {"train": 367, "val": 101, "test": 233}
    assert all(source.has_masks and source.labels is None for source in sizes.values())
    counts = np.zeros(12, np.int64)
    for i in range(0, 367, 12):
        mask = sizes["train"].read_mask(i)
        assert mask.dtype == np.uint8 and mask.shape == sizes["train"].read(i).size[::-1] == (360, 480)
        counts += np.bincount(mask.reshape(-1), minlength=12)
    shares = counts / counts.sum()
    # Shares over all splits from the set's description: building .241, road .293, void .036.
    np.testing.assert_allclose(shares[[1, 3, 11]], [0.241, 0.293, 0.036], atol=0.04)


@needs_real
def test_real_imagenet_sample_is_rgb_and_shrinks() -> None:
    source = open_source(REAL / "imagenet_sample_1k")
    assert len(source) == 1000 and source.labels is not None and source.labels.max() == 999
    for i in range(0, 1000, 10):
        whole, small = source.read(i), source.read(i, at_least=64)
        assert whole.mode == small.mode == "RGB" and min(small.size) >= min(64, min(whole.size))
