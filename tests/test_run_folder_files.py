"""Files of a run folder, damaged in every way: read as they were, passed over, or refused in one sentence."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_side_files import check, damaged, rewritten
from tiny_runs import checkpoint, config_for, noisy_pictures, records

from glocal.config import to_yaml
from glocal.data import open_source
from glocal.errors import TrainingError
from glocal.extraction.feature_files import read_features, write_features
from glocal.extraction.journal import Journal
from glocal.recipes import continue_run
from glocal.report.run_story import read_story
from glocal.training.checkpoint import read_checkpoint, read_newest
from glocal.training.data_changes import count_added, write_image_names
from glocal.training.guard import conclude
from glocal.training.loop import pretrain
from glocal.training.metrics_log import MetricsLog, read_records
from glocal.training.preparation import prepare
from glocal.training.run_folder import RunFolder, read_run_config
from glocal.training.saving import continue_from
from glocal.training.verdict import recorded_scores

SMALL_STATE = {
    "format": 2, "config": '{"backbone": {}, "optimiser": {}}', "data_fingerprint": "f", "images_of_data": 41, "seconds": 1.5,
    "step": 4, "steps": 8, "steps_per_epoch": 5, "retreats": 0, "student": {"a": torch.arange(600.0)}, "teacher": {},
    "objectives": {}, "optimiser": {"state": {0: torch.ones(300)}}, "guard": {"in_a_row": torch.zeros(())},
    "generators": [{"cpu": torch.zeros(8, dtype=torch.uint8)}],
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, examined and probed, with two generations."""
    root = tmp_path_factory.mktemp("run")
    more = (
        "training.steps=4", "training.checkpoint_every=2", "probe.enabled=true", "probe.every=2", "verdict.enabled=true",
        "verdict.every=2", "verdict.images=8",
    )  # fmt: skip
    return pretrain(config_for(noisy_pictures(root / "images"), root / "run", *more))


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def flipped(content: bytes, count: int) -> Iterator[bytes]:
    """One bit each, all over: half of this small file is headers and the archive's directory."""
    for place in np.linspace(0, len(content) - 1, count).astype(int):
        mutant = bytearray(content)
        mutant[place] ^= 1 << (place % 8)
        yield bytes(mutant)


def test_a_damaged_checkpoint_is_as_it_was_or_refused(tmp_path: Path) -> None:
    file, content = tmp_path / "last.pt", saved(SMALL_STATE)

    def read() -> None:
        state = read_checkpoint(file)
        assert all(str(state[name]) == str(value) for name, value in SMALL_STATE.items())
        assert torch.equal(state["student"]["a"], SMALL_STATE["student"]["a"])  # type: ignore[index]

    check(file, damaged(content), read)
    check(file, flipped(content, 900), read)


