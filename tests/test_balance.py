"""Balanced sampling: how often each image comes, in which order, and that a run goes on with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_runs import config_for, noisy_pictures, stop_after, weights

from glocal.curation.clusters import CLUSTERS
from glocal.data.open import open_source
from glocal.errors import ConfigError
from glocal.training.loop import pretrain
from glocal.views.sampling import EpochSampler

RARE = np.array([0.3, 0.3, 0.2, *[0.2 / 37] * 37])


def drawn(sampler: EpochSampler) -> list[list[int]]:
    return [key.indices.tolist() for key in sampler]


def test_every_image_comes_as_often_as_its_weight_says() -> None:
    counts = np.zeros((50, 40))
    for step, key in enumerate(EpochSampler(40, 8, 3, total_steps=250, weights=RARE)):
        np.add.at(counts[step // 5], key.indices, 1)
    expected = 40 * RARE
    assert (np.abs(counts - expected) < 1).all()  # each epoch: rounded up or down
    assert counts.sum(0) / 50 == pytest.approx(expected, abs=0.2)
    assert len({tuple(row) for row in counts.tolist()}) > 25  # the rare ones take turns
    orders = [drawn(EpochSampler(40, 8, seed, total_steps=5, weights=RARE)) for seed in (3, 4)]
    assert orders[0] != orders[1]


def test_equal_weights_draw_every_image_once_an_epoch() -> None:
    keys = drawn(EpochSampler(40, 8, 0, total_steps=5, weights=np.full(40, 1 / 40)))
    assert sorted(i for key in keys for i in key) == list(range(40))


def test_one_and_two_processes_and_a_later_start_draw_the_same() -> None:
    whole = list(EpochSampler(40, 8, 0, total_steps=12, weights=RARE))
    later = list(EpochSampler(40, 8, 0, total_steps=12, start_step=7, weights=RARE))
    halves = [
        list(EpochSampler(40, 8, 0, total_steps=12, weights=RARE, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    for step, key in enumerate(whole):
        for column in range(2):
            parts = np.concatenate([half[step][column] for half in halves])
            assert np.array_equal(key[column], parts)
            assert step < 7 or np.array_equal(key[column], later[step - 7][column])
    seeds = np.concatenate([key.seeds for key in whole])
    assert len(set(seeds.tolist())) == len(seeds)  # an image that comes twice gives two different views


def test_a_balanced_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    folder = noisy_pictures(tmp_path / "photos")
    source = open_source(folder)
    numbers = [0 if i < 4 else 1 for i in range(len(source))]
    (tmp_path / "c").mkdir()
    table = pa.table({"key": [source.key(i) for i in range(len(source))], "cluster": numbers})
    pq.write_table(table, tmp_path / "c" / CLUSTERS)
    balanced = (f"balance={tmp_path / 'c'}", "training.steps=6", "training.checkpoint_every=100")
    whole = pretrain(config_for(folder, tmp_path / "whole", *balanced))
    config = config_for(folder, tmp_path / "parts", *balanced)
    stop_after(3)
    try:
        pretrain(config)
    finally:
        stop_after(None)
    pretrain(config, resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one) and whole is not None
    plain = config_for(folder, tmp_path / "plain", *balanced[1:])
    pretrain(plain)
    assert any(not torch.equal(one[name], t) for name, t in weights(tmp_path / "plain").items())
    with pytest.raises(ConfigError, match="glocal curate"):
        pretrain(config_for(folder, tmp_path / "none", f"balance={tmp_path}"))
    assert not (tmp_path / "none").exists()
