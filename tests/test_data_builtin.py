"""Built-in sets: digits, the bundled photographs and their tiles, CIFAR from its binary archives; and open_source."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
import tarfile
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glocal.data import ArraySource, PhotoSource, TileSource, cifar, open_cifar, open_source
from glocal.errors import DataError

needs_photos = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed"
)


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = open_source("digits", "all")
    assert len(whole) == 1797 and whole.name == "digits" and whole.class_names == [str(d) for d in range(10)]
    assert whole.labels is not None
    np.testing.assert_array_equal(whole.labels, bunch.target)
    for i in (0, 7, 1796):
        pixels = np.asarray(whole.read(i))
        assert pixels.shape == (8, 8, 3)
        np.testing.assert_allclose(pixels[..., 1] / 255 * 16, bunch.images[i], atol=0.5 / 255 * 16)


def test_digits_splits_are_fixed_and_disjoint() -> None:
    train, test = open_source("digits"), open_source("digits:test")
    assert (len(train), len(test), train.name, test.name) == (1437, 360, "digits/train", "digits/test")
    names = [s.key(i) for s in (train, test) for i in range(len(s))]
    assert len(set(names)) == 1797
    assert test.labels is not None and set(test.labels.tolist()) == set(range(10))
    assert test.fingerprint() == open_source("digits", "test").fingerprint() != train.fingerprint()
    with pytest.raises(DataError, match=r"no split 'val'. Allowed: train, test, all"):
        open_source("digits", "val")
    with pytest.raises(DataError, match="names split 'test', but 'train' is wanted"):
        open_source("digits:test", "train")


def test_array_source_gives_its_images() -> None:
    colour = ArraySource("c", np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3))
    np.testing.assert_array_equal(np.asarray(colour.read(1)), colour._pixels[1])


@pytest.mark.usefixtures("unchecked")
def test_array_source_refuses_other_kinds_and_counts() -> None:
    with pytest.raises(DataError, match="2 images and 3 labels"):
        ArraySource("w", np.zeros((2, 4, 5), np.uint8), np.zeros(3, np.int64))
    for wrong in (np.zeros((2, 4, 5)), np.zeros((2, 4, 5, 4), np.uint8), np.zeros((4, 5), np.uint8)):
        with pytest.raises(DataError, match="must be uint8"):
            ArraySource("w", wrong)


@needs_photos
def test_photos() -> None:
    photos = open_source("photos")
    assert len(photos) == 18 and photos.labels is None
    assert [photos.key(i) for i in (0, 16, 17)] == ["astronaut", "china", "flower"]
    sizes = [photos.read(i).size for i in range(18)]
    assert (
        sizes[0] == (512, 512)
        and sizes[17] == (640, 427)
        and all(photos.read(i).mode == "RGB" for i in range(18))
    )
    assert pickle.loads(pickle.dumps(photos)).fingerprint() == photos.fingerprint()
    with pytest.raises(DataError, match="photos has no splits"):
        open_source("photos", "test")


@needs_photos
def test_tiles_are_cut_from_the_photos() -> None:
    tiles = open_source("photos-tiles")
    assert tiles.labels is not None and tiles.class_names is not None
    assert len(tiles) == len(tiles.labels) == 836 and len(set(tiles.labels.tolist())) == 18
    assert len({tiles.key(i) for i in range(len(tiles))}) == 836
    photos = PhotoSource()
    for i in (0, 100, 835):
        name, _, place = tiles.key(i).partition("/")
        left, top = map(int, place.split(","))
        assert tiles.class_names[tiles.labels[i]] == name
        whole = np.asarray(photos.read(tiles.class_names.index(name)))
        np.testing.assert_array_equal(np.asarray(tiles.read(i)), whole[top : top + 84, left : left + 84])
    assert len(pickle.dumps(tiles)) < 50_000
    np.testing.assert_array_equal(
        np.asarray(pickle.loads(pickle.dumps(tiles)).read(5)), np.asarray(tiles.read(5))
    )


def test_tile_grid() -> None:
    image = ArraySource("one", np.arange(10 * 12, dtype=np.uint8).reshape(1, 10, 12))
    tiles = TileSource(image, side=4, stride=3)
    assert [tiles.key(i) for i in range(len(tiles))] == [
        f"one#0/{x},{y}" for y in (0, 3, 6) for x in (0, 3, 6)
    ]
    assert tiles.fingerprint() != TileSource(image, side=4).fingerprint()
    assert len(TileSource(image, side=4)) == 6
    with pytest.raises(DataError, match="room for a tile of 11"):
        TileSource(image, side=11)
    with pytest.raises(DataError, match="stride=0"):
        TileSource(image, side=4, stride=0)


def test_photos_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'glocal\[photos\]'"):
        open_source("photos")


# ------------------------------------------------------------------------------------------------------------ CIFAR


def records(name: str, rows: int, seed: int) -> np.ndarray:
    """Random records in the published layout: label bytes, then the red, green and blue plane."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, (rows, cifar.CIFAR[name].label_bytes))
    return np.concatenate([labels, generator.integers(0, 256, (rows, 3072))], axis=1).astype(np.uint8)


