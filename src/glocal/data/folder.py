"""Images as files: a folder, nested or not, with or without class folders and split folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image

from glocal.data.decoding import IMAGE_SUFFIXES, decode_image
from glocal.data.source import ImageSource, check_index, short_hash
from glocal.data.splits import ALL, split_of_folder
from glocal.errors import DataError

_TAILS = 256
_TAIL_BYTES = 1024
_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)


class FileSource(ImageSource):
    """Image files, named by paths relative to a root and kept in one flat buffer (about 40 bytes an image)."""

    def __init__(
        self,
        name: str,
        root: Path,
        paths: Iterable[bytes],
        labels: Int64[np.ndarray, " images"] | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        """Take the relative paths in their final order; nothing is opened."""
        listed = list(paths)
        self.name, self.labels, self.class_names = name, labels, class_names
        self._root = os.fsencode(root)
        self._offsets = np.zeros(len(listed) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, listed), dtype=np.int64, count=len(listed)), out=self._offsets[1:])
        self._paths = b"".join(listed)
        self._fingerprints: tuple[str, str] | None = None

    def __len__(self) -> int:
        """How many files were listed."""
        return len(self._offsets) - 1

    def key(self, index: int) -> str:
        """Return the path relative to the root; bytes that are no UTF-8 are written as escapes, so it always prints."""
        return self._relative(index).decode("utf-8", "backslashreplace")

    def path(self, index: int) -> Path:
        """Return the path of the file itself."""
        return Path(os.fsdecode(self._absolute(index)))

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one file (see `ImageSource.read`)."""
        return decode_image(os.fsdecode(self._absolute(index)), at_least, name=self.key(index))

    def fingerprint(self) -> str:
        """Names and sizes of all files and the last bytes of 256 of them. Cost: one `stat` a file, kept from then on."""
        return self._prints()[0]

    def state(self) -> str:
        """The fingerprint, and the time each file was last written; kept, as the fingerprint is."""
        return self._prints()[1]

    def stamp(self, index: int) -> str:
        """The file's size and when it was last written; empty for a file that is gone."""
        try:
            status = os.stat(self._absolute(index))  # noqa: PTH116 (bytes)
        except OSError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns}"

    def _prints(self) -> tuple[str, str]:
        if self._fingerprints is None:
            paths = [self._absolute(i) for i in range(len(self))]
            self._fingerprints = file_prints(paths, self._paths, self._offsets.tobytes())
        return self._fingerprints

    def _absolute(self, index: int) -> bytes:
        return os.path.join(self._root, self._relative(index))  # noqa: PTH118 (bytes)

    def _relative(self, index: int) -> bytes:
        check_index(index, len(self), self.name)
        return self._paths[self._offsets[index] : self._offsets[index + 1]]


def open_folder(folder: Path, split: str | None = None) -> FileSource:
    """Index the images of a folder, at any depth; order is by name, the same on every machine.

    Labels: when every image lies below a folder of the first level and there are at least two of those, their names
    are the classes. Splits: a folder that holds `train` and `val` or `test` (or nothing but such folders) has splits;
    without `split` its `train` is taken, `all` takes every split. Class numbers are the same in all splits.

    Hidden files and folders (`.name`) are skipped. Links are followed, except back to a folder above.

    Raises:
        DataError: when the folder can't be read, has no such split, or holds no images.

    >>> open_folder(Path("flowers"), split="val").class_names
    ['daisy', 'rose']
    """
    folders = split_folders(folder)
    if split is None and folders:
        split = "train" if "train" in folders else ALL
    if split in (None, ALL) and not folders:
        chosen, name = [(folder.resolve().name, b"")], folder.resolve().name
    elif split == ALL:
        chosen, name = [(s, os.fsencode(sub)) for s, sub in folders.items()], folder.resolve().name
    else:
        if split not in folders:
            seen = (
                f"It has: {', '.join(folders)}."
                if folders
                else f"It has no split folders ({split}/ is missing)."
            )
            raise DataError(
                f"'{folder}' has no split '{split}'. {seen} Give the path of the {split} images themselves."
            )
        chosen, name = [(split, os.fsencode(folders[split]))], f"{folder.resolve().name}/{split}"
    classes = _shared_classes(folder, list(folders.values())) if folders else None
    return _index(folder, [prefix for _, prefix in chosen], name, classes)


def split_folders(folder: Path) -> dict[str, str]:
    """Return the split folders directly below a folder, split to folder name; empty when it has no splits.

    A folder named `train` alone is no sign (it may be the class of trains): `val` or `test` must be beside it, or
    nothing else.
    """
    names = [entry.name for entry in _entries(folder) if not entry.name.startswith(".") and entry.is_dir()]
    folders = {
        split: name for name in reversed(sorted(names)) if (split := split_of_folder(name)) is not None
    }
    complete = "train" in folders and len(folders) > 1
    return (
        {s: folders[s] for s in ("train", "val", "test") if s in folders}
        if complete or len(folders) == len(names)
        else {}
    )


@dataclass
class _Walk:
    """What one walk below a folder found."""

    paths: list[bytes] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    folders: int = 0


def _index(root: Path, prefixes: Sequence[bytes], name: str, classes: list[str] | None) -> FileSource:
    """Walk the chosen folders and put classes and paths together."""
    walk = _Walk()
    below: list[tuple[str | None, int]] = []
    for prefix in prefixes:
        start = os.path.join(os.fsencode(root), prefix) if prefix else os.fsencode(root)  # noqa: PTH118 (bytes)
        lead = prefix + b"/" if prefix else b""
        for first_level, count in _walk_classes(walk, start, lead):
            below.append((first_level, count))
    if not walk.paths:
        where = ", ".join(f"'{root / os.fsdecode(prefix)}'" if prefix else f"'{root}'" for prefix in prefixes)
        raise DataError(_nothing_found(where, walk))
    labels, class_names = _labels(below, classes)
    source = FileSource(name, root, walk.paths, labels, class_names)
    source.left_out = dict(walk.left_out.most_common())
    return source


