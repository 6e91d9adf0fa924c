"""What a run that is stopped or fails keeps: its records, its probes, its folder for the next start."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TextIO

import pytest
from test_continuing import finished, folder, resume, run
from tiny_runs import checkpoint, config_for, records, stop_after
from torch import nn

from glocal import load
from glocal.errors import ConfigError, ModelError
from glocal.extraction.progress import in_words
from glocal.training import records as records_module
from glocal.training.loop import pretrain
from glocal.training.metrics_log import MetricsLog, append_text, read_records

__all__ = ["finished", "folder", "run"]  # fixtures


def failing_probe(backbone: nn.Module) -> None:
    raise ValueError("the probe's own fault")


def test_a_failing_probe_is_named_after_the_checkpoint_and_the_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = []

    def probe(backbone: nn.Module) -> None:
        saved.append((tmp_path / "run" / "checkpoints" / "last.pt").exists())
        failing_probe(backbone)

    monkeypatch.setattr(records_module, "training_probes", lambda *_: [probe])
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=4", "probe.every=4"))
    assert saved == [False, True] and (out / "export" / "model.safetensors").exists()
    assert "A probe failed at step 4; the run goes on. ValueError: the probe's own fault" in " ".join(
        capsys.readouterr().err.split()
    )
    assert [r["failed"] for r in records(out) if "failed" in r] == [
        "A probe: ValueError: the probe's own fault"
    ] * 2


def test_a_run_killed_in_its_probe_makes_up_for_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def probe(backbone: nn.Module) -> dict[str, float]:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"figure": 1.0}

    monkeypatch.setattr(records_module, "training_probes", lambda *_: [probe])
    config = config_for(
        folder, tmp_path / "run", "training.steps=4", "probe.every=2", "training.checkpoint_every=2"
    )
    with pytest.raises(KeyboardInterrupt):
        pretrain(config)
    resume(tmp_path / "run")
    assert [r["step"] for r in records(tmp_path / "run") if "figure" in r] == [0, 2, 4]
    assert [r["step"] for r in records(tmp_path / "run") if "loss" in r] == [2, 4]


def test_a_cut_last_line_of_records_is_dropped(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    resume(run, at=run / "checkpoints" / "step-4.pt")
    assert [r["step"] for r in records(run)] == [2, 4, 6, 8]


def test_records_wait_for_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", enabled=True)
    assert log.write({"step": 1, "loss": float("nan")})
    opened = Path.open

    class Full:
        """A file that takes half a line, then no more."""

        def __init__(self, file: TextIO) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:5])
            self.file.flush()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(opened(self, *a, **k)))
    assert not log.write({"step": 2})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    assert log.write({"step": 3})
    log.close()
    assert read_records(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}, {"step": 2}, {"step": 3}]
    assert not append_text(tmp_path / "nowhere" / "file", "text")


def test_a_refused_start_leaves_nothing_and_its_folder_free(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = config_for(folder, out, "training.steps=2")
    with pytest.raises(ModelError):
        pretrain(config.model_copy(update={"init": str(tmp_path / "nowhere.pth")}))
    assert not out.exists()
    # Found out only after the folder was taken: labels of one class can't serve a probe.
    probe = config.probe.model_copy(update={"enabled": True, "data": str(folder / "a")})
    with pytest.raises(ConfigError, match="one class only"):
        pretrain(config.model_copy(update={"probe": probe}))
    pretrain(config)


def test_a_start_that_never_came_to_a_checkpoint_can_be_made_again_or_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glocal.training import loop

    def fails(*_: object) -> None:
        raise MemoryError

    for again in (False, True):
        out = tmp_path / f"run{again}"
        monkeypatch.setattr(loop, "backward", fails)
        with pytest.raises(MemoryError):
            pretrain(config_for(folder, out, "training.steps=2"))
        monkeypatch.undo()
        if again:
            resume(out)
        else:
            pretrain(config_for(folder, out, "training.steps=2", "training.batch_size=4"))
        assert [r["step"] for r in records(out)] == [2]


def test_drafts_of_killed_writes_are_swept(run: Path) -> None:
    (run / "checkpoints" / ".last.pt.99999.writing").write_bytes(b"half")
    resume(run)
    assert not list((run / "checkpoints").glob(".*"))


def test_days_are_told() -> None:
    assert in_words(3 * 86400 + 3661) == "3 d 01:01:01" and in_words(59) == "00:00:59"


def test_a_checkpoint_between_two_records_keeps_what_the_next_one_is_the_mean_of(
    folder: Path, tmp_path: Path
) -> None:
    """Records every third step, a stop after the fourth: the one at step six is the mean of steps four to six."""
    more = ("training.steps=6", "training.log_every=3")
    whole = pretrain(config_for(folder, tmp_path / "whole", *more))
    stop_after(4)
    try:
        out = pretrain(config_for(folder, tmp_path / "stopped", *more))
    finally:
        stop_after(None)
    assert checkpoint(out)["step"] == 4
    resume(out)
    for before, after in zip(records(whole), records(out), strict=True):
        assert [before[name] for name in ("step", "loss", "image", "patch")] == [
            after[name] for name in ("step", "loss", "image", "patch")
        ]


def test_a_run_killed_before_its_kept_export_makes_up_for_it(run: Path) -> None:
    shutil.rmtree(run / "export" / "step-8")
    (run / "checkpoints" / "step-8.pt").unlink()
    resume(run)
    assert checkpoint(run, "step-8.pt")["step"] == 8
    assert load(run / "export" / "step-8").embed_dim == 32


def test_a_run_killed_before_its_first_checkpoint_lists_an_image_once(folder: Path, tmp_path: Path) -> None:
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=6"))
    listed = (out / "unreadable.txt").read_text()
    for file in (out / "checkpoints").iterdir():
        file.unlink()
    resume(out)
    assert listed and (out / "unreadable.txt").read_text() == listed