def test_whatever_the_last_checkpoint_holds_the_one_before_is_gone_on_from(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    previous.write_bytes(saved(SMALL_STATE))
    contents = [
        b"no archive",
        saved({"model": torch.ones(3)}),
        saved(SMALL_STATE | {"step": "4"}),
        saved([1, 2]),
    ]
    for content in contents:
        last.write_bytes(content)
        state, note = read_newest(last, previous)
        assert state["step"] == 4 and "last.pt" in note and "Continuing from previous.pt, step 4." in note
    previous.unlink()
    with pytest.raises(TrainingError, match=r"last.pt.*previous.pt") as refused:
        read_newest(last, previous)
    assert "\n" not in str(refused.value)


def test_a_state_of_other_kinds_is_refused(run: Path, tmp_path: Path) -> None:
    """Whole archives whose entries are not what they should be, put into a run."""
    state = checkpoint(run)
    file = tmp_path / "given.pt"
    with RunFolder(run) as folder:
        going_on = prepare(read_run_config(run), folder, True)

    def read() -> None:
        continue_from(going_on, read_checkpoint(file), file)

    networks = ("student", "teacher", "objectives")
    plain = {name: value for name, value in state.items() if name not in (*networks, "optimiser")}
    check(file, (saved(state | mutant) for mutant in rewritten(plain) if isinstance(mutant, dict)), read)
    for network in networks:
        names = [*state[network]][:3]
        for value in (None, torch.zeros(2, 2), 3):
            check(file, iter([saved(state | {network: state[network] | dict.fromkeys(names, value)})]), read)
    optimisers: list[dict[str, object]] = [
        {}, {"state": 3, "param_groups": []}, {"state": {}, "param_groups": [{"params": [7]}]},
    ]  # fmt: skip
    for optimiser in optimisers:
        check(file, iter([saved(state | {"optimiser": optimiser})]), read)


def test_records_of_any_kind_are_passed_over(run: Path, tmp_path: Path) -> None:
    """What reads them (page, doctor, verdict, guard, a run that goes on) never fails; what is left are figures."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    file = folder / "metrics.jsonl"
    good = records(run)
    lines = (run / "metrics.jsonl").read_bytes()
    first = {**good[0], **good[-1], "failed": "A probe: reason"}
    mutants = [lines + json.dumps(plain).encode() + b"\n" + lines for plain in rewritten(first)]
    for mutant in [*damaged(lines), *mutants]:
        file.write_bytes(mutant)
        json.dumps(read_story(folder).to_json())
        assert all(math.isfinite(score) for _, score in recorded_scores(file))
        conclude(file, folder / "export")
        log = MetricsLog(file, enabled=True)
        log.cut_after(2)
        left = read_records(file)
        assert all(0 <= record["step"] <= 2 and not isinstance(record["step"], bool) for record in left)
        if lines in mutant:
            assert [record for record in good if record["step"] <= 2] == left[
                : sum(r["step"] <= 2 for r in good)
            ]


def test_a_configuration_of_other_kinds_is_refused_or_told(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    plain = yaml.safe_load((run / "config.yaml").read_text())

    def read() -> None:
        to_yaml(continue_run(str(tmp_path), ["training.steps=5"]))

    some = itertools.islice(rewritten(plain), 0, None, 17)
    check(file, (yaml.safe_dump(mutant).encode() for mutant in some), read)


def test_a_setting_changed_by_hand_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """config.yaml is compared with what the checkpoint was made with."""
    folder = noisy_pictures(tmp_path / "images")
    out = pretrain(config_for(folder, tmp_path / "run", "training.steps=2"))
    file = out / "config.yaml"
    assert "weight_decay: 0.04" in file.read_text()
    file.write_text(file.read_text().replace("weight_decay: 0.04", "weight_decay: 0.05"))
    pretrain(continue_run(str(out), []), resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "optimiser.weight_decay changed from 0.04 to 0.05." in said
    assert json.loads((out / "resumes.jsonl").read_text())["changed"] == {
        "optimiser.weight_decay": [0.04, 0.05]
    }


def test_unreadable_images_stay_known(run: Path) -> None:
    """A run that goes on neither lists an image twice nor counts from nothing again."""
    with RunFolder(run) as folder:
        going_on = prepare(read_run_config(run), folder, True)
    assert (
        list(going_on.unreadable) == ["a/broken.jpg"]
        and (run / "unreadable.txt").read_text().count("\n") == 1
    )


def test_damaged_image_names_add_no_images(run: Path, tmp_path: Path) -> None:
    """The hashes say which images were known; a file that can't tell refuses, it never invents."""
    source = open_source(str(run.parent / "images"))
    file = tmp_path / "images.npy"
    write_image_names(file, source)
    known = {"data_fingerprint": "another", "images_of_data": len(source)}

    def read() -> None:
        raise AssertionError(f"{count_added(source, source.fingerprint(), known, file)} images added")

    check(file, damaged(file.read_bytes()), read)
    buffer = io.BytesIO()
    for array in (np.zeros((41, 2)), np.array(["a"] * 41), np.zeros(41, bool), np.float64(3)):
        buffer.seek(0)
        np.save(buffer, array)
        check(file, iter([buffer.getvalue()]), read)


def test_damaged_journals_and_features_are_computed_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ["davis"])
    values: dict[str, Any] = {"dog": 0.5, "cat": [1, 2.25], "größe": None}
    for name, value in values.items():
        journal.add(name, value)
    (file,) = tmp_path.glob("*.jsonl")
    for mutant in damaged(file.read_bytes()):
        file.write_bytes(mutant)
        again = Journal(tmp_path, ["davis"])
        assert all(again.get(name) in (None, value) for name, value in values.items())
    kept = tmp_path / "features.safetensors"
    tensors = {"cls": torch.arange(12.0).reshape(3, 4)}
    write_features(kept, tensors, [(1, "cut off")])
    for mutant in damaged(kept.read_bytes()):
        kept.write_bytes(mutant)
        features = read_features(kept)
        assert features is None or (
            torch.equal(features.tensors["cls"], tensors["cls"]) and features.bad == [(1, "cut off")]
        )
