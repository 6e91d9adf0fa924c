"""The continue study: a tiny one runs whole, is not run again, and its table tells gains seed by seed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.continue_study import Study, read, run_study, tell

TINY = (
    "backbone.embed_dim=32", "backbone.depth=1", "training.batch_size=16", "optimiser.warmup_epochs=1",
    "speed.device=cpu",
)  # fmt: skip


@pytest.fixture
def small_grounds(tmp_path: Path) -> Path:
    """Both sets of a pair, of forty images in two classes each."""
    rng = np.random.default_rng(0)
    for ground in ("cifar10", "caltech101"):
        (tmp_path / "data" / ground).mkdir(parents=True)
        for split in ("train", "test"):
            images = []
            for label in range(40):
                pixels = rng.integers(128 * (label % 2), 128 + 128 * (label % 2), (32, 32, 3), dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                images.append({"bytes": file.getvalue(), "path": f"{label}.png"})
            table = pa.table({"image": images, "label": [number % 2 for number in range(40)]})
            pq.write_table(table, tmp_path / "data" / ground / f"{split}-00000-of-00001.parquet")
    return tmp_path / "data"


def test_a_tiny_study(small_grounds: Path, tmp_path: Path) -> None:
    study = Study(small_grounds, tmp_path, 4e9, 4e9, TINY)
    names = ["untouched", "relations only"]
    run_study(study, ["cifar10-caltech101"], [20], [0], names)
    records = read(study.records)
    assert [r["variant"] for r in records] == names
    run_study(study, ["cifar10-caltech101"], [20], [0], names)
    assert read(study.records) == records
    assert tell(records).count("| untouched | 1 |") == 1


def test_gains_are_told_seed_by_seed() -> None:
    figures = {"linear": 50.0, "correspondence": 20.0, "old_knn": 60.0}
    records = [
        {"pair": "a-b", "images": 0, "variant": variant, "seed": seed, "knn": knn} | figures
        for variant, seed, knn in (("untouched", 0, 30.0), ("untouched", 1, 40.0), ("continue", 0, 33.0), ("continue", 1, 45.0))
    ]  # fmt: skip
    table = tell(records)
    assert "### a to b, all images" in table
    assert "| untouched | 2 | 35.0 ± 5.0 |" in table
    assert "| continue | 2 | 39.0 ± 6.0 (+4.0) |" in table
