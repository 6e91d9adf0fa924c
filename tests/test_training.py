"""A run: it ends, resumes bit for bit, survives SIGTERM, is the same on two processes, and refuses what can't work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import FAST, config_for, noisy_pictures, records, stop_after, weights

from glocal.atomic_files import write_atomically
from glocal.errors import ConfigError, TrainingError
from glocal.recipes import configure, continue_run
from glocal.schedules import Progress
from glocal.training import run_folder
from glocal.training.loop import pretrain
from glocal.training.optimiser import build_optimiser, clip_gradients


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_pictures(tmp_path_factory.mktemp("images"))


def test_a_run_leaves_everything_behind(folder: Path, tmp_path: Path) -> None:
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=12"))
    assert {p.name for p in out.iterdir()} >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "export",
        "unreadable.txt",
    }
    assert "broken.jpg" in (out / "unreadable.txt").read_text()
    found = records(out)
    assert [r["step"] for r in found] == [2, 4, 6, 8, 10, 12]
    assert set(found[-1]) >= {
        "loss",
        "image",
        "patch",
        "image.target_entropy",
        "patch.matched_share",
        "effective_rank",
        "images_per_second",
        "waiting_share",
        "seconds_left",
        "gradient_norm",
    }
    from glocal import load

    features = load(out).features(torch.zeros(1, 3, 16, 16))
    assert features.cls.shape == (1, 32) and features.grid == (2, 2)


@pytest.mark.parametrize("recipe", ["dino", "pw-self"])
def test_resumed_equals_uninterrupted_bit_for_bit(folder: Path, tmp_path: Path, recipe: str) -> None:
    """Stopped in the middle of an epoch, with stochastic depth on, and continued with workers instead of without."""
    whole = pretrain(config_for(folder, tmp_path / "whole", "training.steps=11", recipe=recipe))
    stop_after(7)
    try:
        parts = pretrain(config_for(folder, tmp_path / "parts", "training.steps=11", recipe=recipe))
    finally:
        stop_after(None)
    assert torch.load(parts / "checkpoints" / "last.pt", weights_only=True)["step"] == 7
    pretrain(continue_run(str(parts), ["speed.workers=1"], recipe), resume=True)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(parts)[name]), name
    keys = ("step", "loss", "image.target_entropy")
    assert [[r[k] for k in keys] for r in records(whole)[-2:]] == [
        [r[k] for k in keys] for r in records(parts)[-2:]
    ]
    assert [r["step"] for r in records(parts)] == sorted({r["step"] for r in records(parts)})


def test_micro_batches_change_rounding_only(folder: Path, tmp_path: Path) -> None:
    more = ["training.steps=4", "backbone.drop_path=0", "objectives.image.centring.method=centre"]
    one = pretrain(config_for(folder, tmp_path / "one", *more, recipe="dino"))
    four = pretrain(config_for(folder, tmp_path / "four", "training.accumulate=4", *more, recipe="dino"))
    assert records(one)[-1]["loss"] == pytest.approx(records(four)[-1]["loss"], rel=1e-4)


def test_starting_from_weights(folder: Path, tmp_path: Path) -> None:
    first = pretrain(config_for(folder, tmp_path / "first", "training.steps=2"))
    config = configure(
        "dino",
        data=str(folder),
        out=str(tmp_path / "second"),
        preset="small",
        init=str(first),
        overrides=[
            *FAST,
            "training.steps=1",
            "optimiser.learning_rate=1e-12",
            "optimiser.muon_learning_rate=1e-12",
        ],
    )
    second = pretrain(config)
    start, end = weights(first), weights(second)
    torch.testing.assert_close(
        start["backbone.blocks.0.attn.qkv.weight"],
        end["backbone.blocks.0.attn.qkv.weight"],
        atol=1e-6,
        rtol=1e-6,
    )


# ------------------------------------------------------------------------------------------------------- bad input


def test_an_existing_folder_is_refused_and_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(TrainingError, match="not empty"):
        pretrain(config_for(folder, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_in_use_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with run_folder.RunFolder(out) as other:
        other.claim(resume=False)
        with pytest.raises(TrainingError, match="in use"):
            pretrain(config_for(folder, out))


def test_batch_larger_than_the_data(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"training.batch_size=64 is larger than the data set \(41 images"
    ):
        pretrain(config_for(folder, tmp_path / "x", "training.batch_size=64"))


def test_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no run to continue"):
        continue_run(str(tmp_path), [])


def test_resume_keeps_what_decides_results(folder: Path, tmp_path: Path) -> None:
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=2"))
    with pytest.raises(ConfigError, match="keeps what its state was made with"):
        continue_run(str(out), ["training.batch_size=4"])
    with pytest.raises(ConfigError, match="holds a run of 'pw-self'"):
        continue_run(str(out), [], "dino")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    write_atomically(path, lambda f: f.write(b"old"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match="No space left"):
        write_atomically(path, full)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


# ------------------------------------------------------------------------------------------------------- optimiser


def test_clipping_by_parameter_equals_the_definition() -> None:
    from glocal.training.config import OptimiserConfig

    gradients = [torch.randn(5, 3) * s for s in (0.1, 10.0)]
    parameters = [torch.nn.Parameter(torch.zeros(5, 3)) for _ in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    total = clip_gradients(parameters, OptimiserConfig(clip=3.0), Progress(0, 1, 1))
    assert total.item() == pytest.approx(np.sqrt(sum(float((g**2).sum()) for g in gradients)), rel=1e-5)
    for p, g in zip(parameters, gradients, strict=True):
        expected = g * min(1.0, 3.0 / (float(g.norm()) + 1e-6))
        torch.testing.assert_close(p.grad, expected)


def test_decay_and_rates_by_group() -> None:
    from conftest import small_config

    from glocal.training.config import OptimiserConfig
    from glocal.training.network import build_distillation

    model = build_distillation(small_config())
    optimiser = build_optimiser(model, 2, OptimiserConfig(layer_decay=0.5, patch_embed_factor=0.2))
    names = {id(p): n for n, p in model.named_parameters()}
    seen = {
        names[id(p)]: (g["rate_factor"], g["decayed"]) for g in optimiser.param_groups for p in g["params"]
    }
    assert seen["student.backbone.blocks.1.attn.qkv.weight"] == (0.5, True)
    assert seen["student.backbone.blocks.0.attn.qkv.bias"] == (0.25, False)
    assert seen["student.backbone.patch_embed.proj.weight"] == (pytest.approx(0.2 * 0.125), True)
    assert seen["student.backbone.pos_embed"] == (0.125, True)
    assert seen["student.backbone.norm.weight"] == (1.0, False)
    assert seen["student.heads.image.directions"] == (1.0, True)


def test_mugs_records_how_pure_its_neighbours_are(folder: Path, tmp_path: Path) -> None:
    fast = [w for w in FAST if not w.startswith("objectives.image")]
    more = [
        "training.steps=12",
        "objectives.local_group.memory=64",
        "objectives.local_group.queue=64",
        "objectives.instance.queue=64",
    ]
    out = pretrain(
        configure(
            "mugs", data=str(folder), out=str(tmp_path / "run"), preset="small", overrides=[*fast, *more]
        )
    )
    last = records(out)[-1]
    assert 0.0 <= last["local_group.neighbour_purity"] <= 1.0
