"""One string to a source of images: what `data=` takes."""

from __future__ import annotations

import glob
import re
from pathlib import Path

import numpy as np

from glocal.data.decoding import IMAGE_SUFFIXES
from glocal.data.folder import open_folder, split_folders
from glocal.data.listing import ListFile, open_list
from glocal.data.named_set import NamedSet
from glocal.data.named_sets import NAMED_SETS
from glocal.data.parquet import open_parquet, parquet_files, parquet_splits
from glocal.data.source import ImageSource
from glocal.data.splits import DataSpec, check_split, read_spec
from glocal.errors import DataError, name_some, nearest_name
from glocal.outside import given_path
from glocal.own_code import is_own, load_named

_BUILTIN_MARK = "builtin:"
_LISTS = (".txt", ".csv")
_KINDS = (
    "a folder of images or parquet files, a parquet file or a pattern of them ('shards/*.parquet'), "
    "a list file (.txt or .csv, path or path,label a line), your own code (file.py:NAME)"
)


def open_source(spec: str | Path, split: str | None = None) -> ImageSource:
    """Open what `data=` names.

    - a folder of images, nested or not; of parquet files when it, or its `data/`, holds some;
    - a parquet file in the Hugging Face image layout, or a pattern of several (`shards/train-*.parquet`);
    - a list file, `.txt` or `.csv`;
    - `digits`, `photos`, `photos-tiles`, `cifar10`, `cifar100` (`cifar10:download` fetches it when it is missing).
      Where a file or folder has such a name, write `./photos` for it or `builtin:photos` for ours.

    - your own code, `my_data.py:open_it` or `package.module:NAME`: called with the split (None where none was asked for),
      it returns an `ImageSource`. A `splits` beside it, a tuple of names, says which ones it has.

    Behind each may stand a split (`pacs:test`), a filter on a column of parquet files or of a list with a header, or on
    `label` (`pacs:domain=photo,sketch`), and `:labels=false`, which leaves alone what could be read as labels.

    Args:
        spec: the path or name; `~` is the home folder.
        split: `train`, `val`, `test` or `all`. Without it, the training images where the data has splits, otherwise
            everything.

    Raises:
        DataError: when there is no such thing, it can't be read, has no such split or column, or holds no images.

    >>> open_source("digits", "test").name
    'digits/test'
    """
    wanted = _spec(spec).narrowed(check_split(split))
    if wanted.place.startswith(_BUILTIN_MARK):
        source = _named_set(wanted).opened(wanted.split, wanted.download)
    else:
        source = _open_own(wanted) if _is_own(wanted.place) else _open_path(wanted)
    source.split = wanted.split
    for column, values in wanted.columns.items():
        source = _filtered(source, column, values)
    if not wanted.labels:
        source = source.subset(np.arange(len(source)))
        source.labels, source.class_names = None, None
    return source


def open_role(spec: str | Path, role: str) -> ImageSource:
    """Open data for the part that a split plays: its split of that name, or everything where it has no splits.

    Raises:
        DataError: when it has splits, but not this one and none was named; as `open_source`.

    >>> open_role("digits", "test").name
    'digits/test'
    """
    wanted, present = _spec(spec), splits_of(spec)
    if wanted.split is not None or not present:
        return open_source(spec)
    if role not in present:
        raise DataError(
            f"{role}={spec} has the splits {', '.join(present)} and no {role}. Name the one to use, for example {role}={spec}:{present[-1]}."
        )
    return open_source(spec, role)


def splits_of(spec: str | Path) -> tuple[str, ...]:
    """The splits that data has, in the order train, val, test; none when it has no splits.

    >>> splits_of("digits")
    ('train', 'test')
    """
    wanted = _spec(spec)
    if wanted.place.startswith(_BUILTIN_MARK):
        return _named_set(wanted).splits
    if _is_own(wanted.place):
        return tuple(getattr(load_named(wanted.place, "data"), "splits", ()))
    path = given_path(wanted.place, "data", DataError)
    if path.is_dir():
        files = parquet_files(path)
        return parquet_splits(files) if files else tuple(split_folders(path))
    if path.suffix.lower() in _LISTS and path.is_file():
        return ListFile.read(path).splits
    return parquet_splits([Path(f) for f in glob.glob(str(path), recursive=True)])  # noqa: PTH207 (absolute patterns)


