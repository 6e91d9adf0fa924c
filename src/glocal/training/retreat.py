"""Going back to the last sound state of a run, at half the learning rate, when bad steps come in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glocal.errors import TrainingError
from glocal.training.bad_steps import IN_A_ROW, MOST_RETREATS
from glocal.training.checkpoint import read_checkpoint
from glocal.training.preparation import begin_again
from glocal.training.run import Run
from glocal.training.run_folder import RunFolder
from glocal.training.saving import continue_from, save


def retreat(run: Run, step: int) -> int:
    """Put the run at its last checkpoint that no bad step preceded, or before its first step; return the step it is at.

    Raises:
        TrainingError: with a diagnosis, when that was done as often as it may be.
    """
    sound = _last_sound(run.folder)
    if run.retreats == MOST_RETREATS or (sound is None and run.folder.begun):
        raise _diagnosis(run, step)
    retreats = run.retreats + 1
    if sound is None:
        begin_again(run)
    else:
        continue_from(run, *sound)
    run.retreats = retreats
    run.guard.reset()
    if run.first:
        settings = run.config.model_dump(mode="json")
        run.folder.write_resume(
            settings, run.config, run.done, f"{IN_A_ROW} bad steps in a row up to step {step}"
        )
    if sound is not None:
        save(run, run.done)
    return run.done


def _last_sound(folder: RunFolder) -> tuple[dict[str, Any], Path] | None:
    for path in (folder.last, folder.previous):
        try:
            state = read_checkpoint(path)
        except TrainingError:
            continue
        if not state["guard"]["in_a_row"]:
            return state, path
    return None


def _diagnosis(run: Run, step: int) -> TrainingError:
    config = run.config
    causes = ["images whose pixels are all alike (glocal show views shows what the networks see)"]
    if config.optimiser.clip is None:
        causes.insert(0, "gradients without a limit (optimiser.clip=null)")
    if config.speed.precision == "bf16":
        causes.insert(0, "a term that needs more than bfloat16 (speed.precision=bf16)")
    return TrainingError(
        f"The loss or its gradient was no number in {IN_A_ROW} or more steps in a row up to step {step}, the "
        f"learning rate at {run.rate_factor:g} of its schedule. Bad steps changed nothing; "
        f"the last checkpoint stands. Possible causes: {', '.join(['a rate too high', *causes])}. Continue with "
        "resume=true and optimiser.learning_rate= at a tenth, optimiser.clip=1 or speed.precision=fp32."
    )
