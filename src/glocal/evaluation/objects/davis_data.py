"""DAVIS 2017: sequences of frames and object masks, from its folder layout or from a tar of it, read in place."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glocal.data.decoding import decode_image, decode_mask
from glocal.data.source import ImageSource, check_index, short_hash
from glocal.errors import DataError, UnreadableImageError

FRAMES, MASKS, LISTS = "JPEGImages/480p", "Annotations/480p", "ImageSets/2017"


class Place(NamedTuple):
    """Where a file's bytes are, and when they were written."""

    offset: int | None
    """In the tar; None: a file of the folder."""
    size: int
    written: int


class DavisVideos(ImageSource):
    """The sequences of one split; as a source of images, all their frames.

    Args:
        path: a folder or an uncompressed tar that holds `JPEGImages/480p` and `Annotations/480p` at any depth, or a
            folder with one such tar.
        split: name of a list under `ImageSets/2017`; without that list all sequences are taken.

    Raises:
        DataError: when no such tree is found or a sequence has no frames or no first mask.
    """

    def __init__(self, path: str | Path, split: str = "val") -> None:
        self.path = Path(path)
        self._files, self._tar = _open_files(self.path)
        self.name, self.split = f"{self.path.name}/{split}", split
        folders = {str(PurePosixPath(name).parent) for name in self._files if f"{FRAMES}/" in name}
        if not folders:
            raise DataError(
                f"{self.path} holds no {FRAMES}/SEQUENCE/*.jpg. Give DAVIS' own folder, or a tar of it."
            )
        self._root = min(folders).split(FRAMES)[0]
        everything = sorted(PurePosixPath(folder).name for folder in folders)
        listed = f"{self._root}{LISTS}/{split}.txt"
        self.sequences = self._read_list(listed) if listed in self._files else everything
        missing = [name for name in self.sequences if name not in everything]
        if missing or not self.sequences:
            raise DataError(
                f"{self.name}: no frames of {', '.join(missing) or 'any sequence'}; there are {everything}."
            )

    def __len__(self) -> int:
        """Frames of all sequences."""
        return sum(len(self.frames(name)) for name in self.sequences)

    def frames(self, sequence: str) -> list[str]:
        """Names of a sequence's frames, in order."""
        return sorted(name for name in self._files if name.startswith(f"{self._root}{FRAMES}/{sequence}/"))

    def key(self, index: int) -> str:
        """The name of a frame, by its number among those of all sequences."""
        check_index(index, len(self), self.name)
        frames = itertools.chain.from_iterable(map(self.frames, self.sequences))
        return next(itertools.islice(frames, index, None))

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode a frame by its number; `at_least` is not asked."""
        return self.read_frame(self.key(index))

    def read_frame(self, name: str) -> Image.Image:
        """Decode a frame as RGB.

        Raises:
            DataError: when it can't be decoded (a video can't be followed across a missing frame).
        """
        try:
            return decode_image(self._read(name), name=name)
        except UnreadableImageError as error:
            raise DataError(f"A frame of {self.path} can't be decoded: {error}. Replace the file.") from error

    def read_masks(self, sequence: str) -> list[UInt8[np.ndarray, "h w"]]:
        """Object numbers of every pixel (0 background, 255 void), one mask a frame.

        Raises:
            DataError: when the masks don't go with the frames.
        """
        folder = f"{self._root}{MASKS}/{sequence}"
        names = [f"{folder}/{PurePosixPath(frame).stem}.png" for frame in self.frames(sequence)]
        missing = [name for name in names if name not in self._files]
        if missing:
            raise DataError(
                f"{sequence}: {len(missing)} of {len(names)} frames have no mask, the first: {missing[0]}."
            )
        return [read_label_map(self._read(name), name) for name in names]

    def fingerprint(self) -> str:
        """Hash of file names and sizes of the split's sequences."""
        return self._print(lambda place: place.size)

    def state(self) -> str:
        """The same, with the time that each file was last written."""
        return self._print(lambda place: (place.size, place.written))

    def _print(self, told: Callable[[Place], object]) -> str:
        chosen = {f"/{name}/" for name in self.sequences}
        entries = sorted(
            f"{name} {told(place)}"
            for name, place in self._files.items()
            if any(folder in name for folder in chosen)
        )
        return short_hash("\n".join(entries).encode())

    def _read(self, name: str) -> bytes:
        return _read_file(self.path, self._tar, name, self._files[name])

    def _read_list(self, name: str) -> list[str]:
        return [line.split()[0] for line in self._read(name).decode().splitlines() if line.strip()]


def read_label_map(content: bytes, name: str) -> UInt8[np.ndarray, "h w"]:
    """Decode an indexed or grey PNG to its values; a palette's colours are never looked at.

    Raises:
        DataError: when it can't be decoded or has several channels.
    """
    try:
        return decode_mask(content, name).astype(np.uint8)
    except UnreadableImageError as error:
        raise DataError(
            f"A mask can't be read: {error}. An indexed PNG with object numbers is needed."
        ) from error


def _read_file(root: Path, tar: Path | None, name: str, place: Place) -> bytes:
    if tar is None or place.offset is None:
        return (root / name).read_bytes()
    with tar.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def _tar_of(path: Path) -> Path | None:
    """The tar to read: the path itself, or the one in a folder that holds no unpacked tree."""
    if path.is_file():
        return path
    if any(path.rglob("JPEGImages")) or any(path.rglob("*.png")):
        return None
    tars = [tar for tar in sorted(path.glob("*.tar")) if any(FRAMES in name for name in _tar_index(tar))]
    return tars[0] if tars else None


def _tar_index(path: Path) -> dict[str, Place]:
    try:
        with tarfile.open(path, "r:") as tar:
            return {
                m.name.removeprefix("./"): Place(m.offset_data, m.size, int(m.mtime))
                for m in tar
                if m.isfile()
            }
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} is no uncompressed tar ({error}). Unpack it and give the folder.") from error


def _open_files(path: Path) -> tuple[dict[str, Place], Path | None]:
    """Index the files by name, and say which tar they are in, if any."""
    if not path.exists():
        raise DataError(f"{path} doesn't exist. Check the path.")
    tar = _tar_of(path)
    if tar is not None:
        return _tar_index(tar), tar
    files = ((file, file.stat()) for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): Place(None, status.st_size, status.st_mtime_ns)
        for file, status in files
    }, None