def make_archive(folder: Path, name: str = "cifar10", leave_out: str = "") -> Path:
    """Write a small archive with the names and the layout of the official one."""
    archive = cifar.CIFAR[name]
    members = {file: records(name, 4, seed).tobytes() for seed, file in enumerate(archive.files("all"))}
    members[archive.names] = "".join(f"class{i}\n" for i in range(10)).encode() + b"\n"
    members["readme.html"] = b"<html></html>"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / archive.file, "w:gz") as tar:
        for file, data in members.items():
            if file != leave_out:
                info = tarfile.TarInfo(f"{archive.folder}/{file}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / archive.file


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_cifar_records(tmp_path: Path, name: str, split: str) -> None:
    make_archive(tmp_path, name)
    source = open_cifar(name, split, folder=tmp_path, verify=False)
    order = cifar.CIFAR[name].files("all")
    rows = np.concatenate([records(name, 4, order.index(file)) for file in cifar.CIFAR[name].files(split)])
    assert len(source) == len(rows) and source.name == f"{name}/{split}"
    labels = rows[:, 0] if name == "cifar10" else rows[:, 1]  # CIFAR-100: coarse, then fine
    assert source.labels is not None and source.labels.tolist() == labels.tolist()
    assert source.class_names is not None and source.class_names[3] == "class3"
    last = len(rows) - 1
    planes = rows[last, -3072:]
    expected = np.stack([planes[:1024], planes[1024:2048], planes[2048:]], axis=-1).reshape(32, 32, 3)
    np.testing.assert_array_equal(np.asarray(source.read(last)), expected)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(np.asarray(again.read(last)), expected)
    assert len(pickle.dumps(source)) < 5_000 and again.fingerprint() == source.fingerprint()
    assert source.key(last) == f"{cifar.CIFAR[name].files(split)[-1]}#3"


def test_cifar_unpacks_once(tmp_path: Path) -> None:
    packed = make_archive(tmp_path)
    open_cifar("cifar10", folder=tmp_path, verify=False)
    packed.unlink()
    assert len(open_cifar("cifar10", "test", folder=tmp_path, verify=False)) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["cifar-10-batches-bin"]


def test_cifar_checks_what_it_finds(tmp_path: Path) -> None:
    make_archive(tmp_path / "a")
    with pytest.raises(
        DataError, match=r"MD5 [0-9a-f]{32}, the published .* c32a1d4ab5d03f1284b67883e8d87530"
    ):
        open_cifar("cifar10", folder=tmp_path / "a")
    assert not (tmp_path / "a" / "cifar-10-batches-bin").exists()
    open_cifar("cifar10", folder=tmp_path / "a", verify=False)
    with pytest.raises(DataError, match=r"wrong size. Delete this folder"):
        open_cifar("cifar10", folder=tmp_path / "a")
    (tmp_path / "a" / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\.bin"):
        open_cifar("cifar10", folder=tmp_path / "a", verify=False)
    make_archive(tmp_path / "b", leave_out="test_batch.bin")
    with pytest.raises(DataError, match=r"lacks test_batch\.bin"):
        open_cifar("cifar10", folder=tmp_path / "b", verify=False)
    packed = make_archive(tmp_path / "c")
    packed.write_bytes(packed.read_bytes()[:5000])
    with pytest.raises(DataError, match="can't be unpacked"):
        open_cifar("cifar10", folder=tmp_path / "c", verify=False)
    assert [entry.name for entry in (tmp_path / "c").iterdir()] == [packed.name]


def test_cifar_is_not_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOCAL_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *a, **k: pytest.fail("went to the network"))
    with pytest.raises(DataError, match=r"mine and .*\.cache/glocal.*cifar10:download"):
        open_source("cifar10")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DataError, match="pickled version, which is not read"):
        open_source("cifar10")
    with pytest.raises(DataError, match=r"no split 'val'. Allowed: train, test, all"):
        open_source("cifar10", "val")


def test_cifar_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_archive(tmp_path / "server").read_bytes()
    monkeypatch.setenv("GLOCAL_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("HOME", str(tmp_path))
    asked: list[str] = []

    def serve(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(data)

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    with pytest.raises(DataError, match=r"https://.*MD5"):
        open_source("cifar10:download")
    assert list((tmp_path / "mine").iterdir()) == []
    small = replace(
        cifar.CIFAR["cifar10"], md5=hashlib.md5(data, usedforsecurity=False).hexdigest(), images=24
    )
    monkeypatch.setitem(cifar.CIFAR, "cifar10", small)
    assert len(open_source("cifar10:download")) == 20 and len(open_source("cifar10:download", "test")) == 4
    assert len(asked) == 2 and asked[0].endswith("/cifar-10-binary.tar.gz")

    def refuse(address: str, timeout: float) -> io.BytesIO:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"no route to host.*Check the network"):
        open_source("cifar100:download")
    assert not list((tmp_path / "mine").glob("*.part"))


# ------------------------------------------------------------------------------------------------------ open_source


def test_unknown_names_get_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"'cifar-10' does not exist. Did you mean 'cifar10'\?.*list file"):
        open_source("cifar-10")
    with pytest.raises(DataError, match=r"no bundled set 'digit'. Did you mean 'digits'"):
        open_source("builtin:digit")
    with pytest.raises(DataError, match="is an address"):
        open_source("https://example.org/images")
    with pytest.raises(DataError, match="data is empty"):
        open_source("")
    with pytest.raises(DataError, match="no split 'downlod'"):
        open_source("cifar10:downlod")
    with pytest.raises(DataError, match="digits needs no download"):
        open_source("digits:download")


def test_a_folder_with_a_bundled_name_must_be_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    Image.new("RGB", (4, 4)).save("digits/a.png")
    with pytest.raises(DataError, match=r"\./digits for the latter, builtin:digits"):
        open_source("digits")
    for path in ("./digits", "digits/", Path("digits")):
        assert len(open_source(path)) == 1
    assert len(open_source("builtin:digits", "test")) == 360


def test_files_that_are_no_source(tmp_path: Path) -> None:
    for name, reason in [
        ("a.png", "is one image"),
        ("b.zip", "Unpack it"),
        ("c.npy", r"unknown kind \(\.npy\)"),
    ]:
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=reason):
            open_source(tmp_path / name)
