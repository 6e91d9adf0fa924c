"""Where figures go besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, behind one small interface.

Nothing is sent anywhere unless a person names the service: Weights & Biases and MLflow go where their own environment
variables say (`WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`); MLflow without one writes into the run folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from glocal.errors import ConfigError

RecorderName = Literal["tensorboard", "wandb", "mlflow"]


@runtime_checkable
class Recorder(Protocol):
    """Takes figures of a step, and is closed once."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of one record."""

    def close(self) -> None:
        """Hand over what is still held back."""


class TensorBoard:
    """An event file in `RUN/tensorboard`; a figure `image.target_entropy` stands under `image`."""

    def __init__(self, folder: Path) -> None:
        board = importlib.import_module("torch.utils.tensorboard")
        self._writer = board.SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a scalar for each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name.replace(".", "/"), value, step)

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of project `glocal`, or of WANDB_PROJECT; a continued run goes on in the same one."""

    def __init__(self, folder: Path) -> None:
        wandb = importlib.import_module("wandb")
        key = _kept(folder / "wandb_run_id", lambda: str(wandb.util.generate_id()))
        project = os.environ.get("WANDB_PROJECT", "glocal")
        self._run = wandb.init(project=project, name=folder.name, dir=str(folder), id=key, resume="allow")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures under the step."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MlFlow:
    """A run of experiment `glocal`, or of MLFLOW_EXPERIMENT_NAME; a continued run goes on in the same one."""

    def __init__(self, folder: Path) -> None:
        mlflow = importlib.import_module("mlflow")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "glocal"))
        self._client, experiment_id = mlflow.tracking.MlflowClient(), experiment.experiment_id
        self._run: str = _kept(
            folder / "mlflow_run_id",
            lambda: str(self._client.create_run(experiment_id, run_name=folder.name).info.run_id),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log each figure under the step."""
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


RECORDERS: dict[RecorderName, Callable[[Path], Recorder]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MlFlow,
}


def open_recorders(names: Sequence[RecorderName] | None, folder: Path) -> list[Recorder]:
    """Open the recorders named; null: TensorBoard where it is installed.

    Raises:
        ConfigError: for one whose package is not installed.
    """
    installed: tuple[RecorderName, ...] = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    chosen = installed if names is None else names
    for name in chosen:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"training.recorders names {name}, which is not installed. Run: pip install {name}, or leave it out."
            )
    return [RECORDERS[name](folder) for name in chosen]


def figures_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record, its step left out."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _kept(file: Path, make: Callable[[], str]) -> str:
    """A key that a continued run finds again."""
    if not file.exists():
        file.write_text(make())
    return file.read_text()
