"""Runs that grow: views that begin small and blocks that join later. What is computed at a step, and what that costs.

Both save compute at the beginning, when little detail is learnt (progressive resolution: Touvron et al. 2019,
arXiv 1906.06423; Tan and Le 2021, arXiv 2104.00298; depth: Gong et al. 2019). Everything here is a function of the step and
of the plan, so that a resumed run is the same bit for bit. Not yet measured: no recipe grows by default.

    glocal pretrain glocal data=photos/ out=runs/a "views.global.size={start: 16, end: 32, shape: linear}"
    glocal pretrain glocal data=photos/ out=runs/b "training.blocks={start: 1, end: 3, shape: linear}"
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from glocal.models.blocks import Block
from glocal.models.vit import VisionTransformer
from glocal.schedules import Progress, Schedule
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation
from glocal.views.batch import Views
from glocal.views.resizing import resized


class Stage(NamedTuple):
    """What decides the cost of a step: (height, width) of every group's views, in order, and how many blocks compute."""

    sizes: tuple[tuple[int, int], ...]
    blocks: int


def stage_at(config: RunConfig, progress: Progress) -> Stage:
    """The stage of the step about to be done."""
    depth, blocks = config.backbone.dimensions.depth, config.training.blocks
    sizes = (group.size_at(progress, config.backbone.patch_size) for group in config.views.values())
    return Stage(tuple(sizes), depth if blocks is None else min(depth, max(1, round(blocks.at(progress)))))


def grow(model: SelfDistillation, pixels: Views, config: RunConfig, stage: Stage) -> Views:
    """Let as many blocks compute as the stage has, and return the views at its sizes."""
    for network in (model.student, model.teacher):
        if isinstance(network.backbone, VisionTransformer):
            network.backbone.running = stage.blocks
    return resized(pixels, dict(zip(config.views, stage.sizes, strict=True)))


@torch.no_grad()
def start_late_blocks(model: SelfDistillation, config: RunConfig) -> None:
    """Make the identity of blocks that join later: their outputs' weights are 0, so that joining changes nothing, and
    whoever computes all blocks meanwhile (probes, the export) sees the same model.
    """
    if config.training.blocks is None:
        return
    first = round(config.training.blocks.start)
    for network in (model.student, model.teacher):
        for block in network.backbone.blocks[first:]:
            assert isinstance(block, Block)
            for layer in (block.attn.proj, block.mlp.fc2):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)


class GrowingCost:
    """FLOPs of a run whose steps cost differently. `cost_of` counts a step of a stage; each is asked for once."""

    def __init__(self, config: RunConfig, cost_of: Callable[[Stage], float]) -> None:
        self.config, self._cost_of = config, cost_of
        self._costs: dict[Stage, float] = {}
        self._plan, self._done, self._sum = (0, 0), 0, 0.0

    def until(self, progress: Progress) -> float:
        """FLOPs of the steps done. Goes on from where it was asked last, so that a run's records cost it a pass in all."""
        plan = (progress.total_steps, progress.steps_per_epoch)
        if plan != self._plan or progress.step < self._done:
            self._plan, self._done, self._sum = plan, 0, 0.0
        for step in range(self._done, progress.step):
            stage = stage_at(self.config, Progress(step, *plan))
            if stage not in self._costs:
                self._costs[stage] = self._cost_of(stage)
            self._sum += self._costs[stage]
        self._done = progress.step
        return self._sum

    def steps_within(self, flops: float, steps_per_epoch: int) -> int:
        """The most steps whose costs, along the schedules of just so many steps, stay within a budget; 0 for none."""
        steps = 1
        for _ in range(20):  # the mean cost hardly changes with the number of steps: this settles at once
            mean = self.until(Progress(steps, steps, steps_per_epoch)) / steps
            guess = max(1, int(flops / mean))
            if guess == steps:
                break
            steps = guess
        while steps and self.until(Progress(steps, steps, steps_per_epoch)) > flops:
            excess = self.until(Progress(steps, steps, steps_per_epoch)) - flops
            steps -= max(1, math.floor(excess / max(self._costs.values())))
        return max(0, steps)


def grows(config: RunConfig) -> bool:
    """Whether steps of this run cost differently."""
    return config.training.blocks is not None or any(
        isinstance(group.size, Schedule) for group in config.views.values()
    )
