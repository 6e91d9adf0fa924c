"""CIFAR-10 and CIFAR-100 from their official binary archives (Krizhevsky 2009), which hold no pickles."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glocal.data.named_set import NamedSet
from glocal.data.source import ImageSource, check_index, short_hash
from glocal.errors import DataError

_LOG = logging.getLogger("glocal")
_PIXELS = 3 * 32 * 32
_ADDRESS = "https://www.cs.toronto.edu/~kriz/"
_SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class _Archive:
    """Where a set is and how its records look: label bytes (the last one counts), then 32x32 red, green, blue."""

    file: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    label_bytes: int
    images: int

    def files(self, split: str) -> tuple[str, ...]:
        return {"train": self.train, "test": self.test, "all": self.train + self.test}[split]

    @property
    def record(self) -> int:
        return self.label_bytes + _PIXELS


CIFAR: dict[str, _Archive] = {
    "cifar10": _Archive(
        file="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test=("test_batch.bin",),
        names="batches.meta.txt",
        label_bytes=1,
        images=60_000,
    ),
    "cifar100": _Archive(
        file="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        names="fine_label_names.txt",
        label_bytes=2,
        images=60_000,
    ),
}


class CifarSource(ImageSource):
    """Records of unpacked binary batches, memory-mapped: all processes share one copy."""

    def __init__(self, name: str, files: list[Path], label_bytes: int, class_names: list[str]) -> None:
        """Map the files and read the labels; the last label byte counts (CIFAR-100: the fine one)."""
        self.name, self.class_names = name, class_names
        self._files, self._label_bytes = [str(file) for file in files], label_bytes
        self._maps: list[UInt8[np.ndarray, "records bytes"]] | None = None
        maps = self._mapped()
        self.labels = np.concatenate([m[:, label_bytes - 1] for m in maps]).astype(np.int64)
        self._starts = np.concatenate([[0], np.cumsum([len(m) for m in maps])])

    def __len__(self) -> int:
        """How many records there are."""
        return int(self._starts[-1])

    def key(self, index: int) -> str:
        """Return the batch file and the record in it."""
        file, record = self._place(index)
        return f"{Path(self._files[file]).name}#{record}"

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Return one 32x32 image; `at_least` changes nothing."""
        file, record = self._place(index)
        planes = self._mapped()[file][record, self._label_bytes :].reshape(3, 32, 32)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def fingerprint(self) -> str:
        """Name, number of images and all labels."""
        assert self.labels is not None
        return short_hash(self.name.encode(), self.labels.tobytes())

    def __getstate__(self) -> dict[str, object]:
        """Everything but the maps, which numpy would pickle as whole arrays."""
        return {**self.__dict__, "_maps": None}

    def _place(self, index: int) -> tuple[int, int]:
        check_index(index, len(self), self.name)
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return file, index - int(self._starts[file])

    def _mapped(self) -> list[UInt8[np.ndarray, "records bytes"]]:
        if self._maps is None:
            record = self._label_bytes + _PIXELS
            for file in self._files:
                if (size := Path(file).stat().st_size) == 0 or size % record:
                    raise DataError(f"'{file}' has {size} bytes, no whole number of records of {record}.")
            self._maps = [
                np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, record) for file in self._files
            ]
        return self._maps


def open_cifar(
    name: str,
    split: str | None = None,
    *,
    download: bool = False,
    folder: Path | None = None,
    verify: bool = True,
) -> CifarSource:
    """Open `cifar10` or `cifar100`; without `split` the training images.

    The unpacked batches, or the archive, are looked for in `folder` (default: the environment variable GLOCAL_DATA,
    then `~/.cache/glocal`). An archive is checked against the published MD5 and unpacked beside itself once (180 MB).

    Args:
        name: `cifar10` or `cifar100`.
        split: `train`, `test` or `all`.
        download: fetch the archive (170 MB) from its official address when there is no local copy.
        folder: the only folder to look in.
        verify: whether the archive must have the published MD5 and the batches the published number of images.

    Raises:
        DataError: when there is no local copy, the checksum differs, the download fails or the disk is full.

    >>> len(open_cifar("cifar10", "test", download=True))
    10000
    """
    archive = CIFAR[name]
    split = split or "train"
    if split not in _SPLITS:
        raise DataError(f"{name} has no split '{split}'. Allowed: {', '.join(_SPLITS)}.")
    folders = [folder] if folder is not None else data_folders()
    unpacked = _find_unpacked(archive, folders, verify)
    if unpacked is None:
        packed = next((f / archive.file for f in folders if (f / archive.file).is_file()), None)
        if packed is None:
            if not download:
                raise DataError(_no_copy(name, archive, folders))
            packed = _download(archive, folders[0])
        unpacked = _unpack(archive, packed, verify)
    class_names = (unpacked / archive.names).read_text(encoding="utf-8").split()
    files = [unpacked / file for file in archive.files(split)]
    return CifarSource(f"{name}/{split}", files, archive.label_bytes, class_names)