def _spec(spec: str | Path) -> DataSpec:
    """What `data=` says; the place of a bundled set begins with `builtin:`.

    Raises:
        DataError: for nothing, and for a bundled name that is a file's or folder's here, too.
    """
    text = str(spec).strip()
    if isinstance(spec, str) and not text:
        raise DataError(f"data is empty. Give {_KINDS}, or one of {', '.join(NAMED_SETS)}.")
    if isinstance(spec, Path):
        return DataSpec(text)
    name = text.removeprefix(_BUILTIN_MARK).partition(":")[0]
    if name in NAMED_SETS:
        if text == name and Path(text).exists():
            raise DataError(
                f"data={text} is a bundled set, and there is a '{text}' in this folder. "
                f"Write ./{text} for the latter, builtin:{text} for the former."
            )
        return _builtin_spec(text, name)
    if text.startswith(_BUILTIN_MARK):
        raise DataError(
            f"There is no bundled set '{name}'.{nearest_name(name, NAMED_SETS)} Allowed: {', '.join(NAMED_SETS)}."
        )
    return read_spec(text)


def _builtin_spec(text: str, name: str) -> DataSpec:
    # A marked name is no path, so that a folder `digits` here does not hide the options behind it.
    taken = read_spec(_BUILTIN_MARK + text.removeprefix(_BUILTIN_MARK))
    if taken.place != _BUILTIN_MARK + name:
        option = taken.place.rpartition(":")[2]
        check_split(option)
        raise DataError(f"data={text}: '{option}' can't stand there.")
    return taken


def _named_set(spec: DataSpec) -> NamedSet:
    return NAMED_SETS[spec.place.removeprefix(_BUILTIN_MARK)]


def _is_own(place: str) -> bool:
    """Whether a place is code: not what lies there as a path, nor a folder with a misspelt split behind it."""
    return (
        is_own(place)
        and not Path(place).exists()
        and (".py:" in place or not Path(place.partition(":")[0]).exists())
    )


def _open_own(spec: DataSpec) -> ImageSource:
    opened = load_named(spec.place, "data")(spec.split)
    if not isinstance(opened, ImageSource):
        raise DataError(
            f"data={spec.place} gave a {type(opened).__name__}. It must return a glocal.data.ImageSource, given the split."
        )
    return opened


def _open_path(spec: DataSpec) -> ImageSource:
    path, split = given_path(spec.place, "data", DataError), spec.split
    if path.is_dir():
        parquet = parquet_files(path)
        return open_parquet(parquet, split, path.resolve().name) if parquet else open_folder(path, split)
    if not path.exists() and re.search(r"[*?\[]", str(path)):
        return open_parquet(_pattern(path), split)
    if not path.exists():
        raise DataError(_missing(path))
    ending = path.suffix.lower()
    if ending == ".parquet":
        return open_parquet([path], split)
    if ending in _LISTS:
        return open_list(path, split)
    if ending[1:] in IMAGE_SUFFIXES:
        raise DataError(f"data='{path}' is one image. Give its folder, '{path.parent}', or a list file.")
    hint = " Unpack it and give the folder." if ending in (".zip", ".tar", ".gz", ".tgz") else ""
    raise DataError(
        f"data='{path}' is a file of unknown kind ({ending or 'no ending'}).{hint} Allowed: {_KINDS}."
    )


def _pattern(path: Path) -> list[Path]:
    files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
    if not files:
        raise DataError(f"No file fits data='{path}'. Check it with: ls {path}.")
    other = next((file for file in files if file.suffix.lower() != ".parquet"), None)
    if other is not None:
        raise DataError(
            f"data='{path}' also fits '{other}'. A pattern must fit parquet files only; give images as a folder or "
            "a list file."
        )
    return files


def _filtered(source: ImageSource, column: str, values: tuple[str, ...]) -> ImageSource:
    """The images whose column holds one of these values."""
    seen = source.column(column)
    unknown = sorted(set(values) - set(seen.tolist()))
    if unknown:
        allowed = sorted(set(seen.tolist()))
        raise DataError(
            f"{source.name}: no image has {column}={unknown[0]}.{nearest_name(unknown[0], allowed)} "
            f"Values: {name_some(allowed, 12)}."
        )
    chosen = source.subset(np.flatnonzero(np.isin(seen, values)))
    chosen.name = f"{source.name}:{column}={','.join(values)}"
    return chosen


def _missing(path: Path) -> str:
    """Say what does not exist, and what near it does."""
    if "://" in str(path) or re.match(r"^[a-z]+:/", str(path)):
        return (
            f"data={path} is an address; images are read from local files. Download it, then give {_KINDS}."
        )
    name = str(path).partition(":")[0]
    try:
        beside = [p.name for p in path.parent.iterdir()]
    except OSError:
        beside = []
    hint = nearest_name(path.name, beside)
    if not hint and path.parent == Path():
        hint = nearest_name(name, NAMED_SETS)
    return (
        f"data='{path}' does not exist.{hint} Allowed: {_KINDS}, or a bundled set: {', '.join(NAMED_SETS)} "
        f"(cifar10:download fetches it). Paths are relative to '{Path.cwd()}'. Behind a path that exists may stand "
        ":train, :val, :test, :all, :column=value and :labels=false."
    )
