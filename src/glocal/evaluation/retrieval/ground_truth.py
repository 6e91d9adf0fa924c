"""Ground-truth files of copy detection and retrieval, and which image an id in them means."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from glocal.data.source import ImageSource
from glocal.errors import DataError
from glocal.outside import reading

ORIGINALS = ("original", "originals")
"""Folders of untouched images in Copydays' layout."""
_QUERY_NAMES = ("query_id", "query")
_REFERENCE_NAMES = ("reference_id", "reference", "positive", "positive_id")
_ATTACK_NAMES = ("transform", "attack")


@dataclass(frozen=True)
class GroundTruth:
    """Which references each query was made from (none for a query without a copy), in the file's order.

    `attack` names what was done to a query, where the file has such a column.
    """

    references: dict[str, list[str]]
    attack: dict[str, str] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Number of (query, reference) pairs."""
        return sum(len(names) for names in self.references.values())


def read_ground_truth(path: Path) -> GroundTruth:
    """Read `query_id,reference_id` rows; an empty reference marks a query without one (ISC/DISC21 files as they are).

    A header is optional. With one, columns may stand in any order, `query,positive` are understood too, and a column
    `transform` or `attack` names the attack. Several rows of one query give it several references.

    Raises:
        DataError: for an unreadable or empty file, a row with too few columns, an empty query id, the same row twice,
            or a query both with and without a reference.
    """
    with reading(path, "ground truth"), path.open(newline="", encoding="utf-8-sig") as file:
        rows = [
            (number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if row
        ]
    if not rows:
        raise DataError(
            f"{path} holds no rows. Rows like 'Q00001,R000001', or 'Q00002,' for no match, are needed."
        )
    query, reference, attack = _columns([cell.lower() for cell in rows[0][1]])
    if query is not None:
        rows = rows[1:]
    truth = GroundTruth({})
    for number, row in rows:
        _add_row(truth, path, number, row, query or 0, 1 if reference is None else reference, attack)
    if not truth.references:
        raise DataError(f"{path} has a header and no rows. Rows like 'Q00001,R000001' are needed.")
    return truth


def is_copy_folder(root: Path) -> bool:
    """Whether a folder holds copy detection: originals and their attacked copies, or queries and a table.

    There a query's siblings, other copies of one original, are no wrong answers, as they would be in retrieval.
    """
    if not root.is_dir():
        return False
    paired = any(root.glob("queries*")) and any(root.glob("*ground_truth*.csv"))
    return (paired and not (root / "database").is_dir()) or any((root / name).is_dir() for name in ORIGINALS)


def find_ids(source: ImageSource, wanted: Iterable[str]) -> dict[str, int]:
    """Find which image of a source each id means: its key, the key's file name, or that without its suffix.

    The first of these forms that fits an id counts. Ids that no image has are absent from the answer. Cost: one pass
    over the keys; only wanted names are kept.

    Raises:
        DataError: when two images answer to one id.
    """
    missing = set(wanted)
    forms: tuple[dict[str, list[int]], ...] = ({}, {}, {})
    for index in range(len(source)):
        key = source.key(index)
        name = PurePosixPath(key.replace("\\", "/"))
        for form, text in zip(forms, (key, name.name, name.stem), strict=True):
            if text in missing:
                form.setdefault(text, []).append(index)
    matches: dict[str, int] = {}
    for text in missing:
        indices = next((form[text] for form in forms if text in form), None)
        if indices is None:
            continue
        if len(indices) > 1:
            twins = ", ".join(source.key(i) for i in indices[:3])
            raise DataError(
                f"Id '{text}' fits {len(indices)} images of {source.name} ({twins}). Ids must be unique."
            )
        matches[text] = indices[0]
    return matches


def _columns(header: list[str]) -> tuple[int | None, int | None, int | None]:
    """Positions of query, reference and attack in a header; all None when the row is no header."""
    query, reference, attack = (
        next((header.index(name) for name in names if name in header), None)
        for names in (_QUERY_NAMES, _REFERENCE_NAMES, _ATTACK_NAMES)
    )
    return (query, reference, attack) if query is not None and reference is not None else (None, None, None)


def _add_row(
    truth: GroundTruth,
    path: Path,
    number: int,
    row: list[str],
    query: int,
    reference: int,
    attack: int | None,
) -> None:
    if len(row) <= max(query, reference):
        raise DataError(
            f"{path}, line {number}: {len(row)} column(s) in {str(row)[:80]}; 'query,reference' is needed."
        )
    name, answer = row[query], row[reference]
    if not name:
        raise DataError(f"{path}, line {number}: the query's id is empty in {str(row)[:80]}.")
    known = truth.references.get(name)
    if known is not None and answer in known:
        raise DataError(f"{path}, line {number}: the row {name},{answer} stands in the file twice.")
    if known is not None and (not answer or not known):
        raise DataError(
            f"{path}, line {number}: query {name} stands with and without a reference, or twice without."
        )
    truth.references.setdefault(name, [])
    if answer:
        truth.references[name].append(answer)
    if attack is not None and len(row) > attack and row[attack]:
        truth.attack[name] = row[attack]