def data_folders() -> list[Path]:
    """Where local copies of published data sets are looked for: GLOCAL_DATA when set, then `~/.cache/glocal`."""
    chosen = os.environ.get("GLOCAL_DATA")
    return [*([Path(chosen).expanduser()] if chosen else []), Path.home() / ".cache" / "glocal"]


def _find_unpacked(archive: _Archive, folders: list[Path], verify: bool) -> Path | None:
    """Return the folder of complete batches, if any; a damaged one is named, never silently replaced."""
    for folder in folders:
        place = folder / archive.folder
        if not place.is_dir():
            continue
        files = [place / file for file in (*archive.files("all"), archive.names)]
        missing = [file.name for file in files if not file.is_file()]
        sizes = [] if missing else [file.stat().st_size for file in files[:-1]]
        wrong = any(size == 0 or size % archive.record for size in sizes)
        if missing or wrong or (verify and sum(sizes) != archive.images * archive.record):
            what = f"lacks {', '.join(missing)}" if missing else "has batches of the wrong size"
            raise DataError(
                f"'{place}' {what}. Delete this folder; it is unpacked again from {archive.file}."
            )
        return place
    return None


def _no_copy(name: str, archive: _Archive, folders: list[Path]) -> str:
    pickled = archive.file.replace("-binary", "-python")
    pickles = [f / pickled for f in folders if (f / pickled).exists()]
    hint = (
        f" ('{pickles[0]}' is the pickled version, which is not read: pickles can run code.)"
        if pickles
        else ""
    )
    return (
        f"{name}: no local copy. Looked for {archive.file}, or {archive.folder}/ unpacked, in "
        f"{' and '.join(str(f) for f in folders)}.{hint} Write data={name}:download to fetch it from "
        f"{_ADDRESS}{archive.file} (170 MB), or put the file there, or set GLOCAL_DATA to the folder that holds it."
    )


def _download(archive: _Archive, folder: Path) -> Path:
    """Fetch the archive; it gets its name only when it is complete."""
    address, target = _ADDRESS + archive.file, folder / archive.file
    _LOG.info("downloading %s to %s", address, folder)
    partial: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=folder, prefix=archive.file, suffix=".part", delete=False
        ) as file:
            partial = Path(file.name)
            with urllib.request.urlopen(address, timeout=60) as response:
                while block := response.read(1 << 20):
                    file.write(block)
        _check_md5(partial, archive, source=address)
        partial.replace(target)
    except OSError as error:
        raise DataError(
            f"{address} can't be fetched to '{folder}': {error}. Check the network and the free space (350 MB), or "
            f"fetch it by other means and put it into that folder."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return target


def _check_md5(file: Path, archive: _Archive, source: str) -> None:
    with file.open("rb") as opened:
        digest = hashlib.md5(usedforsecurity=False)
        while block := opened.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != archive.md5:
        raise DataError(
            f"{source}: MD5 {digest.hexdigest()}, the published {archive.file} has {archive.md5}. The file is damaged "
            "or another one: delete it and fetch it again."
        )


def _unpack(archive: _Archive, packed: Path, verify: bool) -> Path:
    """Unpack the known members, by name, into a folder that appears when it is complete."""
    if verify:
        _check_md5(packed, archive, source=str(packed))
    home = packed.parent if os.access(packed.parent, os.W_OK) else data_folders()[-1]
    place = home / archive.folder
    wanted = {*archive.files("all"), archive.names}
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=home, prefix=archive.folder) as scratch,
            tarfile.open(packed) as tar,
        ):
            ready = Path(scratch) / archive.folder
            ready.mkdir()
            for member in tar:
                name = Path(member.name).name
                content = tar.extractfile(member) if member.isfile() and name in wanted else None
                if content is not None:
                    (ready / name).write_bytes(content.read())
            missing = sorted(wanted - {file.name for file in ready.iterdir()})
            if missing:
                raise DataError(f"'{packed}' lacks {', '.join(missing)}. It is not the official archive.")
            # Another process may have been faster; its copy is as good.
            if not place.exists():
                ready.rename(place)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError(
            f"'{packed}' can't be unpacked to '{home}': {error}. Needed: 180 MB and a whole file."
        ) from error
    unpacked = _find_unpacked(archive, [home], verify)
    assert unpacked is not None
    return unpacked


CIFAR10, CIFAR100 = (
    NamedSet(name, functools.partial(open_cifar, name), splits=("train", "test"), can_be_fetched=True)
    for name in CIFAR
)
