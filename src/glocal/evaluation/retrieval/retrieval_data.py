"""Layouts of instance retrieval: revisited Oxford/Paris, class folders, and a csv of (query, positive) pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glocal.data.changed import ChangedSource
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.errors import DataError, name_some
from glocal.evaluation.base import open_split
from glocal.evaluation.retrieval.ground_truth import find_ids, is_copy_folder, read_ground_truth
from glocal.evaluation.retrieval.plain_pickle import load_plain_pickle
from glocal.outside import reading

Indices = NDArray[np.int64]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Judgement:
    """For each query the database indices of its right answers, and of those that count neither way."""

    positives: list[Indices]
    ignored: list[Indices]


@dataclass(frozen=True)
class RetrievalData:
    """Queries, a database and one judgement a difficulty (`easy`, `medium`, `hard`, or just `all`)."""

    queries: ImageSource
    database: ImageSource
    judgements: dict[str, Judgement]
    query_boxes: list[Box] | None = None
    query_places: Indices | None = None
    """Where the queries stand in the database, when they are images of it: nothing is embedded twice."""
    notes: list[str] = field(default_factory=list)


class BoxCrops(ChangedSource):
    """Images of a source cut to a box each, (left, top, right, bottom) in pixels of the full image."""

    change = "cut to boxes"

    def __init__(self, inner: ImageSource, boxes: Sequence[Box]) -> None:
        if len(boxes) != len(inner):
            raise DataError(
                f"{inner.name} has {len(inner)} images and {len(boxes)} boxes; give one an image."
            )
        super().__init__(inner, [tuple(map(float, box)) for box in boxes])
        self.name = f"{inner.name} cut to boxes"
        self._boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Read the full image, since boxes are in its pixels, and cut it; `at_least` is of no use here."""
        image = self.inner.read(index)
        left, top, right, bottom = (round(edge) for edge in self._boxes[index])
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, image.width), min(bottom, image.height)
        if right <= left or bottom <= top:
            raise DataError(
                f"Box {self._boxes[index].tolist()} lies outside {self.key(index)} ({image.size})."
            )
        return image.crop((left, top, right, bottom))


def open_revisited(root: Path) -> RetrievalData:
    """Open revisited Oxford or Paris (Radenovic et al. 2018): one `gnd_*.pkl` and the images under `jpg/`.

    Easy: right answers are the easy ones, hard and junk are ignored. Medium: easy and hard, junk ignored. Hard: the
    hard ones, easy and junk ignored.

    Raises:
        DataError: for no or several ground-truth files, one that isn't what the protocol writes, or missing images.
    """
    files = sorted(root.glob("gnd_*.pkl"))
    if len(files) != 1:
        raise DataError(
            f"{root} holds {len(files)} files gnd_*.pkl; exactly one is needed beside the folder jpg/."
        )
    truth = load_plain_pickle(files[0])
    with reading(files[0], "revisited ground truth"):
        names, query_names, judged = _revisited_lists(files[0], truth)
    images = open_source(root / "jpg" if (root / "jpg").is_dir() else root)
    places = find_ids(images, {*names, *query_names})
    missing = [name for name in (*names, *query_names) if name not in places]
    if missing:
        raise DataError(
            f"{len(missing)} images of {files[0].name} aren't in {images.name}: {name_some(missing)}."
        )
    size = len(names)
    lists = (
        [_index_array(files[0], query, key, size) for query in judged] for key in ("easy", "hard", "junk")
    )
    easy, hard, junk = lists
    both = [np.concatenate(pair) for pair in zip(easy, hard, strict=True)]
    judgements = {
        "easy": Judgement(easy, [np.concatenate(pair) for pair in zip(hard, junk, strict=True)]),
        "medium": Judgement(both, junk),
        "hard": Judgement(hard, [np.concatenate(pair) for pair in zip(easy, junk, strict=True)]),
    }
    return RetrievalData(
        queries=images.subset([places[name] for name in query_names]),
        database=images.subset([places[name] for name in names]),
        judgements=judgements,
        query_boxes=[_box(files[0], query) for query in judged],
    )


def open_class_folders(source: ImageSource, most_queries: int | None = None) -> RetrievalData:
    """Make images queries for the others of their class; the query itself is ignored.

    All images are queries, or `most_queries` of them spread evenly over the list.

    Raises:
        DataError: for a source without labels, or in which no class has two images.
    """
    if source.labels is None:
        raise DataError(
            f"{source.name} has no labels. Put images into one folder a class, or give ground_truth.csv."
        )
    members = {
        int(label): np.flatnonzero(source.labels == label) for label in np.unique(source.labels) if label >= 0
    }
    kept = [i for i, label in enumerate(source.labels) if len(members.get(int(label), ())) > 1]
    if not kept:
        raise DataError(f"No class of {source.name} has two images, so no query has a right answer.")
    alone = len(source) - len(kept)
    if most_queries is not None and len(kept) > most_queries:
        # Chosen before answers are listed: all of CIFAR-10's would take 2 GB.
        kept = [kept[int(i)] for i in np.linspace(0, len(kept) - 1, most_queries).round()]
    positives = [members[int(source.labels[i])] for i in kept]
    judgement = Judgement(
        [p[p != i] for p, i in zip(positives, kept, strict=True)], [np.array([i]) for i in kept]
    )
    notes = [f"{alone} images are alone in their class: no queries, but in the database."] if alone else []
    return RetrievalData(
        source.subset(kept), source, {"all": judgement}, query_places=np.array(kept), notes=notes
    )


