"""Layouts of copy detection: Copydays folders, and queries + references + ground_truth.csv (ISC/DISC21)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.errors import DataError, name_some
from glocal.evaluation.retrieval.ground_truth import ORIGINALS, GroundTruth, find_ids, read_ground_truth

_ATTACK_COLUMNS = ("transform", "attack")
_QUERY_COLUMN = "query_id"


@dataclass(frozen=True)
class CopyData:
    """Queries, references, and for each query the places of its references: none for a query without a copy.

    `attack[i]` names what was done to query i, or is empty.
    """

    queries: ImageSource
    references: ImageSource
    positives: list[NDArray[np.int64]]
    attack: list[str]
    notes: list[str] = field(default_factory=list)


def open_copydays(root: Path) -> CopyData:
    """Open Copydays (Jegou et al. 2008): `original/` and a folder an attack (`jpeg/75`, `crops/50`, `strong`).

    The first four characters of a file name say which original it shows. Every folder that holds images is an attack
    of its own, named by its path.

    Raises:
        DataError: without a folder of originals, with two originals of one number, or with no attacked image of any.
    """
    folder = next((root / name for name in ORIGINALS if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(
            f"{root} has no folder original/ with the untouched images; that's the Copydays layout."
        )
    everything = open_source(root)
    originals: list[int] = []
    attacked: list[int] = []
    for index in range(len(everything)):
        parts = PurePosixPath(everything.key(index).replace("\\", "/")).parts
        (originals if folder.name in parts[:-1] else attacked).append(index)
    by_number: dict[str, int] = {}
    for place, index in enumerate(originals):
        number = _number(everything.key(index))
        if number in by_number:
            raise DataError(
                f"{folder}: two originals are numbered {number}; the first four characters must differ."
            )
        by_number[number] = place
    kept = [index for index in attacked if _number(everything.key(index)) in by_number]
    if not kept:
        raise DataError(
            f"{root}: none of {len(attacked)} attacked images shows one of {len(originals)} originals."
        )
    lost = [everything.key(index) for index in attacked if _number(everything.key(index)) not in by_number]
    notes = (
        [f"{len(lost)} attacked images show no known original, left out: {name_some(lost)}."] if lost else []
    )
    positives = [np.array([by_number[_number(everything.key(index))]], np.int64) for index in kept]
    names = [_attack_name(everything.key(index), root) for index in kept]
    return CopyData(everything.subset(kept), everything.subset(originals), positives, names, notes)


def open_pairs(
    queries: ImageSource, references: ImageSource, truth: GroundTruth, attack: Mapping[str, str] | None = None
) -> CopyData:
    """Join queries, references and a ground truth by id (see `find_ids`).

    Left out, counted and named in the notes: queries that the ground truth doesn't mention, queries without an image,
    and queries of which a reference has no image (they'd turn into false negatives).

    Raises:
        DataError: when no query with a reference remains, or ids aren't unique.
    """
    asked = find_ids(queries, truth.references)
    places = find_ids(references, {name for names in truth.references.values() for name in names})
    without_image = [name for name in truth.references if name not in asked]
    without_reference = [
        name
        for name, names in truth.references.items()
        if name in asked and not all(n in places for n in names)
    ]
    dropped = {*without_image, *without_reference}
    kept = [name for name in truth.references if name not in dropped]
    if not any(truth.references[name] for name in kept):
        raise DataError(
            f"None of the ground truth's {truth.pairs} pairs has its query in {queries.name} and its reference in "
            f"{references.name}; ids there look like {name_some(truth.references)}, keys like "
            f"{name_some(queries.key(i) for i in range(min(2, len(queries))))}."
        )
    notes = []
    for lost, what in (
        (without_image, "queries of the ground truth have no image"),
        (without_reference, "queries have a reference without an image"),
    ):
        if lost:
            notes.append(f"{len(lost)} {what}, left out: {name_some(lost)}.")
    if len(queries) > len(asked):
        notes.append(f"{len(queries) - len(asked)} query images aren't in the ground truth, left out.")
    names = {**truth.attack, **(attack or {})}
    positives = [np.array([places[r] for r in truth.references[name]], np.int64) for name in kept]
    chosen = queries.subset([asked[name] for name in kept])
    return CopyData(chosen, references, positives, [names.get(name, "") for name in kept], notes)


def open_copy_folder(root: Path, references: str | None = None, ground_truth: str | None = None) -> CopyData:
    """Open either layout. `references` and `ground_truth` say where those are when they don't lie in `root`.

    In the second layout `root` holds `queries/` or `queries*.parquet`, `references/` or `references*.parquet`, and one
    csv of `query_id,reference_id`. A parquet's columns `query_id` and `transform` name the attacks.

    Raises:
        DataError: when `root` is neither, or parts of it are missing.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder. Copydays, or queries with ground_truth.csv, is needed.")
    if references is None and any((root / name).is_dir() for name in ORIGINALS):
        return open_copydays(root)
    tables = [Path(ground_truth)] if ground_truth is not None else sorted(root.glob("*ground_truth*.csv"))
    if len(tables) != 1:
        raise DataError(
            f"{root} holds {len(tables)} files *ground_truth*.csv; one is needed, or set ground_truth=."
        )
    where = _part(root, "queries")
    reference_source = (
        open_source(references) if references is not None else open_source(_part(root, "references"))
    )
    attack = read_attacks(where) if where.suffix == ".parquet" else {}
    return open_pairs(open_source(where), reference_source, read_ground_truth(tables[0]), attack)


def read_attacks(path: Path) -> dict[str, str]:
    """Read which attack made each query from a parquet file with `query_id` and `transform` (or `attack`) columns."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    column = next((name for name in _ATTACK_COLUMNS if name in file.schema_arrow.names), None)
    if column is None or _QUERY_COLUMN not in file.schema_arrow.names:
        return {}
    table = file.read(columns=[_QUERY_COLUMN, column]).to_pydict()
    return {
        str(name): str(attack)
        for name, attack in zip(table[_QUERY_COLUMN], table[column], strict=True)
        if attack
    }


def _part(root: Path, name: str) -> Path:
    """Find a folder or a single parquet file by name."""
    if (root / name).is_dir():
        return root / name
    files = sorted(root.glob(f"{name}*.parquet"))
    if len(files) != 1:
        needed = "the folder or one file is needed" + (f", or set {name}=." if name == "references" else ".")
        raise DataError(f"{root} has no folder {name}/ and {len(files)} files {name}*.parquet; {needed}")
    return files[0]


def _number(key: str) -> str:
    return PurePosixPath(key.replace("\\", "/")).name[:4]


def _attack_name(key: str, root: Path) -> str:
    """Folders below the root, whether keys are relative to it or not."""
    path = PurePosixPath(key.replace("\\", "/"))
    base = PurePosixPath(root.as_posix())
    parts = path.relative_to(base).parts if path.is_relative_to(base) else path.parts
    return "/".join(parts[:-1])
