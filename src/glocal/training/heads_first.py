"""Continuing from trained weights: heads that are new learn on the untouched trunk first, until they follow it.

Gradients of random heads would pull a trained trunk apart before they mean anything. When heads follow is read from the
recorded losses alone, so a resumed run, and every process, decides alike.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 0.1
"""Share of the run after which the trunk moves in any case."""
SETTLED = 0.05
"""Heads follow when two records in a row gain less than this share of all that was gained before."""

Losses = Sequence[tuple[int, float]]
"""(step, mean loss) of every record, in order."""


def trunk_share(losses: Losses, step: int, steps: int) -> float:
    """The factor of the trunk's learning rate after `step` of `steps`: 0 while heads learn alone, then rising to 1 in as
    many steps again.

    >>> [trunk_share([], step, steps=100) for step in (9, 10, 14, 30)]
    [0.0, 0.1, 0.5, 1.0]
    """
    opened = opened_at(losses, steps)
    return 0.0 if step < opened else min(1.0, (step - opened + 1) / opened)


def opened_at(losses: Losses, steps: int) -> int:
    """The step after which the trunk moves: the first record at which the loss has settled, a tenth of the run at most.

    >>> opened_at([(5, 8.0), (10, 6.0), (15, 5.95), (20, 5.94)], steps=1000)
    20
    """
    longest = max(1, round(LONGEST * steps))
    for number in range(3, len(losses)):
        step, loss = losses[number]
        gained = losses[0][1] - min(value for _, value in losses[: number - 1])
        if step <= longest and losses[number - 2][1] - loss < SETTLED * gained:
            return step
    return longest