def _walk_classes(walk: _Walk, start: bytes, lead: bytes) -> Iterator[tuple[str | None, int]]:
    """Walk one folder, and say how many images lie directly in it (None) and below each of its folders."""
    identity = _identity(start)
    files, folders = _scan(walk, start, lead)
    yield None, len(files)
    for name in folders:
        before = len(walk.paths)
        _walk_below(walk, start + b"/" + name, lead + name + b"/", {identity})
        yield name.decode("utf-8", "backslashreplace"), len(walk.paths) - before


def _walk_below(walk: _Walk, folder: bytes, lead: bytes, above: set[tuple[int, int]]) -> None:
    identity = _identity(folder)
    if identity in above:
        return
    _, folders = _scan(walk, folder, lead)
    for name in folders:
        _walk_below(walk, folder + b"/" + name, lead + name + b"/", above | {identity})


def _scan(walk: _Walk, folder: bytes, lead: bytes) -> tuple[list[bytes], list[bytes]]:
    """Add the images directly in a folder to the walk; return their names and those of its folders, sorted."""
    files, folders = [], []
    walk.folders += 1
    for entry in _entries(folder):
        name = entry.name
        if name.startswith(b"."):
            continue
        if entry.is_dir():
            folders.append(name)
            continue
        ending = name.rpartition(b".")[2].lower()
        if ending in _SUFFIXES:
            files.append(name)
        else:
            walk.left_out[
                "." + ending.decode("utf-8", "backslashreplace") if b"." in name else "no ending"
            ] += 1
    files.sort()
    folders.sort()
    walk.paths += [lead + name for name in files] if lead else files
    return files, folders


def _labels(
    below: Sequence[tuple[str | None, int]], classes: list[str] | None
) -> tuple[Int64[np.ndarray, " images"] | None, list[str] | None]:
    """Number the first-level folders, in the order of the paths; None when they are no classes."""
    filled = [(name, count) for name, count in below if count]
    present = sorted({name for name, _ in filled if name is not None})
    names = present if classes is None else classes
    if any(name is None for name, _ in filled) or len(names) < 2 or not set(present) <= set(names):
        return None, None
    number = {name: i for i, name in enumerate(names)}
    numbers = np.array([number[name] for name, _ in filled if name is not None], dtype=np.int64)
    return np.repeat(numbers, [count for _, count in filled]), names


def _shared_classes(root: Path, folders: Sequence[str]) -> list[str]:
    """Return the classes of all splits together, so that one missing from a split does not shift the numbers of others.

    A split that shares no folder name with the largest one (say `test/images`) adds none.
    """
    classes: dict[str, set[str]] = {}
    for folder in folders:
        entries = [
            entry for entry in _entries(root / folder) if not entry.name.startswith(".") and entry.is_dir()
        ]
        classes[folder] = {os.fsencode(entry.name).decode("utf-8", "backslashreplace") for entry in entries}
    base = max(classes.values(), key=len, default=set())
    return sorted(set().union(*(names for names in classes.values() if names & base)))


def _entries(folder: Path | bytes) -> list[os.DirEntry]:  # type: ignore[type-arg]
    """List a folder.

    Raises:
        DataError: when it can't be listed; images silently left out would be worse.
    """
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"The folder '{os.fsdecode(folder)}' can't be read: {error.strerror}. "
            "Check the path and its permissions, or move it out of the image folder."
        ) from error


def _identity(folder: bytes) -> tuple[int, int]:
    try:
        status = os.stat(folder)  # noqa: PTH116 (bytes)
    except OSError as error:
        raise DataError(f"The folder '{os.fsdecode(folder)}' can't be read: {error.strerror}.") from error
    return status.st_dev, status.st_ino


def file_prints(paths: Sequence[bytes | str], *names: bytes) -> tuple[str, str]:
    """(fingerprint, state) of files, `names` included: sizes and the ends of some, then the time of writing as well.

    The end of a JPEG or PNG changes with any of its pixels, so that pictures replaced by others of equal size are told
    apart on any machine, as long as one of the 256 looked at is among them; the times tell every single one here.
    """
    stats = np.array([_size_and_time(path) for path in paths], dtype=np.int64).reshape(-1, 2)
    probed = np.unique(np.linspace(0, max(0, len(paths) - 1), min(len(paths), _TAILS)).round().astype(int))
    tails = b"".join(_tail(paths[int(i)]) for i in probed)
    fingerprint = short_hash(*names, np.ascontiguousarray(stats[:, 0]).tobytes(), tails)
    return fingerprint, short_hash(fingerprint.encode(), np.ascontiguousarray(stats[:, 1]).tobytes())


def _size_and_time(path: bytes | str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 (bytes)
    except (OSError, ValueError):  # a list may name what can't be a path
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _tail(path: bytes | str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (bytes)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read(_TAIL_BYTES)
    except (OSError, ValueError):
        return b""


def _nothing_found(where: str, walk: _Walk) -> str:
    searched = "1 folder was" if walk.folders == 1 else f"{walk.folders} folders were"
    others = ", ".join(sorted(walk.left_out)[:8])
    return (
        f"No images in {where}: {searched} searched"
        + (f", with files ending in {others}" if others else "")
        + ". "
        f"Allowed endings: {', '.join('.' + suffix for suffix in IMAGE_SUFFIXES)}. Or give parquet or a list file."
    )
