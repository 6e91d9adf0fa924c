"""The ladder: rows resolve, a smoke run is kept and not run again, bands hold what they should, the page shows all."""

from __future__ import annotations

from pathlib import Path

import pytest

from glocal.data import open_source
from glocal.errors import ConfigError, DataError
from glocal.ladder.band import band, compare, peers_of
from glocal.ladder.page import write_page
from glocal.ladder.rows import GROUNDS, ROWS, find_row, run_configuration
from glocal.ladder.study import append, loss_curve, read_records


def record(row: str = "dino", seed: int = 0, knn: float = 50.0, loss: float = 4.0) -> dict[str, object]:
    return {
        "kind": "run", "row": row, "ground": "cifar10", "scale": "short", "seed": seed, "rate": 1.0,
        "figures": {"knn": knn, "correspondence": 20.0}, "loss": [loss] * 10, "flops": 1e13, "images": 50_000,
        "seconds": 60.0,
    }  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_row_resolves(row: str, tmp_path: Path) -> None:
    config = run_configuration(row, "cifar10", tmp_path, tmp_path / "run", flops=1e12, seed=3, rate=0.5)
    assert config.seed == 3
    assert config.training.flops == 1e12


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'dinos'. Did you mean 'dino'"):
        find_row("dinos")


def test_a_band_is_as_wide_as_the_seeds_spread() -> None:
    assert band([60.0, 61.0, 62.0], 0.5).low == 58.0
    assert band([60.0, 60.0], 0.5).high == 60.5


def test_a_run_is_held_against_its_peers_only() -> None:
    records = [record(seed=0, knn=50.0), record(seed=1, knn=51.0), record("glocal", knn=90.0)]
    peers = peers_of(records, "dino", "cifar10", "short")
    assert len(peers) == 2
    assert compare(record(knn=50.4), peers).agrees
    verdict = compare(record(knn=60.0), peers)
    assert set(verdict.outside) == {"knn"}
    assert verdict.leaves_at is None
    assert compare(record(loss=5.0), peers).leaves_at == 0.1
    with pytest.raises(DataError, match="No run of 'mugs'"):
        peers_of(records, "mugs", "cifar10", "short")


def test_losses_are_kept_at_tenths() -> None:
    log = [{"step": step, "loss": float(step)} for step in range(1, 101)]
    assert loss_curve(log) == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0]


def test_the_page_shows_every_row_that_has_records(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    for seed in range(3):
        append(records, record(seed=seed, knn=50.0 + seed))
        append(records, record("glocal", seed=seed, knn=60.0))
    control = {
        "row": "raw <pixels>",
        "ground": "cifar10",
        "seed": 0,
        "figures": {"knn": 35.0, "correspondence": 9.0},
    }
    append(records, {"kind": "control"} | control)
    page, picture = write_page(read_records(records), tmp_path)
    text = page.read_text()
    assert "| dino | 3 | 51.0 ± 1.0 |" in text
    assert "| glocal | 3 | 60.0 ± 0.0 |" in text
    assert "raw &lt;pixels&gt;" in picture.read_text()
    assert picture.read_text().count("<circle") == 2 * 7


def test_grounds_have_a_training_set() -> None:
    assert all(ground.train for ground in GROUNDS.values())


@pytest.mark.parametrize("ground", GROUNDS)
def test_every_ground_opens_with_its_splits(ground: str, real_data: Path) -> None:
    place = GROUNDS[ground]
    for images in filter(None, (place.train, place.test)):
        assert len(open_source(f"{real_data}/{images}")) >= 1000
