"""Which edited copies of images are found, edit by edit: `glocal search` beside a thumbnail.

python -m benchmarks.study_copies MODEL QUERIES.parquet REFERENCES

QUERIES has the columns `reference_id` (a reference's key, or null) and `transform`. Printed: recall@1 of every edit by the
correlation of 16x16 grey thumbnails, by class embedding, with parts and turns, and both re-ranked by matched patches.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn import functional as F

from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.lookup.answers import search
from glocal.lookup.index import index
from glocal.models.loading import load

WAYS: dict[str, dict[str, Any]] = {
    "class embedding": {"rerank": False},
    "re-ranked by patches": {},
    "parts and turns": {"rerank": False, "views": "copies"},
    "parts and turns, re-ranked": {"views": "copies"},
}


def thumbnails(source: ImageSource) -> torch.Tensor:
    """16x16 grey pixels of every image, centred, of length 1: a product is a correlation."""
    rows = [
        np.asarray(source.read(i).convert("L").resize((16, 16), Image.Resampling.BICUBIC), np.float32).ravel()
        for i in range(len(source))
    ]
    grey = torch.from_numpy(np.stack(rows))
    return F.normalize(grey - grey.mean(1, keepdim=True), dim=1)


def main() -> None:
    """Measure and print one row a way of looking."""
    model, queries, references = sys.argv[1:4]
    encoder = load(model)
    asked, given = open_source(queries), open_source(references)
    table = pq.read_table(queries, columns=["reference_id", "transform"]).to_pydict()
    made = index(encoder, given, Path(tempfile.mkdtemp()) / "index", patches=True, progress=False)
    edits = sorted({str(t) for t, r in zip(table["transform"], table["reference_id"], strict=True) if r})
    print("| way | all | " + " | ".join(edits) + " | s a query |")
    images = [asked.read(i) for i in range(len(asked))]

    def measure(name: str, best: Callable[[int], str]) -> None:
        started = time.process_time()
        right: dict[str, list[bool]] = {}
        for i, (edit, reference) in enumerate(zip(table["transform"], table["reference_id"], strict=True)):
            if reference:
                right.setdefault(str(edit), []).append(best(i) == reference)
        spent = (time.process_time() - started) / sum(map(len, right.values()))
        shares = [np.mean([r for row in right.values() for r in row]), *(np.mean(right[e]) for e in edits)]
        print(f"| {name} | " + " | ".join(f"{100 * s:.1f}" for s in shares) + f" | {spent:.3f} |", flush=True)

    nearest = (thumbnails(asked) @ thumbnails(given).T).argmax(1)
    measure("thumbnail", lambda i: given.key(int(nearest[i])))
    for name, how in WAYS.items():

        def first(i: int, how: dict[str, Any] = how) -> str:
            return search(made, images[i], encoder=encoder, count=1, **how).answers[0].key

        measure(name, first)


if __name__ == "__main__":
    main()