def open_pairs(queries: ImageSource, database: ImageSource, table: Path) -> RetrievalData:
    """Open a csv of `query,positive` rows. Where both sources are one, a query is ignored in its own answer.

    Queries without a positive, and rows whose image is missing, are left out, counted and named.

    Raises:
        DataError: for a bad table, or when no pair remains.
    """
    truth = read_ground_truth(table)
    asked = find_ids(queries, truth.references)
    answers = find_ids(database, {name for names in truth.references.values() for name in names})
    kept: list[str] = []
    positives: list[Indices] = []
    notes: list[str] = []
    for name, references in truth.references.items():
        right = [answers[r] for r in references if r in answers]
        if name in asked and right:
            kept.append(name)
            positives.append(np.array(right, np.int64))
    if not kept:
        raise DataError(
            f"No row of {table} names a query of {queries.name} and a positive of {database.name}."
        )
    for what, lost in (
        ("queries of the table have no image", [n for n in truth.references if n not in asked]),
        (
            "positives of the table have no image",
            [r for f in truth.references.values() for r in f if r not in answers],
        ),
        ("queries have no positive", [n for n, names in truth.references.items() if not names]),
    ):
        if lost:
            notes.append(f"{len(lost)} {what} and were left out: {name_some(lost)}.")
    same = queries is database
    none = np.empty(0, np.int64)
    pairs = zip(kept, positives, strict=True)
    ignored = [np.setdiff1d([asked[name]], right).astype(np.int64) if same else none for name, right in pairs]
    places = np.array([asked[name] for name in kept], np.int64)
    judgements = {"all": Judgement(positives, ignored)}
    return RetrievalData(
        queries.subset(places.tolist()),
        database,
        judgements,
        query_places=places if same else None,
        notes=notes,
    )


def open_retrieval_folder(
    root: Path, database: str | None = None, ground_truth: str | None = None, most_queries: int | None = None
) -> RetrievalData:
    """Open any of the layouts: a `gnd_*.pkl`, a csv of pairs, or else class folders (or any labelled source), of which
    the test split where there is one.

    Beside a csv, queries lie in `queries/` and the database in `database/` (or at `database`); without these folders
    all images below `root` are both.

    Raises:
        DataError: for several csv files, or a layout that lacks what it needs.
    """
    if root.is_dir() and any(root.glob("gnd_*.pkl")):
        return open_revisited(root)
    if ground_truth is None and is_copy_folder(root):
        raise DataError(
            f"{root} holds copy detection, where the other copies of a query's original are no wrong answers. Run "
            "`glocal evaluate copy_detection`; for retrieval on it all the same, name ground_truth=CSV."
        )
    tables = (
        [Path(ground_truth)]
        if ground_truth is not None
        else sorted(root.glob("*.csv"))
        if root.is_dir()
        else []
    )
    if len(tables) > 1:
        raise DataError(f"{root} holds {len(tables)} csv files; choose one by ground_truth=.")
    if not tables:
        return open_class_folders(open_split(root, "test", "val", "all", "train"), most_queries)
    if database is None and not (root / "database").is_dir():
        everything = open_source(root)
        return open_pairs(everything, everything, tables[0])
    where = root / "queries" if (root / "queries").is_dir() else root
    stored = open_source(database if database is not None else root / "database")
    return open_pairs(open_source(where), stored, tables[0])


def _revisited_lists(path: Path, truth: Any) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    if not isinstance(truth, dict) or not {"imlist", "qimlist", "gnd"} <= set(truth):
        keys = sorted(map(str, truth)) if isinstance(truth, dict) else type(truth).__name__
        raise DataError(
            f"{path} holds {keys}; a dict with imlist, qimlist and gnd is needed (revisited Oxford/Paris)."
        )
    names, queries = [str(n) for n in truth["imlist"]], [str(n) for n in truth["qimlist"]]
    judged = list(truth["gnd"])
    if len(queries) != len(judged):
        raise DataError(
            f"{path} names {len(queries)} queries and judges {len(judged)}; they must be as many."
        )
    if len(set(names)) != len(names):
        raise DataError(f"{path} names {len(names) - len(set(names))} database images twice.")
    if judged and not all(
        isinstance(query, dict) and {"easy", "hard", "junk"} <= set(query) for query in judged
    ):
        raise DataError(
            f"{path} has no easy/hard/junk lists: that's the original ground truth; get the revisited one."
        )
    return names, queries, judged


def _index_array(path: Path, query: dict[str, Any], key: str, size: int) -> Indices:
    with reading(path, f"revisited ground truth with lists '{key}'"):
        indices = np.asarray(query[key], dtype=np.float64).reshape(-1).astype(np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise DataError(f"{path}: '{key}' names image {indices.max()} of {size}.")
    return indices


def _box(path: Path, query: dict[str, Any]) -> Box:
    with reading(path, "revisited ground truth"):
        box = np.asarray(query.get("bbx", ()), dtype=np.float64).reshape(-1)
    if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
        raise DataError(f"{path}: a query's bbx is {box.tolist()}; (left, top, right, bottom) is needed.")
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])
