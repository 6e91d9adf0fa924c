"""Folders and list files: what is found, in which order, under which labels, and what is said when nothing is."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glocal.data import hold_out, open_folder, open_list, open_source
from glocal.errors import DataError, UnreadableImageError


def write(root: Path, *names: str, size: tuple[int, int] = (6, 4)) -> Path:
    """Write an image under each name; its colour tells its position."""
    for position, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (position * 10, 0, 0)).save(root / name, "PNG")
    return root


def keys(source: object) -> list[str]:
    return [source.key(i) for i in range(len(source))]  # type: ignore[attr-defined, arg-type]


def touch(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_flat_folder(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "photos of mine", "b.png", "a.PNG", "c.jpeg"))
    assert keys(source) == ["a.PNG", "b.png", "c.jpeg"]
    assert source.labels is None and source.class_names is None and source.name == "photos of mine"
    assert source.read(1).getpixel((0, 0)) == (0, 0, 0)
    assert source.read(0).getpixel((0, 0)) == (10, 0, 0)


def test_class_folders_at_any_depth(tmp_path: Path) -> None:
    source = open_source(
        write(tmp_path, "dog/a.png", "cat/x/y/b.png", "cat/a.png", "dog/z.png", "empty/readme.txt")
    )
    assert keys(source) == ["cat/a.png", "cat/x/y/b.png", "dog/a.png", "dog/z.png"]
    assert source.labels is not None and source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.class_names == ["cat", "dog"]


def test_one_folder_or_loose_images_are_no_classes(tmp_path: Path) -> None:
    assert open_source(write(tmp_path / "one", "all/a.png", "all/b.png")).labels is None
    loose = open_source(write(tmp_path / "loose", "cat/a.png", "dog/a.png", "a.png"))
    assert loose.labels is None and keys(loose) == ["a.png", "cat/a.png", "dog/a.png"]


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "a.png", ".b.png", ".thumbnails/c.png", "d/.e/f.png", "d/g.png"))
    assert keys(source) == ["a.png", "d/g.png"]


def test_split_folders(tmp_path: Path) -> None:
    write(
        tmp_path,
        "train/cat/a.png",
        "train/dog/b.png",
        "train/eel/c.png",
        "validation/dog/d.png",
        "test/e.png",
    )
    (tmp_path / "README.md").touch()
    assert keys(open_source(tmp_path)) == ["train/cat/a.png", "train/dog/b.png", "train/eel/c.png"]
    val = open_source(tmp_path, "val")
    assert val.name == f"{tmp_path.name}/val" and keys(val) == ["validation/dog/d.png"]
    # 'dog' has the number that it has in train, though cat and eel are not here.
    assert val.labels is not None and val.labels.tolist() == [1] and val.class_names == ["cat", "dog", "eel"]
    assert open_source(tmp_path, "test").labels is None
    assert len(open_source(tmp_path, "all")) == 5 and open_source(tmp_path, "all").labels is None


def test_all_splits_together_keep_their_classes(tmp_path: Path) -> None:
    write(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/dog/d.png", "val/cat/d.png")
    both = open_source(tmp_path, "all")
    assert (
        both.labels is not None
        and both.labels.tolist() == [0, 1, 0, 1]
        and both.class_names == ["cat", "dog"]
    )


def test_a_class_of_trains_is_no_split(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "train/a.png", "bus/a.png"))
    assert source.class_names == ["bus", "train"]
    with pytest.raises(DataError, match="no split 'test'"):
        open_source(tmp_path, "test")


def test_missing_split_and_wrong_split_name(tmp_path: Path) -> None:
    write(tmp_path, "train/a.png", "val/b.png")
    with pytest.raises(DataError, match=r"no split 'test'.*It has: train, val"):
        open_source(tmp_path, "test")
    with pytest.raises(DataError, match=r"no split 'tset'.*Did you mean 'test'"):
        open_source(tmp_path, "tset")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "data", "cat/a.png", "dog/b.png")
    write(tmp_path / "elsewhere", "c.png")
    (tmp_path / "data" / "eel").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "dog" / "self").symlink_to(tmp_path / "data" / "dog")
    source = open_source(tmp_path / "data")
    assert keys(source) == ["cat/a.png", "dog/b.png", "eel/c.png"]
    assert source.class_names == ["cat", "dog", "eel"]


def test_a_broken_link_is_listed_and_unreadable(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    source = open_source(tmp_path)
    assert len(source) == 2 and isinstance(source.fingerprint(), str)
    with pytest.raises(UnreadableImageError, match=r"b\.png: the file does not exist"):
        source.read(1)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "ü日.png").write_bytes(b"")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123 (bytes)
        Image.new("RGB", (3, 2)).save(file, "PNG")
    source = open_source(tmp_path)
    assert keys(source) == ["caf\\xe9.png", "ü日.png"]
    assert source.read(0).size == (3, 2)


def test_nothing_found_says_what_was_there(tmp_path: Path) -> None:
    touch(tmp_path, ["a.psd", "sub/b.npy"])
    with pytest.raises(
        DataError, match=r"No images in .*2 folders were searched.*\.npy, \.psd.*Allowed endings: \.jpg"
    ):
        open_source(tmp_path)
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="1 folder was searched"):
        open_source(tmp_path / "void")


def test_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "flowers", "a.png")
    with pytest.raises(DataError, match=r"does not exist. Did you mean 'flowers'\?"):
        open_source(tmp_path / "flower")


def test_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a/a.png", "b/b.png")
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if os.fsencode(folder).endswith(b"b"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"b' can't be read: Permission denied.*permissions"):
        open_source(tmp_path)


def test_positions_outside_are_refused(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "a.png", "b.png"))
    for index in (-1, 2):
        with pytest.raises(IndexError, match="0 to 1"):
            source.read(index)
        with pytest.raises(IndexError, match="0 to 1"):
            source.key(index)


def test_fingerprint_changes_with_names_and_sizes(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    first = open_source(tmp_path).fingerprint()
    assert open_source(tmp_path).fingerprint() == first and len(first) == 16
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    renamed = open_source(tmp_path).fingerprint()
    write(tmp_path, "a.png", size=(200, 100))
    resized = open_source(tmp_path).fingerprint()
    write(tmp_path, "d.png")
    assert len({first, renamed, resized, open_source(tmp_path).fingerprint()}) == 4


def test_pickles_small_and_reads_the_same(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "cat/a.png", "dog/b.png"))
    again = pickle.loads(pickle.dumps(source))
    assert keys(again) == keys(source) and again.fingerprint() == source.fingerprint()
    assert again.read(1).getpixel((0, 0)) == (10, 0, 0) and again.labels.tolist() == [0, 1]


def test_subset_and_subset_of_it(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(4))))
    part = source.subset([7, 0, 5]).subset([2, 0])
    assert keys(part) == ["b/1.png", "b/3.png"] and part.labels is not None and part.labels.tolist() == [1, 1]
    assert part.class_names == ["a", "b"]
    assert part.read(0).getpixel((0, 0)) == (50, 0, 0)
    assert part.fingerprint() != source.subset([7, 5]).fingerprint()
    assert pickle.loads(pickle.dumps(part)).key(1) == "b/3.png"
    for wrong in ([8], [-1]):
        with pytest.raises(DataError, match="0 to 7"):
            source.subset(wrong)
    with pytest.raises(DataError, match="no masks"):
        part.read_mask(0)
    assert len(source.subset([])) == 0


@given(count=st.integers(0, 12), seed=st.integers(0, 2**63))
@settings(max_examples=30, deadline=None)
def test_hold_out_parts_are_disjoint_and_complete(
    count: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "hold_out"
    if not root.exists():
        touch(root, (f"{i:02d}.png" for i in range(12)))
    source = open_source(root)
    rest, held = hold_out(source, count, seed)
    assert len(held) == count and sorted(keys(rest) + keys(held)) == keys(source)
    assert keys(held) == sorted(keys(held)) == keys(hold_out(source, count, seed)[1])


def test_hold_out_depends_on_the_seed_and_has_limits(tmp_path: Path) -> None:
    source = open_source(touch(tmp_path, (f"{i:02d}.png" for i in range(30))))
    assert keys(hold_out(source, 10, 0)[1]) != keys(hold_out(source, 10, 1)[1])
    for count in (-1, 31):
        with pytest.raises(DataError, match=f"Can't hold out {count} of the 30"):
            hold_out(source, count, 0)


def test_list_file_of_paths(tmp_path: Path) -> None:
    write(tmp_path, "x/b.png", "a, with comma.png")
    (tmp_path / "list.txt").write_text(f"x/b.png\n\na, with comma.png\n{tmp_path}/x/b.png\n")
    source = open_source(tmp_path / "list.txt")
    assert keys(source) == ["x/b.png", "a, with comma.png", f"{tmp_path}/x/b.png"]
    assert source.labels is None and source.name == "list"
    assert [source.read(i).getpixel((0, 0)) for i in range(3)] == [(0, 0, 0), (10, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_list_file_with_labels(tmp_path: Path, name: str) -> None:
    write(tmp_path, "a.png", "b, c.png")
    (tmp_path / name).write_text(
        '\ufeffpath,label\r\na.png,rose\r\n"b, c.png", daisy\r\na.png,rose\r\n', encoding="utf-8"
    )
    source = open_list(tmp_path / name)
    assert keys(source) == ["a.png", "b, c.png", "a.png"]
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]
    assert source.class_names == ["daisy", "rose"]
    (tmp_path / name).write_text("a.png,7\na.png,3\n")
    numbered = open_list(tmp_path / name)
    assert numbered.labels is not None and numbered.labels.tolist() == [7, 3] and numbered.class_names is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no images"),
        ("path,label\n", "names no images"),
        ("a.png,1\na.png\n", r"line 2: 'a\.png' has 1 columns, 2 are expected"),
        ("a.png,1,2\n", "line 1"),
        ("nowhere/b.png\n", r"none of the first 1 images exists.*relative to its folder"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, reason: str) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=reason):
        open_source(tmp_path / "list.txt")


def test_list_file_has_no_splits(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text("a.png\n")
    with pytest.raises(DataError, match="no split 'test'"):
        open_source(tmp_path / "list.txt", "test")


@pytest.mark.slow
def test_100000_files_are_indexed_in_two_seconds(tmp_path: Path) -> None:
    touch(tmp_path, (f"class_{c:03d}/image_{i:05d}.jpg" for c in range(100) for i in range(1000)))
    open_folder(tmp_path)
    start = time.perf_counter()
    source = open_folder(tmp_path)
    assert time.perf_counter() - start < 2
    assert len(source) == 100_000 and len(source.class_names or []) == 100
    # Names, offsets and labels in flat buffers, not a Python object an image.
    assert len(pickle.dumps(source)) < 100_000 * 50
