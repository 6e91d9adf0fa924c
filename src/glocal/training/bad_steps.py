"""Steps whose loss or gradient is no number: left out on the device, counted, and answered when they come in a row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

IN_A_ROW = 5
"""Bad steps in a row after which the run goes back to its last checkpoint at half the learning rate."""
MOST_RETREATS = 3
"""Times that a run goes back before it ends with a diagnosis."""


class BadSteps(NamedTuple):
    """What a record says of the steps since the last one."""

    skipped: int
    in_a_row: int


class StepGuard(nn.Module):
    """Keeps a bad step from student, teacher's centres and memories, without waiting for the device.

    A bad step leaves weights, optimiser and the objectives' buffers bit for bit as they were: the optimiser gets the
    verdict as `found_inf`, buffers are chosen by it. The teacher follows a student that stood still. What objectives
    count on the host (the place in a memory) moves on, so that rows of a bad step are those that lay there before.
    Cost: one copy of the objectives' buffers a step. Its own counts are buffers, which checkpoints keep.
    """

    skipped: Tensor
    in_a_row: Tensor
    longest: Tensor

    def __init__(self, objectives: nn.Module) -> None:
        super().__init__()
        self._guarded = list(objectives.buffers())
        self._before: list[Tensor] = []
        for name in ("skipped", "in_a_row", "longest"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the objectives' state; before anything of the step is computed."""
        self._before = [buffer.clone() for buffer in self._guarded]

    @torch.no_grad()
    def judge(
        self, loss: Float[Tensor, ""], norm: Float[Tensor, ""], optimiser: torch.optim.Optimizer
    ) -> Float[Tensor, ""]:
        """1 for a bad step, else 0; the optimiser's next `step` does nothing in a bad one.

        With several processes both are averages, so that all judge alike.
        """
        bad = (~(loss.isfinite() & norm.to(loss.device).isfinite())).float()
        optimiser.found_inf = bad  # type: ignore[attr-defined]
        self.skipped += bad
        self.in_a_row.add_(1).mul_(bad)
        torch.maximum(self.longest, self.in_a_row, out=self.longest)
        return bad

    @torch.no_grad()
    def keep(self, bad: Float[Tensor, ""]) -> None:
        """Give the objectives their state of before a bad step back; after `finish_step`."""
        for buffer, before in zip(self._guarded, self._before, strict=True):
            torch.where(bad > 0, before, buffer, out=buffer)
        self._before = []

    def read(self) -> BadSteps:
        """The counts since the last reading; waits for the device."""
        skipped, longest = torch.stack([self.skipped, self.longest]).tolist()
        self.skipped.zero_()
        self.longest.copy_(self.in_a_row)
        return BadSteps(int(skipped), int(longest))

    def reset(self) -> None:
        """Begin to count anew, after a retreat."""
        for buffer in self.buffers():
            buffer.zero_()
