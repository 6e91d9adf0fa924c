"""A plan before the first step: what will be trained on, for how long, with how much memory and disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric

from glocal.data import ImageSource
from glocal.errors import GlocalError, name_some
from glocal.extraction.progress import in_words
from glocal.models.device import choose_device
from glocal.training.compute import StepCost, number_of_steps
from glocal.training.config import RunConfig
from glocal.training.stopwatch import peak_memory_gib
from glocal.training.trial import TrialStep

REHEARSED = 8
"""Images of the first batch that is tried; the second has twice as many, so that what one image adds is known."""
_COPIES = 4  # both networks and the optimiser's two averages


@dataclass(frozen=True)
class Rehearsal:
    """What two small steps took on this machine, and what follows for larger ones."""

    seconds_per_image: float
    gib: float
    """Peak memory with `images` images."""
    gib_per_image: float
    images: int
    parameters: int

    def memory(self, batch: int) -> float:
        """GiB of a step of `batch` images in one micro-batch, about."""
        return self.gib + self.gib_per_image * (batch - self.images)


def rehearse(config: RunConfig, source: ImageSource) -> Rehearsal:
    """Take steps of 8 and of 16 images with networks that are thrown away; no generator of the run's is touched.

    Raises:
        GlocalError: when such small batches don't serve the terms, or images can't be read.
    """
    choose_device(config.speed.device, "speed.device")
    torch.set_float32_matmul_precision(config.speed.matmul)
    fabric = Fabric(accelerator=config.speed.device, devices=1)
    small = min(REHEARSED, max(1, min(config.training.batch_size, len(source)) // 2))
    peaks, seconds, parameters = [], 0.0, 0
    with torch.random.fork_rng():
        for images in (small, 2 * small):
            training = config.training.model_copy(update={"batch_size": images, "accumulate": 1})
            trial = TrialStep(config.model_copy(update={"training": training}), source, fabric)
            trial.seconds()  # the first one pays for what is made once
            seconds = trial.seconds()
            peaks.append(peak_memory_gib())
            parameters = sum(p.numel() for p in trial.model.student.parameters())
    slope = max(0.0, peaks[1] - peaks[0]) / small
    return Rehearsal(seconds / (2 * small), peaks[1], slope, 2 * small, parameters)


def plan(config: RunConfig, source: ImageSource) -> list[str]:
    """The plan of a run, a sentence a line; what can't be estimated is said."""
    lines = [f"data: {len(source):,} images in {source.name}. {labels_in_words(source)}"]
    if source.left_out:
        lines.append(left_out_in_words(source.left_out))
    try:
        rehearsal = rehearse(config, source)
    except GlocalError as error:
        return [*lines, f"time and memory: not estimated ({error})"]
    training = config.training
    micro_batch = training.batch_size // training.accumulate // config.speed.devices
    disk = _COPIES * 4 * rehearsal.parameters / 2**20
    lines.append(
        f"memory: about {rehearsal.memory(micro_batch):.1f} GiB in each process; disk: about {disk:.0f} MB a checkpoint"
    )
    if training.flops is None and training.minutes is None:
        steps = number_of_steps(training, len(source), StepCost(0.0))
        step = rehearsal.seconds_per_image * training.batch_size / config.speed.devices
        # The shorter run is a tenth; what it can be set by depends on what the length is given in.
        lines.append(
            f"time: about {in_words(step * steps)} for {steps:,} steps, without reading and probes; "
            f"training.steps={max(1, steps // 10)} would take about {in_words(step * max(1, steps // 10))}"
        )
    return lines


def labels_in_words(source: ImageSource) -> str:
    """Which labels were found, and how to leave them alone: folders of years look like classes, too."""
    if source.labels is None:
        return "No labels."
    names = source.class_names or [str(n) for n in range(int(source.labels.max()) + 1)]
    return f"Labels: {len(names)} classes ({name_some(names)}), read by probes only; labels=false leaves them alone."


def left_out_in_words(left_out: Mapping[str, int]) -> str:
    """Files that are no images to this installation, counted by ending."""
    counted = name_some((f"{count:,} {ending}" for ending, count in left_out.items()), 6)
    heic = {".heic", ".heif"} & {ending.lower() for ending in left_out}
    return f"left out: {counted}." + (" pip install 'glocal[heic]' reads HEIC." if heic else "")
