"""What a run writes down while it goes: figures of the steps, probes, unreadable images; to files and to the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from glocal.extraction.embedding_statistics import effective_rank
from glocal.training.display import Display
from glocal.training.metrics_log import MetricsLog
from glocal.training.monitor import check_finite
from glocal.training.preparation import Run
from glocal.training.probes import label_purity, training_probes
from glocal.training.stopwatch import Stopwatch, return_freed_memory
from glocal.training.verdict import RunVerdict
from glocal.verdict.collapse import CollapseMonitor


class Records:
    """The figures of one run. Use as a context manager: it holds the terminal's live bar.

    Losses are means over the steps since the last record, summed up on the device; everything else is as of the step.
    Only `write` waits for the device.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.watch, self.monitor = run, Stopwatch(), CollapseMonitor()
        self.display = Display(run.steps, run.done, enabled=run.first)
        self.log = MetricsLog(run.folder.metrics, enabled=run.first)
        self.log.cut_after(run.done)
        self.probes = training_probes(run.config, run.source) if run.first else []
        examined = run.first and run.config.verdict.enabled
        self.verdict = RunVerdict(run.config, run.source, run.folder, run.steps) if examined else None
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.began, self.began_at = time.perf_counter(), run.done

    def __enter__(self) -> Records:
        self.display.__enter__()
        self._introduce()
        return self

    def __exit__(self, *error: object) -> None:
        self.display.__exit__(*error)
        self.log.close()

    def due(self, step: int) -> bool:
        """Whether a record is to be written after this step."""
        return step % self.run.config.training.log_every == 0 or step == self.run.steps

    def add(self, step: int, scalars: Mapping[str, Tensor]) -> None:
        """Take in one step's losses, without waiting for them."""
        for name in scalars:
            if name in self.run.config.objectives or name == "loss":
                self.sums[name] = self.sums.get(name, 0.0) + scalars[name]
        self.summed += 1
        self.watch.images += self.run.config.training.batch_size
        self.display.advance(step, self.run.steps)

    def write(self, step: int, scalars: dict[str, Tensor], values: Mapping[str, float]) -> None:
        """Write one record: this step's scalars, with mean losses, and `values` that are known without the device."""
        run = self.run
        record: dict[str, Any] = {"step": step, "epoch": round(step / run.steps_per_epoch, 4)}
        record |= self._read(scalars)
        check_finite(record["loss"], step)
        record |= label_purity(run.model, run.source) | dict(values)
        left = (time.perf_counter() - self.began) / (step - self.began_at) * (run.steps - step)
        record |= self.watch.read() | {"seconds_left": left, "unreadable": len(run.unreadable)}
        self.log.write(record)
        self.display.record(record)
        return_freed_memory()
        for collapse in self.monitor.look(record, warm=step > run.steps // 10):
            self.display.say(collapse.text, style="bold yellow")

    def check_losses(self, step: int) -> None:
        """Raise TrainingError when a loss since the last record was no number."""
        if "loss" in self.sums:
            check_finite(float(self.sums["loss"]), step)

    def probe(self, step: int) -> None:
        """Run the probes where they are due: at the start, at the end, and at their period."""
        run = self.run
        period = run.config.probe.every or max(1, run.steps // 10)
        if not self.probes or (step % period and step != run.steps):
            return
        backbone = run.model.teacher.backbone
        numbers = {name: value for probe in self.probes for name, value in probe(backbone).items()}
        self.log.write({"step": step, **numbers})
        shown = " · ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.display.say(f"step {step} · {shown}")

    def examine(self, step: int) -> None:
        """Look at the teacher without labels where that is due: at the start, at the end, and at its period."""
        if self.verdict is None:
            return
        self.verdict.steps = self.run.steps
        if not self.verdict.due(step):
            return
        figures = self.verdict.look(self.run.model.teacher.backbone, step)
        self.log.write({"step": step, **figures})
        told = ("score", "retrieval", "correspondence")
        shown = " · ".join(f"{name} {figures[f'verdict.{name}']:.4g}" for name in told)
        self.display.say(f"step {step} · without labels: {shown}")
        if self.finished:
            self.display.say(
                "The score has stood still for a quarter of the run: training.stop=auto ends it."
            )

    @property
    def finished(self) -> bool:
        """Whether the run has nothing more to gain, as `training.stop=auto` sees it."""
        return self.verdict is not None and self.verdict.finished

    def note_unreadable(self, pairs: list[tuple[str, str]]) -> None:
        """List every image that can't be decoded once, and say so at the first."""
        run = self.run
        fresh = {key: reason for key, reason in pairs if key not in run.unreadable}
        if not fresh:
            return
        if not run.unreadable:
            self.display.say(
                f"Some images can't be decoded; they are skipped and listed in {run.folder.unreadable.name}.",
                style="yellow",
            )
        run.unreadable |= fresh
        with run.folder.unreadable.open("a") as file:
            file.writelines(f"{key}\t{reason}\n" for key, reason in fresh.items())

    def _read(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """Bring a record's figures to the host, as means over the processes; start the next record's means."""
        cls = scalars.pop("teacher_cls", None)
        names = list(scalars)
        scalars = scalars | {name: total / self.summed for name, total in self.sums.items()}
        values = torch.stack([scalars[n].to(scalars["loss"].device).float().reshape(()) for n in names])
        if self.run.fabric.world_size > 1:
            values = self.run.fabric.all_reduce(values, reduce_op="mean")  # type: ignore[assignment]
        self.sums, self.summed = {}, 0
        figures = dict(zip(names, values.tolist(), strict=True))
        if cls is not None and math.isfinite(figures["loss"]):
            figures["effective_rank"] = float(effective_rank(cls))
        return figures

    def _introduce(self) -> None:
        run, config = self.run, self.run.config
        parameters = sum(p.numel() for p in run.model.student.parameters())
        self.display.say(
            f"{config.recipe} on {run.source.name}: {len(run.source):,} images, {run.steps:,} steps of "
            f"{config.training.batch_size}, {parameters / 1e6:.1f} M parameters, "
            f"{run.fabric.world_size} process(es) on {run.fabric.device.type} → {run.folder.path}"
        )
        self.display.say(
            f"{run.cost.flops:.3g} FLOPs a step, {run.cost.flops * run.steps:.3g} in all. Precision {run.precision.name}: "
            f"{run.precision.reason}."
        )
        if run.start is not None:
            self.display.say(run.start.summary())
        if run.done:
            self.display.say(f"Continuing after step {run.done:,}.")
