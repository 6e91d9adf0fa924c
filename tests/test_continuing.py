"""Going on from a checkpoint: damaged ones, chosen ones, foreign ones, changed settings, changed images, failed starts."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import checkpoint, config_for, noisy_pictures, records, stop_after, weights

from glocal import load
from glocal.errors import ConfigError, TrainingError
from glocal.recipes import continue_run
from glocal.training.checkpoint import DamagedCheckpointError, read_checkpoint
from glocal.training.loop import pretrain
from glocal.training.run_folder import read_run_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_pictures(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps with two generations and two kept checkpoints; copied before it is changed."""
    more = ["training.steps=8", "training.checkpoint_every=4", "training.keep_every=4"]
    return pretrain(config_for(folder, tmp_path_factory.mktemp("finished") / "run", *more))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(out: Path, *overrides: str, at: bool | str | Path = True) -> Path:
    return pretrain(continue_run(str(out), list(overrides)), resume=at)


def resumes(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "resumes.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- what a checkpoint says


def test_a_checkpoint_says_what_it_is_and_every_kept_one_has_an_export(run: Path) -> None:
    state = checkpoint(run)
    assert state["format"] == 2 and state["step"] == 8 and state["image_size"] == 16
    assert json.loads(state["config"])["backbone"]["embed_dim"] == 32
    assert len(state["mean"]) == len(state["std"]) == 3
    assert checkpoint(run, "previous.pt")["step"] == checkpoint(run, "step-4.pt")["step"] == 4
    pixels = torch.rand(2, 3, 16, 16)
    for step in (4, 8):
        exported, own = load(run / "export" / f"step-{step}"), load(run / "checkpoints" / f"step-{step}.pt")
        assert torch.equal(exported.features(pixels).cls, own.features(pixels).cls)


# --------------------------------------------------------------------------------------------------------- damaged files


def flip_a_bit(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 0x10
    path.write_bytes(content)


def zero_a_page(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    start = int(share * len(content)) // 4096 * 4096
    content[start : start + 4096] = bytes(4096)
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(share * path.stat().st_size))


def empty(path: Path, share: float) -> None:
    path.write_bytes(bytes(int(share * path.stat().st_size)))


@pytest.mark.parametrize("damage", [flip_a_bit, zero_a_page, cut, empty])
@pytest.mark.parametrize("share", [0.15, 0.4, 0.65, 0.9])
def test_every_damage_is_seen(run: Path, damage: Callable[[Path, float], None], share: float) -> None:
    """A bit or page in any tensor. Where a bit lies between records it changes nothing, and the states are equal."""
    before = checkpoint(run)["student"]
    damage(run / "checkpoints" / "last.pt", share)
    try:
        state = read_checkpoint(run / "checkpoints" / "last.pt")
    except DamagedCheckpointError as error:
        assert "last.pt is damaged" in str(error)
    else:
        assert damage is flip_a_bit and all(torch.equal(before[k], v) for k, v in state["student"].items())


def test_every_record_carries_a_checksum(run: Path) -> None:
    """What the promise rests on: torch writes the archive's CRC-32, and it is of the content."""
    with zipfile.ZipFile(run / "checkpoints" / "last.pt") as archive:
        sizes = [info.file_size for info in archive.infolist() if info.CRC]
    assert sum(sizes) > 0.95 * (run / "checkpoints" / "last.pt").stat().st_size


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    folder: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = weights(run)
    zero_a_page(run / "checkpoints" / "last.pt", 0.5)
    resume(run)
    said = " ".join(capsys.readouterr().err.split())
    assert "last.pt is damaged" in said and "Continuing from previous.pt, step 4." in said
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(run).items())
    assert [r["step"] for r in records(run)] == [2, 4, 6, 8]
    assert (run / "checkpoints" / "damaged.pt").exists()
    assert read_checkpoint(run / "checkpoints" / "previous.pt")["step"] == 4


def test_both_generations_damaged_are_named_with_what_is_left(run: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        cut(run / "checkpoints" / name, 0.5)
    # A kept checkpoint may be the same file under a second name.
    (run / "checkpoints" / "step-4.pt").write_bytes(b"")
    with pytest.raises(
        TrainingError, match=r"last.pt is damaged.*previous.pt is damaged.*resume=.*step-8.pt"
    ):
        resume(run)


@pytest.mark.parametrize("content", ["text", "pickle", "tensor", "format1"])
def test_foreign_files_are_one_sentence(run: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "given.pt"
    if content == "text":
        path.write_text("no checkpoint at all")
    elif content == "pickle":
        torch.save({"model": torch.nn.Linear(2, 2)}, path)
    elif content == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        torch.save({"format": 1, "student": {}}, path)
    expected = "format 1" if content == "format1" else "no training state of glocal"
    with pytest.raises(TrainingError, match=expected) as refused:
        resume(run, at=path)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_another_backbone_or_term_is_refused_in_one_sentence(
    folder: Path, run: Path, tmp_path: Path
) -> None:
    more = ["training.steps=1", "backbone.embed_dim=48", "objectives.image.head.prototypes=16"]
    wide = pretrain(config_for(folder, tmp_path / "wide", *more))
    with pytest.raises(TrainingError, match=r"backbone\.embed_dim=48 where the run has 32"):
        resume(run, at=wide / "checkpoints" / "last.pt")
    heads = pretrain(config_for(folder, tmp_path / "heads", "training.steps=1", more[2]))
    with pytest.raises(TrainingError, match="another model than this run's configuration") as refused:
        resume(run, at=heads / "checkpoints" / "last.pt")
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------- chosen and changed


def test_going_on_from_a_chosen_checkpoint(run: Path) -> None:
    expected = weights(run)
    resume(run, at=str(run / "checkpoints" / "step-4.pt"))
    assert all(torch.equal(expected[name], tensor) for name, tensor in weights(run).items())
    assert resumes(run)[-1]["step"] == 4
    assert [r["step"] for r in records(run)] == [2, 4, 6, 8]


def test_a_chosen_checkpoint_is_the_last_one_at_once(run: Path) -> None:
    """So that a kill soon after does not jump back to the abandoned end."""
    stop_after(1)
    try:
        resume(run, at=run / "checkpoints" / "step-4.pt")
    finally:
        stop_after(None)
    assert checkpoint(run)["step"] == 5 and checkpoint(run, "previous.pt")["step"] == 4


def test_declared_overrides_are_applied_and_recorded(folder: Path, tmp_path: Path) -> None:
    stop_after(5)
    try:
        out = pretrain(config_for(folder, tmp_path / "run", "training.steps=8"))
    finally:
        stop_after(None)
    rate = read_run_config(out).optimiser.learning_rate
    before = records(out)[-1]["learning_rate"]
    resume(out, f"optimiser.learning_rate={rate / 4}", "optimiser.clip=1", "training.accumulate=2")
    changed = resumes(out)[-1]["changed"]
    assert changed["optimiser.learning_rate"] == [rate, rate / 4]
    assert changed["optimiser.clip"][1] == 1 and changed["training.accumulate"] == [1, 2]
    assert read_run_config(out).optimiser.learning_rate == rate / 4
    assert records(out)[-1]["learning_rate"] < before
    resume(out)
    assert resumes(out)[-1]["changed"] == {}
    for refused in ("training.batch_size=4", "optimiser.layer_decay=0.5", "backbone.depth=3"):
        with pytest.raises(ConfigError, match="keeps what its state was made with"):
            continue_run(str(out), [refused])


def test_a_folder_named_by_a_number_can_be_continued(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").symlink_to(folder)
    out = pretrain(config_for(Path("2024"), tmp_path / "run", "training.steps=2"))
    resume(out, "data=2024")
    assert read_run_config(out).data == "2024"


# ----------------------------------------------------------------------------------------------------- images of the run


def stopped_on(root: Path, tmp_path: Path) -> Path:
    stop_after(5)
    try:
        return pretrain(config_for(noisy_pictures(root), tmp_path / "run", "training.steps=12"))
    finally:
        stop_after(None)


def test_added_images_are_trained_on_and_the_plan_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    out = stopped_on(root, tmp_path)
    for number in range(30):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(root / "a" / f"added{number}.png")
    capsys.readouterr()
    resume(out)
    assert "30 images were added since the run was stopped; it goes on with all 71" in " ".join(
        capsys.readouterr().err.split()
    )
    state = checkpoint(out)
    assert (state["step"], state["steps"], state["steps_per_epoch"]) == (12, 12, 5)
    assert state["images_of_data"] == 71
    resume(out)


def test_missing_and_changed_images_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "images"
    out = stopped_on(root, tmp_path)
    picture = root / "a" / "001.jpg"
    Image.new("RGB", (200, 200)).save(picture)
    with pytest.raises(TrainingError, match="of the same names, but their sizes or their order have changed"):
        resume(out)
    picture.unlink()
    with pytest.raises(
        TrainingError, match="41 images and data= now holds 40; 1 of those it knew are missing"
    ):
        resume(out)
    for number in range(3):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(root / "a" / f"added{number}.png")
    with pytest.raises(TrainingError, match="1 of those it knew are missing"):
        resume(out)
