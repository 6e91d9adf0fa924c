"""Two processes evaluate together: each computes its share, both have the whole, one writes it, and figures are equal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_fakes import blocks, colour_encoder
from evaluation_fakes import coloured, small_encoder
from torch.multiprocessing.spawn import start_processes

from glocal.data import open_source
from glocal.data.source import ImageSource
from glocal.errors import ModelError
from glocal.evaluation.base import evaluate
from glocal.evaluation.classification.knn import KnnConfig
from glocal.evaluation.results import read_results
from glocal.extraction import image_embeddings
from glocal.extraction.feature_stream import Skipped
from glocal.extraction.image_embeddings import extract_embeddings
from glocal.extraction.patch_stream import iterate_patches
from glocal.extraction.work import Work
from glocal.models import preprocessing
from glocal.models.encoder import Encoder
from glocal.models.export import export_backbone
from glocal.models.preprocessing import FeatureTransform
from glocal.models.vit import VisionTransformer

COUNT = 70
"""Not a whole number of shards of 16, nor of rounds of two."""


class Counted:
    """Counts the images that a model sees."""

    def __init__(self, encoder: Encoder) -> None:
        self.images = 0
        encoder.backbone.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        self.images += len(arguments[0])


def labelled() -> dict[str, ImageSource]:
    return {
        "train": coloured(COUNT, 3, bad=(5, 69), name="train"),
        "test": coloured(9, 3, seed=1, name="test"),
    }


def small_pieces(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(image_embeddings, "SHARD", 16)
    patch.setattr(preprocessing, "TILE_VALUES", 8 * 16 * 64)  # 8 images a forward pass


def measured(folder: Path, together: bool) -> dict[str, Any]:
    """Figures and features of this process, and how many images its model saw."""
    encoder, other = small_encoder(), small_encoder()
    counted = Counted(encoder)
    work = Work(cache=folder / "features", progress=False, together=together)
    result = evaluate(KnnConfig(ks=(1, 5)), encoder, labelled(), out=folder, work=work)
    without_folder = Work(progress=False, together=together)
    vectors = extract_embeddings(other, labelled()["train"], work=without_folder).first
    seen = counted.images
    dense, skipped = colour_encoder(), Skipped()
    counted = Counted(dense)
    batches = list(iterate_patches(dense, blocks(20), FeatureTransform(size=64), -1, work, skipped))
    patches = torch.cat([batch.patches for batch in batches])
    return {"numbers": result.numbers, "notes": result.notes, "vectors": vectors, "patches": patches,
            "seen": (seen, counted.images)}  # fmt: skip


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    small_pieces(pytest.MonkeyPatch())
    meeting = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        found = measured(folder / "out", together=True)
        broken = small_encoder()
        if rank == 1:
            torch.nn.init.constant_(next(broken.backbone.parameters()), torch.nan)
        with pytest.raises(ModelError, match="aren't finite"):
            extract_embeddings(broken, labelled()["train"], work=Work(progress=False, together=True))
        torch.save(found, folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_share_the_work_and_have_the_figures_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(monkeypatch)
    start_processes(_work, (tmp_path,), nprocs=2, start_method="spawn")
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone = measured(tmp_path / "alone", together=False)
    for one in both:
        assert one["numbers"] == alone["numbers"] and one["notes"] == alone["notes"]
        assert torch.equal(one["vectors"], alone["vectors"]) and torch.equal(one["patches"], alone["patches"])
    shares = np.array([one["seen"] for one in both])
    assert (shares.sum(0) == alone["seen"]).all() and (shares > 0).all()
    assert len(read_results(tmp_path / "out" / "results.json")) == 1


@pytest.mark.slow
def test_the_command_runs_under_torchrun(tmp_path: Path) -> None:
    encoder = small_encoder()
    assert isinstance(encoder.backbone, VisionTransformer)
    export_backbone(encoder.backbone, tmp_path / "model", mean=encoder.mean, std=encoder.std, image_size=32)
    digits = open_source("digits", "test")
    assert digits.labels is not None
    for index in range(20):
        path = tmp_path / "small" / str(digits.labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits.read(index).save(path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["evaluate", "knn", f"model={tmp_path}/model", f"train={tmp_path}/small", f"test={tmp_path}/small",
             f"out={tmp_path}/out", "ks=[1]"]  # fmt: skip
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = [
        subprocess.Popen([sys.executable, "-m", "glocal", *words], env={**shared, "RANK": rank, "LOCAL_RANK": rank},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in "01"
    ]  # fmt: skip
    said = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert b"k1_top1" in said[0][0] and not said[1][0]
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["results"]) == 1
