"""What `data=` may say: splits, column filters, labels that are missing, large or not wanted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from narrowing import present
from pictures import red_corner
from test_data_folder import write as write_images
from test_data_parquet import write

from glocal.data import open_source
from glocal.data.open import open_role, splits_of
from glocal.data.splits import DataSpec, read_spec
from glocal.errors import DataError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("pacs", DataSpec("pacs")),
        ("pacs:testing", DataSpec("pacs", "test")),
        ("pacs:val:domain=photo,sketch", DataSpec("pacs", "val", {"domain": ("photo", "sketch")})),
        ("pacs:domain=photo:val", DataSpec("pacs", "val", {"domain": ("photo",)})),
        ("a:b/c.csv:labels=false", DataSpec("a:b/c.csv", labels=False)),
        ("cifar10:download:test", DataSpec("cifar10", "test", download=True)),
        ("pacs:b", DataSpec("pacs:b")),
    ],
)
def test_what_data_says(text: str, spec: DataSpec) -> None:
    assert read_spec(text) == spec


def test_a_path_that_exists_is_taken_whole(tmp_path: Path) -> None:
    write_images(tmp_path, "odd:test/a.png")
    assert len(open_source(f"{tmp_path}/odd:test")) == 1


@pytest.mark.parametrize(
    ("text", "says"), [("x:train:test", "two splits"), ("x:domain=", "give the values"), ("\0", "no path")]
)
def test_specs_that_say_nothing_sensible(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_source(text)


def test_columns_of_parquet_choose_rows(tmp_path: Path) -> None:
    domains = pa.array(["photo", "sketch"] * 5)
    write(tmp_path / "pacs" / "train-0.parquet", domain=domains)
    write(tmp_path / "pacs" / "test-0.parquet", first=100, domain=domains)
    photos = open_source(f"{tmp_path}/pacs:test:domain=photo")
    assert [red_corner(photos.read(i)) for i in range(len(photos))] == [100, 102, 104, 106, 108]
    assert photos.name == "pacs/test:domain=photo"
    with pytest.raises(DataError, match=r"domain=phot\. Did you mean 'photo'.*Values: photo, sketch"):
        open_source(f"{tmp_path}/pacs:domain=phot")
    with pytest.raises(DataError, match=r"no column 'domian'.*Did you mean 'domain'"):
        open_source(f"{tmp_path}/pacs:domian=photo")


def test_a_role_opens_its_own_split(tmp_path: Path) -> None:
    write_images(tmp_path, "train/x/a.png", "train/y/b.png", "test/x/c.png", "test/y/d.png", "test/y/e.png")
    assert splits_of(str(tmp_path)) == ("train", "test")
    assert len(open_role(str(tmp_path), "test")) == 3
    assert len(open_role(f"{tmp_path}/train", "test")) == 2
    with pytest.raises(DataError, match=r"has the splits train, test and no val\. Name the one to use"):
        open_role(str(tmp_path), "val")


def test_labels_can_be_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "2015/a.png", "2016/b.png")
    assert open_source(str(tmp_path)).class_names == ["2015", "2016"]
    refused = open_source(f"{tmp_path}:labels=false")
    assert refused.labels is None and refused.class_names is None and len(refused) == 2


def test_one_missing_label_leaves_the_others(tmp_path: Path) -> None:
    numbers = open_source(write(tmp_path / "n.parquet", rows=3, label=pa.array([0, None, 1])))
    texts = open_source(write(tmp_path / "t.parquet", rows=3, label=pa.array(["owl", None, "ant"])))
    assert numbers.labels is not None and numbers.labels.tolist() == [0, -1, 1] and numbers.class_names
    assert texts.labels is not None and texts.labels.tolist() == [1, -1, 0]
    assert texts.column("label").tolist() == ["owl", "", "ant"]


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_large_numbers_are_names(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([5_000_000_000, 7, 5_000_000_000], kind)
    source = open_source(write(tmp_path / "x.parquet", rows=3, label=values))
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]
    assert source.class_names == ["7", "5000000000"]


def test_a_list_with_a_header_has_columns_and_splits(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png", "c.png")
    table = tmp_path / "table.csv"
    table.write_text(
        "filename,width,class,split,domain\na.png,8,rose,train,x\nb.png,8,daisy,test,y\nc.png,8,,train,y\n"
    )
    train, test = open_source(table), open_source(f"{table}:test")
    assert (
        train.labels is not None
        and train.labels.tolist() == [1, -1]
        and train.class_names == ["daisy", "rose"]
    )
    assert test.labels is not None and test.labels.tolist() == [0] and test.name == "table/test"
    assert open_source(f"{table}:all:domain=y").column("width").tolist() == ["8", "8"]
    huge = tmp_path / "huge.csv"
    huge.write_text(f"a.png,1\nb.png,{10**15}\nc.png,{10**40}\n")
    named = open_source(huge)
    assert named.class_names is not None and len(named.class_names) == 3
    assert np.unique(present(named.labels)).tolist() == [0, 1, 2]
