"""One string to a source of images: what `data=` takes."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from glocal.data.builtin import PhotoSource, TileSource, open_digits
from glocal.data.cifar import CIFAR, open_cifar
from glocal.data.decoding import IMAGE_SUFFIXES
from glocal.data.folder import open_folder
from glocal.data.listing import open_list
from glocal.data.parquet import open_parquet, parquet_files
from glocal.data.source import ImageSource
from glocal.data.splits import ALL, check_split
from glocal.errors import DataError, nearest_name

BUILTIN = ("digits", "photos", "photos-tiles", *CIFAR)
"""Names that need no path."""
_LISTS = (".txt", ".csv")
_KINDS = (
    "a folder of images or parquet files, a parquet file or a pattern of them ('shards/*.parquet'), "
    "a list file (.txt or .csv, path or path,label a line)"
)


def open_source(spec: str | Path, split: str | None = None) -> ImageSource:
    """Open what `data=` names.

    - a folder of images, nested or not; of parquet files when it, or its `data/`, holds some;
    - a parquet file in the Hugging Face image layout, or a pattern of several (`shards/train-*.parquet`);
    - a list file, `.txt` or `.csv`;
    - `digits`, `photos`, `photos-tiles`, `cifar10`, `cifar100` (`cifar10:download` fetches it when it is missing).
      Where a file or folder has such a name, write `./photos` for it or `builtin:photos` for ours.

    Args:
        spec: the path or name; `~` is the home folder. `name:test` chooses the split of a built-in set.
        split: `train`, `val`, `test` or `all`. Without it, the training images where the data has splits, otherwise
            everything.

    Raises:
        DataError: when there is no such thing, it can't be read, has no such split, or holds no images.

    >>> open_source("digits", "test").name
    'digits/test'
    """
    split = check_split(split)
    text = str(spec).strip()
    if isinstance(spec, str) and not text:
        raise DataError(f"data is empty. Give {_KINDS}, or one of {', '.join(BUILTIN)}.")
    if isinstance(spec, str):
        name, *options = text.removeprefix("builtin:").split(":")
        if name in BUILTIN:
            if not text.startswith("builtin:") and not options and Path(text).exists():
                raise DataError(
                    f"data={text} is a bundled set, and there is a '{text}' in this folder. "
                    f"Write ./{text} for the latter, builtin:{text} for the former."
                )
            return _open_builtin(name, options, split)
        if text.startswith("builtin:"):
            raise DataError(
                f"There is no bundled set '{name}'.{nearest_name(name, BUILTIN)} Allowed: {', '.join(BUILTIN)}."
            )
    return _open_path(Path(text).expanduser(), split)


def _open_builtin(name: str, options: Sequence[str], split: str | None) -> ImageSource:
    download = False
    for option in options:
        if option == "download":
            download = True
        elif split is None:
            split = check_split(option)
        elif check_split(option) != split:
            raise DataError(
                f"data={name}:{':'.join(options)} names split '{option}', but '{split}' is wanted here."
            )
    if name in CIFAR:
        return open_cifar(name, split, download=download)
    if download:
        raise DataError(f"{name} needs no download; write data={name}.")
    if name == "digits":
        return open_digits(split)
    if split not in (None, ALL):
        raise DataError(
            f"{name} has no splits (asked for '{split}'). Leave the split out, or use digits or cifar10."
        )
    return PhotoSource() if name == "photos" else TileSource(PhotoSource())


def _open_path(path: Path, split: str | None) -> ImageSource:
    if path.is_dir():
        parquet = parquet_files(path)
        return open_parquet(parquet, split, path.resolve().name) if parquet else open_folder(path, split)
    ending = path.suffix.lower()
    if not path.exists() and re.search(r"[*?\[]", str(path)):
        files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
        if not files:
            raise DataError(f"No file fits data='{path}'. Check it with: ls {path}.")
        other = next((file for file in files if file.suffix.lower() != ".parquet"), None)
        if other is not None:
            raise DataError(
                f"data='{path}' also fits '{other}'. A pattern must fit parquet files only; give images as a folder or "
                "a list file."
            )
        return open_parquet(files, split)
    if not path.exists():
        raise DataError(_missing(path))
    if ending == ".parquet":
        return open_parquet([path], split)
    if ending in _LISTS:
        if split not in (None, ALL):
            raise DataError(
                f"A list file has no splits (asked for '{split}' of '{path}'). Give one list a split."
            )
        return open_list(path)
    if ending[1:] in IMAGE_SUFFIXES:
        raise DataError(f"data='{path}' is one image. Give its folder, '{path.parent}', or a list file.")
    hint = " Unpack it and give the folder." if ending in (".zip", ".tar", ".gz", ".tgz") else ""
    raise DataError(
        f"data='{path}' is a file of unknown kind ({ending or 'no ending'}).{hint} Allowed: {_KINDS}."
    )


def _missing(path: Path) -> str:
    """Say what does not exist, and what near it does."""
    if "://" in str(path) or re.match(r"^[a-z]+:/", str(path)):
        return (
            f"data={path} is an address; images are read from local files. Download it, then give {_KINDS}."
        )
    name = str(path).partition(":")[0]
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest_name(path.name, beside)
    if not hint and path.parent == Path():
        hint = nearest_name(name, BUILTIN)
    return (
        f"data='{path}' does not exist.{hint} Allowed: {_KINDS}, or a bundled set: {', '.join(BUILTIN)} "
        f"(cifar10:download fetches it). Paths are relative to '{Path.cwd()}'."
    )
