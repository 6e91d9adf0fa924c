"""The verdict study: a tiny run leaves its record, and the table is read from records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import verdict_study


def test_a_tiny_run_leaves_a_record(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = (
        "backbone.embed_dim=32",
        "backbone.depth=1",
        "training.batch_size=16",
        "probe.bank=100",
        "probe.queries=50",
    )
    monkeypatch.setattr(verdict_study, "TINY", (*verdict_study.TINY, *small))
    monkeypatch.setattr(verdict_study, "DENSE", (*verdict_study.DENSE, "size=32", "every=60"))
    monkeypatch.setitem(verdict_study.VARIANTS, "too-long-on-500", ("glocal", 2, ()))
    verdict_study.run_study(real_data, tmp_path, ["cifar10"], ["too-long-on-500"])
    record = json.loads((tmp_path / "cifar10.too-long-on-500.json").read_text())
    assert record["steps"] == 2 and record["stopped"] is None
    assert [figures["step"] for figures in record["examined"]] == [0, 1, 2]
    assert all(0 <= record[figure] <= 100 for figure in ("score", "knn", "miou"))
    verdict_study.tell(tmp_path)
    assert "too-long-on-500" in capsys.readouterr().out


def test_ranks_and_losses_are_told_set_by_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for number in range(3):
        # Retrieval and rank as the labels have them; the second of three examinations is the best by labels.
        figures = [
            {"step": step, "retrieval": share, "correspondence": 20.0, "rank": 10.0, "knn": knn}
            for step, share, knn in (
                (0, 5.0, 10.0),
                (5, 40.0 + number, 30.0 + number),
                (10, 41.0 + number, 29.0 + number),
            )
        ]
        runs.append({"set": "cifar10", "variant": f"v{number}", "steps": 10, "accused_at": None, "examined": figures,
                     "knn": 29.0 + number, "miou": 20.0 - number, "score": 0.0})  # fmt: skip
    records = tmp_path / "records.jsonl"
    records.write_text("\n".join(json.dumps(run) for run in runs))
    verdict_study.tell(records)
    told = capsys.readouterr().out
    assert "cifar10: 3 runs, Spearman with knn 1.000, Spearman with miou -1.000" in told
    assert "checkpoint by score below the best by k-NN: 1.0, 1.0, 1.0 points" in told
