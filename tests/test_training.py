"""A run: it ends, resumes bit for bit, survives SIGTERM, is the same on two processes, and refuses what can't work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glocal.errors import ConfigError, TrainingError
from glocal.recipes import configure, continue_run
from glocal.schedules import Progress
from glocal.training import run_folder
from glocal.training.loop import pretrain
from glocal.training.monitor import check_finite
from glocal.training.optimiser import build_optimiser, clip_gradients
from glocal.training.records import Records

FAST = [
    "backbone.embed_dim=32", "backbone.depth=2", "backbone.num_heads=2", "backbone.patch_size=8", "backbone.image_size=16",
    "backbone.drop_path=0.2", "views.global.size=16", "views.local.size=8", "training.batch_size=8", "training.log_every=2",
    "objectives.image.head.hidden=32", "objectives.image.head.bottleneck=16", "objectives.image.head.prototypes=32",
    "speed.workers=0", "speed.precision=fp32", "probe.enabled=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Forty noisy pictures in two class folders, one of them broken."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(40):
        path = root / ("a" if number % 2 else "b") / f"{number:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)
    (root / "a" / "broken.jpg").write_bytes(b"no picture")
    return root


def config_for(folder: Path, out: Path, *more: str, recipe: str = "pw-self"):
    return configure(recipe, data=str(folder), out=str(out), preset="small", overrides=[*FAST, *more])


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "checkpoints" / "last.pt", weights_only=True)["teacher"]


def records(out: Path) -> list[dict]:
    """The records of steps, without those of examinations."""
    every = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record for record in every if "loss" in record]


def test_kept_checkpoints_are_those_asked_for(folder, tmp_path):
    """Whatever the other interval is."""
    pretrain(config_for(folder, tmp_path / "run", "training.steps=7", "training.keep_every=3"))
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == ["step-3.pt", "step-6.pt"]


def test_a_run_leaves_everything_behind(folder, tmp_path):
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
def test_resumed_equals_uninterrupted_bit_for_bit(folder, tmp_path, recipe):
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


def stop_after(steps: int | None) -> None:
    """Ask the process itself to stop after some steps, as a scheduler's SIGTERM would."""
    original = stop_after.__dict__.setdefault("original", Records.note_unreadable)
    count = {"steps": 0}

    def counted(*arguments):
        count["steps"] += 1
        if count["steps"] == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    Records.note_unreadable = original if steps is None else counted


def test_micro_batches_change_rounding_only(folder, tmp_path):
    more = ["training.steps=4", "backbone.drop_path=0", "objectives.image.centring.method=centre"]
    one = pretrain(config_for(folder, tmp_path / "one", *more, recipe="dino"))
    four = pretrain(config_for(folder, tmp_path / "four", "training.accumulate=4", *more, recipe="dino"))
    assert records(one)[-1]["loss"] == pytest.approx(records(four)[-1]["loss"], rel=1e-4)


def test_two_processes_give_the_loss_of_one(folder, tmp_path):
    """Same global batch, same views, no stochastic depth: losses agree to 1e-4, through centres and Sinkhorn alike."""
    code = "import sys; from glocal.training.run_folder import read_run_config; from glocal.training.loop import pretrain; pretrain(read_run_config(sys.argv[1]))"
    outs = []
    for processes in (1, 2):
        plan, out = tmp_path / f"plan{processes}", tmp_path / f"run{processes}"
        plan.mkdir()
        config = config_for(
            folder,
            out,
            "training.steps=6",
            "backbone.drop_path=0",
            "optimiser.kind=muon",
            "views.global.keep_patches=0.5",
            f"speed.devices={processes}",
        )
        (plan / "config.yaml").write_text(run_folder.to_yaml(config))
        (tmp_path / "go.py").write_text(code)
        subprocess.run(
            [sys.executable, str(tmp_path / "go.py"), str(plan)],
            check=True,
            timeout=240,
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        outs.append(out)
    for a, b in zip(records(outs[0]), records(outs[1]), strict=True):
        for key in ("loss", "image", "patch"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), (a["step"], key)


def test_starting_from_weights(folder, tmp_path):
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


def test_an_existing_folder_is_refused_and_left_alone(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(TrainingError, match="not empty"):
        pretrain(config_for(folder, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_in_use_is_refused(folder, tmp_path):
    out = tmp_path / "run"
    with run_folder.RunFolder(out, resume=False), pytest.raises(TrainingError, match="in use"):
        pretrain(config_for(folder, out))


def test_batch_larger_than_the_data(folder, tmp_path):
    with pytest.raises(
        TrainingError, match=r"training.batch_size=64 is larger than the data set \(41 images"
    ):
        pretrain(config_for(folder, tmp_path / "x", "training.batch_size=64"))


def test_resume_without_a_run(tmp_path):
    with pytest.raises(TrainingError, match="no run to continue"):
        continue_run(str(tmp_path), [])


def test_resume_keeps_what_decides_results(folder, tmp_path):
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=2"))
    with pytest.raises(ConfigError, match="keeps what decides its results"):
        continue_run(str(out), ["training.batch_size=4"])
    with pytest.raises(ConfigError, match="holds a run of 'pw-self'"):
        continue_run(str(out), [], "dino")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    run_folder.write_atomically(path, lambda f: f.write(b"old"))

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match="No space left"):
        run_folder.write_atomically(path, full)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_loss_that_is_no_number_stops_the_run():
    with pytest.raises(TrainingError, match="step 7"):
        check_finite(float("nan"), 7)
    check_finite(1.0, 7)


# ------------------------------------------------------------------------------------------------------- optimiser


def test_clipping_by_parameter_equals_the_definition():
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


def test_decay_and_rates_by_group():
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


def test_a_checkpoint_of_other_data_is_refused(folder, tmp_path):
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=2"))
    other = tmp_path / "other"
    other.mkdir()
    for number in range(9):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(other / f"{number}.png")
    with pytest.raises(TrainingError, match="41 images and data= now holds 9"):
        pretrain(continue_run(str(out), [f"data={other}"]), resume=True)


def test_sigterm_to_the_whole_group_saves_and_ends_cleanly(folder, tmp_path):
    """As a scheduler sends it: to the run and to its workers."""
    out = tmp_path / "run"
    plan = tmp_path / "plan"
    plan.mkdir()
    config = config_for(folder, out, "training.steps=100000", "speed.workers=1")
    (plan / "config.yaml").write_text(run_folder.to_yaml(config))
    code = (
        "import sys; from glocal.training.run_folder import read_run_config; "
        "from glocal.training.loop import pretrain; pretrain(read_run_config(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(plan)], start_new_session=True, stderr=subprocess.PIPE
    )
    metrics = out / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()[-2000:]
    assert b"resume=true continues" in said
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] > 0


def test_mugs_records_how_pure_its_neighbours_are(folder, tmp_path):
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
