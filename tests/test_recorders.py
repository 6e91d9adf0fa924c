"""Recorders behind one interface: what reaches each service, what a continued run finds again, what is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from glocal.errors import ConfigError
from glocal.extraction.progress import in_words
from glocal.training.metrics_log import MetricsLog
from glocal.training.recorders import figures_of


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand-ins for both packages that note what they are given."""
    calls: list[tuple[object, ...]] = []
    run = SimpleNamespace(
        log=lambda figures, step: calls.append(("wandb", step, figures)),
        finish=lambda: calls.append(("end",)),
    )
    started: list[dict[str, object]] = []

    def begin(**settings: object) -> SimpleNamespace:
        started.append(settings)
        return run

    wandb = SimpleNamespace(util=SimpleNamespace(generate_id=lambda: f"id{len(started)}"), init=begin)
    made: list[str] = []

    class Client:
        def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
            made.append(run_name)
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(made)}"))

        def log_metric(self, run_id: str, name: str, value: float, step: int) -> None:
            calls.append((run_id, step, {name: value}))

        def set_terminated(self, run_id: str) -> None:
            calls.append(("end",))

    mlflow = SimpleNamespace(
        set_tracking_uri=lambda uri: calls.append(("uri", uri)),
        set_experiment=lambda name: SimpleNamespace(experiment_id="1"),
        tracking=SimpleNamespace(MlflowClient=Client),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return SimpleNamespace(calls=calls, started=started, made=made)


def test_figures_reach_every_service_and_a_continued_run_goes_on_in_the_same(
    services: SimpleNamespace, tmp_path: Path
) -> None:
    for step in (1, 2):
        log = MetricsLog(tmp_path / "metrics.jsonl", enabled=True, recorders=("wandb", "mlflow"))
        log.write({"step": step, "loss": 0.5, "note": "text", "done": True})
        log.close()
    assert ("wandb", 1, {"loss": 0.5}) in services.calls and ("run1", 2, {"loss": 0.5}) in services.calls
    assert [s["id"] for s in services.started] == ["id0", "id0"] and len(services.made) == 1
    assert services.calls.count(("end",)) == 4
    assert any(call[0] == "uri" and str(tmp_path) in call[1] for call in services.calls)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_other_processes_record_nothing(services: SimpleNamespace, tmp_path: Path) -> None:
    MetricsLog(tmp_path / "m.jsonl", enabled=False, recorders=("wandb",)).write({"step": 1, "loss": 1.0})
    assert services.calls == [] and services.started == []


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_service_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install wandb"):
        MetricsLog(tmp_path / "metrics.jsonl", enabled=True, recorders=("wandb",))


def test_only_numbers_are_figures() -> None:
    assert figures_of({"step": 3, "a": 1, "b": 2.5, "c": "x", "d": None, "e": True}) == {"a": 1.0, "b": 2.5}


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "00:00:05"), (86399.6, "1 d 00:00:00"), (200_000, "2 d 07:33:20")]
)
def test_days_are_counted(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
