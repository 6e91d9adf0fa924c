"""The training state as a file: what is in it, how it is verified, and how it comes back bit for bit.

A checkpoint is what `torch.save` writes, a zip archive with a CRC-32 of every record. All of them are verified before
anything is read: torch itself does not look at them. `glocal.load` reads the same file by `config`, `mean`, `std`,
`image_size` and `teacher`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glocal.errors import TrainingError
from glocal.outside import reading, reason
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation

FORMAT = 2
# What is in a state beside its format; the networks themselves check what is in theirs.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("step", "steps", "steps_per_epoch", "retreats", "images_of_data"), int),
    **dict.fromkeys(("config", "data_fingerprint"), str),
    **dict.fromkeys(("student", "teacher", "objectives", "optimiser", "guard"), dict),
    "seconds": float,
    "generators": list,
}


class DamagedCheckpointError(TrainingError):
    """A checkpoint that is missing, cut off or has other content than was written; another one may do."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verify and read a checkpoint of ours; nothing in it is executed.

    Raises:
        DamagedCheckpointError: when the file is missing, cut off, or a record differs from its checksum.
        TrainingError: when it is something else, or of another format.
    """
    _verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise _foreign(path) from error
    if not isinstance(state, dict) or "format" not in state or "student" not in state:
        raise _foreign(path)
    if state["format"] != FORMAT:
        raise TrainingError(
            f"{path} has checkpoint format {str(state['format'])[:40]}; this version of glocal continues format {FORMAT}. "
            f"Start a new run with init={path}."
        )
    wrong = _wrong_entries(state)
    if wrong:
        raise DamagedCheckpointError(f"{path} is damaged: {', '.join(wrong)} missing or of another kind.")
    return state


def read_newest(last: Path, previous: Path) -> tuple[dict[str, Any], str]:
    """The state of `last`, or of `previous` where that can't be read, and a sentence that says so.

    Raises:
        TrainingError: when neither can be read.
    """
    try:
        return read_checkpoint(last), ""
    except TrainingError as error:
        try:
            state = read_checkpoint(previous)
        except TrainingError as second:
            kept = sorted(file.name for file in last.parent.glob("step-*.pt"))
            raise TrainingError(
                f"{error} {second} "
                + (f"Continue from one that was kept, with resume={last.parent / kept[-1]}." if kept else
                   "Start a new run; export/ may hold weights for init=.")
            ) from second  # fmt: skip
        return state, f"{error} Continuing from {previous.name}, step {state['step']:,}."


def restore(
    state: dict[str, Any], path: Path, model: SelfDistillation, optimiser: torch.optim.Optimizer
) -> None:
    """Put weights, the objectives' state and the optimiser's in place, in this order.

    Raises:
        TrainingError: when the state is of another model than the configured one.
    """
    try:
        model.student.load_state_dict(state["student"])
        model.teacher.load_state_dict(state["teacher"])
        model.objectives.load_state_dict(state["objectives"])
        optimiser.load_state_dict(state["optimiser"])
    except Exception as error:
        raise TrainingError(
            f"{path} is of another model than this run's configuration ({reason(error)}). Continue it with the "
            "configuration it was made with, or start a new run with init= set to it."
        ) from error


def written_config(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was made with, as plain data.

    Raises:
        TrainingError: when it is none.
    """
    with reading(path, "a training state of glocal", TrainingError, f"Start a new run with init={path}."):
        plain: dict[str, Any] = json.loads(state["config"])
        for section in ("backbone", "optimiser"):
            dict(plain[section])
    return plain


def refuse_another_backbone(state: dict[str, Any], path: Path, config: RunConfig) -> None:
    """Name what differs, before shapes do.

    Raises:
        TrainingError: when the checkpoint's backbone is not the configured one.
    """
    written, wanted = written_config(state, path)["backbone"], config.backbone.model_dump(mode="json")
    wrong = [
        f"backbone.{name}={written.get(name)} where the run has {value}"
        for name, value in wanted.items()
        if written.get(name) != value and name != "drop_path"
    ]
    if wrong:
        raise TrainingError(
            f"{path} is of another backbone: {'; '.join(wrong)}. Choose a checkpoint of this run, or start a new one with "
            f"init={path}."
        )


def _wrong_entries(state: Mapping[str, Any]) -> list[str]:
    """Names of what is missing or makes no sense in a training state."""
    wrong = [name for name, kind in _KINDS.items() if not isinstance(state.get(name), kind)]
    numbers = [name for name, kind in _KINDS.items() if kind in (int, float) and name not in wrong]
    wrong += [name for name in numbers if isinstance(state[name], bool) or not 0 <= state[name] < 2**63]
    if "guard" not in wrong and not isinstance(state["guard"].get("in_a_row"), torch.Tensor):
        wrong.append("guard")
    return wrong


def _verify(path: Path) -> None:
    if not path.is_file():
        raise DamagedCheckpointError(f"There is no checkpoint at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except MemoryError:
        raise
    except Exception as error:
        if path.stat().st_size and not _starts_as_archive(path):
            raise _foreign(path) from error
        raise DamagedCheckpointError(f"{path} is damaged or cut off ({reason(error)}).") from error
    if wrong is not None:
        raise DamagedCheckpointError(f"{path} is damaged: '{wrong}' differs from its checksum.")


def _starts_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or not any(start)


def _foreign(path: Path) -> TrainingError:
    return TrainingError(
        f"{path} is no training state of glocal, so a run can't be continued from it. Weights serve as a start: init={path}."
    )
