"""What a training step costs: `dino` against its bare networks and against a step in the published style, others against `dino`.

python -m benchmarks.bench_step [tiny]        # ratios of steps that take turns
DEVICE=cuda python -m benchmarks.bench_step
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.ratios import Ratio, Size, device, in_a_process, print_ratios, ratio, take_turns
from benchmarks.reference_style import PlainStep
from glocal.models.teacher import MovingAverage
from glocal.recipes import configure
from glocal.schedules import Progress
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.training.optimiser import build_optimiser, clip_gradients
from glocal.views.augment import augment
from glocal.views.batch import ViewBatch, Views
from glocal.views.boxes import GeometryLaw

PROGRESS = Progress(step=50_000, total_steps=100_000, steps_per_epoch=1000)


class Work(NamedTuple):
    """How much a step does."""

    size: str
    batch: int
    precision: str = "fp32"
    prototypes: int = 65536
    sides: tuple[int, int] = (224, 96)
    """Of large and small views, in pixels."""


TINY = Work("micro", 2, prototypes=64, sides=(64, 48))
OTHERS = {"local-global": 1.25, "pw-self": 1.25, "selfpatch": 1.3}
"""Recipes that are held against `dino`: time and peak memory, at most."""


def configuration(recipe: str, work: Work) -> RunConfig:
    """A recipe at ImageNet's scale: 2 large and 8 small views."""
    overrides = [
        f"backbone.size={work.size}", f"training.batch_size={work.batch}", f"speed.precision={work.precision}",
        f"objectives.image.head.prototypes={work.prototypes}", f"views.global.size={work.sides[0]}",
        f"views.local.size={work.sides[1]}",
    ]  # fmt: skip
    return configure(recipe, data="DATA", out="RUN", preset="imagenet", overrides=overrides)


def raw_views(config: RunConfig) -> Views:
    """Random bytes with boxes as the recipe draws them from a 256x256 source."""
    batch = config.training.batch_size
    law = GeometryLaw(config.views)
    seeds = torch.randint(2**62, (batch,))
    draws = law.draw(seeds.numpy())
    boxes = torch.from_numpy(law.place(draws, np.full((batch, 2), 256))).float()
    groups = {
        name: ViewBatch(
            torch.randint(0, 256, (batch, g.count, 3, *g.height_width), dtype=torch.uint8),
            boxes[:, law.slices[name]].contiguous(),
            torch.from_numpy(draws.flip[:, law.slices[name]].copy()),
            torch.from_numpy(draws.strong[:, law.slices[name]].copy()),
        )
        for name, g in config.views.items()
    }
    return Views(groups, seeds, torch.arange(batch), torch.full((batch, 2), 256)).to(device())


class Subject:
    """One recipe, ready to step."""

    def __init__(self, recipe: str, work: Work) -> None:
        self.config = configuration(recipe, work)
        autocast = torch.bfloat16 if work.precision == "bf16" else None
        self.model: SelfDistillation = build_distillation(self.config, autocast).to(device())
        self.model.teacher.to(device())
        self.optimiser = build_optimiser(self.model, 12, self.config.optimiser)
        self.average = MovingAverage(self.model.teacher, self.model.student)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.views = raw_views(self.config)

    def step(self) -> None:
        """Augmentation, losses, gradients, update: everything of a step but loading."""
        views = augment(self.views, self.config.views, self.config.backbone.patch_size)
        loss, _ = self.model(StepInput(views, PROGRESS, False))
        loss.backward()
        self.update()

    def update(self) -> None:
        """Everything after the gradients."""
        clip_gradients(self.parameters, self.config.optimiser, PROGRESS)
        self.model.finish_step()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(0.996)

    def update_alone(self) -> None:
        """AdamW and the teacher's average on gradients of zero."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(0.996)

    def bare(self) -> None:
        """Teacher forward and student forward and backward at the same shapes; no heads, loss or update."""
        views = (
            augment(self.views, self.config.views, self.config.backbone.patch_size)
            if self._augmented is None
            else self._augmented
        )
        with torch.autocast(device().type, torch.bfloat16, enabled=self.model.autocast is not None):
            with torch.no_grad():
                self.model.teacher.features(views, self.config.views, "teacher")
            features = self.model.student.features(views, self.config.views, "student")
            total = sum(
                f.cls.float().square().sum() + f.patches.float().square().sum() * 1e-6
                for f in features.values()
            )
        total.backward()  # type: ignore[union-attr]
        self.optimiser.zero_grad(set_to_none=True)

    _augmented: Views | None = None

    def prepare(self) -> None:
        """Augment once, for `bare`."""
        self._augmented = augment(self.views, self.config.views, self.config.backbone.patch_size)

    def network_inputs(self) -> list[Tensor]:
        """The augmented pixels of every view, large ones first: what a step in the published style is given."""
        assert self._augmented is not None
        return [view for group in self._augmented.groups.values() for view in group.pixels.unbind(1)]


def peak_of(recipe: str, work: Work) -> float:
    """Peak memory in GiB of two steps in a process of its own, less that of the imports."""
    return in_a_process(
        "import torch; from benchmarks.bench_step import Subject, Work; from glocal.training.stopwatch import peak_memory_gib;"
        "torch.set_float32_matmul_precision('medium'); before = peak_memory_gib();"
        f"s = Subject({recipe!r}, {work!r}); s.step(); s.step(); print(peak_memory_gib() - before)"
    )


def step_ratios(work: Work, rounds: int) -> list[Ratio]:
    """Of one backbone size."""
    label = f"ViT-{work.size} {work.precision}"
    dino = Subject("dino", work)
    dino.prepare()
    plain = PlainStep(work.size, work.prototypes, device(), work.precision == "bf16")
    inputs = dino.network_inputs()
    cases: dict[str, Callable[[], object]] = {
        "bare": dino.bare, "dino": dino.step, "plain": lambda: plain.step(inputs), "update": dino.update_alone,
    }  # fmt: skip
    for recipe in OTHERS:
        cases[recipe] = Subject(recipe, work).step
    times = take_turns(cases, rounds)
    base = peak_of("dino", work)
    found = [
        ratio(f"{label}: dino step / bare networks", times, "dino", "bare", 1.15),
        ratio(f"{label}: dino step / published style", times, "dino", "plain", 1 / 1.15),
        ratio(f"{label}: optimiser and average / dino step", times, "update", "dino", 0.05),
    ]
    for recipe, bar in OTHERS.items():
        found.append(ratio(f"{label}: {recipe} step / dino step", times, recipe, "dino", bar))
        found.append(Ratio(f"{label}: {recipe} memory / dino memory", (peak_of(recipe, work) / base,), bar))
    return found


def ratios(size: Size) -> list[Ratio]:
    """ViT-Ti and ViT-S; on a GPU in bfloat16 at batch 64."""
    torch.set_float32_matmul_precision("medium")
    if size == "tiny":
        return step_ratios(TINY, 1)
    gpu = device().type == "cuda"
    precision, batch = ("bf16", 64) if gpu else ("fp32", 4)
    return [
        r for name in ("tiny", "small") for r in step_ratios(Work(name, batch, precision), 15 if gpu else 5)
    ]


if __name__ == "__main__":
    print_ratios(ratios)
