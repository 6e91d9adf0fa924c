"""In which precision matrix products run, and how that is decided."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from glocal.distributed import world_size
from glocal.models.device import has_native_bfloat16

if TYPE_CHECKING:
    from glocal.training.trial import TrialStep

_WORTH = 1.05
"""bfloat16 is taken from this ratio of speeds on: below it rounding would buy nothing."""
_TRIAL_SECONDS = 1.0


class Precision(NamedTuple):
    """What a run computes in, and why."""

    name: Literal["fp32", "bf16"]
    reason: str

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that products are cast to."""
        return torch.bfloat16 if self.name == "bf16" else None


def choose_precision(asked: Literal["auto", "fp32", "bf16"], trial: TrialStep) -> Precision:
    """Settle `auto`: bfloat16 where the processor has the instructions and steps of this run are faster with them."""
    if asked != "auto":
        return Precision(asked, "as configured")
    if not has_native_bfloat16(trial.device):
        return Precision("fp32", "the processor has no bfloat16 instructions")
    if world_size() > 1:
        return Precision("bf16", "the processor has the instructions; not measured with several processes")
    seconds = _seconds_by_precision(trial)
    ratio = seconds["fp32"] / seconds["bf16"]
    reason = f"a step in bfloat16 measured {ratio:.2f} times as fast as in float32"
    return Precision("bf16" if ratio >= _WORTH else "fp32", reason)


def _seconds_by_precision(trial: TrialStep) -> dict[str, float]:
    """The faster of two steps in each, in turn, on as much of the batch as takes about a second."""
    most = max(1, len(trial.views) // 4)
    trial.seconds(most)
    parts = min(most, math.ceil(trial.seconds(most) * most / _TRIAL_SECONDS))
    seconds = {"fp32": math.inf, "bf16": math.inf}
    for repeat in range(3):
        for name, autocast in (("fp32", None), ("bf16", torch.bfloat16)):
            trial.model.autocast = autocast
            taken = trial.seconds(parts)
            # The first of each chooses kernels and fills caches.
            seconds[name] = min(seconds[name], taken) if repeat else math.inf
    return seconds
