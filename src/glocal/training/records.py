"""What a run writes down while it goes: figures of the steps, probes, unreadable images; to files and to the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from glocal.distributed import all_reduce_sum, world_size
from glocal.extraction.embedding_statistics import effective_rank
from glocal.freed_memory import return_freed_memory
from glocal.training.bad_steps import BadSteps
from glocal.training.display import Display
from glocal.training.metrics_log import MetricsLog, append_text, read_records
from glocal.training.probes import label_purity, training_probes
from glocal.training.run import Run
from glocal.training.stopwatch import Stopwatch
from glocal.training.verdict import RunVerdict
from glocal.verdict.collapse import CollapseMonitor

_COUNT = "good steps"


class Records:
    """The figures of one run. Use as a context manager: it holds the terminal's live bar.

    Losses are means over the good steps since the last record, summed up on the device; everything else is as of the step.
    Only `write` waits for the device.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.watch, self.monitor = run, Stopwatch(), CollapseMonitor()
        self.display = Display(run.steps, run.done, enabled=run.first)
        self.log = MetricsLog(run.folder.metrics, enabled=run.first, recorders=run.config.training.recorders)
        self.log.cut_after(run.done)
        self.probes = training_probes(run.config, run.source) if run.first else []
        kept = [record for record in read_records(run.folder.metrics) if record["step"] <= run.done]
        self.losses = [(record["step"], record["loss"]) for record in kept if record.get("loss") is not None]
        looks = [record for record in kept if "loss" not in record]
        self.examined = {record["step"] for record in looks if "verdict.score" in record}
        self.probed = {record["step"] for record in looks if not {"verdict.score", "failed"} & set(record)}
        examined = run.first and run.config.verdict.enabled
        self.verdict = RunVerdict(run) if examined else None
        # Settled here: a run by the clock plans its steps anew before each, and a moving period would skip probes.
        self.probe_every = run.config.probe.every or max(1, run.steps // 10)
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

    def add(self, step: int, scalars: Mapping[str, Tensor], bad: Tensor) -> None:
        """Take in one step's losses, those of bad steps left out, without waiting for them."""
        losses = {n: v for n, v in scalars.items() if n in self.run.config.objectives or n == "loss"}
        for name, value in {**losses, _COUNT: torch.ones_like(bad)}.items():
            good = torch.where(bad > 0, torch.zeros_like(value), value)
            self.run.sums[name] = self.run.sums.get(name, torch.zeros_like(good)) + good
        self.watch.images += self.run.config.training.batch_size
        self.display.advance(step, self.run.steps)

    def write(self, step: int, scalars: dict[str, Tensor], values: Mapping[str, float]) -> BadSteps:
        """Write one record: this step's scalars, with mean losses, and `values` that are known without the device."""
        run, bad = self.run, self.run.guard.read()
        record: dict[str, Any] = {"step": step, "epoch": round(step / run.steps_per_epoch, 4)}
        record |= self._read(scalars)
        record |= label_purity(run.model, run.source) | dict(values)
        left = (time.perf_counter() - self.began) / (step - self.began_at) * (run.steps - step)
        record |= self.watch.read() | {"seconds_left": left, "unreadable": len(run.unreadable)}
        if bad.skipped:
            record["skipped_steps"] = bad.skipped
            self.warn(
                f"{bad.skipped} step(s) up to step {step} were left out: their loss or gradient was no number."
            )
        if math.isfinite(record["loss"]):
            self.losses.append((step, record["loss"]))
        self._log(record)
        self.display.record(record)
        return_freed_memory()
        for collapse in self.monitor.look(record, share=step / run.steps):
            self.warn(collapse.text)
        return bad

    def go_back(self, step: int) -> None:
        """The run was put back to this step: drop what was recorded behind it, and say so."""
        self.began, self.began_at = time.perf_counter(), step
        self.examined = {looked for looked in self.examined if looked <= step}
        self.probed = {looked for looked in self.probed if looked <= step}
        self.log.cut_after(step)
        self.losses = [entry for entry in self.losses if entry[0] <= step]
        if self.verdict is not None:
            self.verdict.go_back()
        self.warn(
            f"Too many bad steps in a row: back at step {step:,}, with the learning rate at "
            f"{self.run.rate_factor:g} of its schedule."
        )

    def look(self, step: int) -> None:
        """Examine the teacher without labels and run the probes, where they are due; once for every step.

        Called after the step's checkpoint is written. What fails is named, and the run goes on.
        """
        run = self.run
        if self.verdict is not None:
            self.verdict.steps = run.steps
        if self.verdict is not None and self.verdict.due(step) and step not in self.examined:
            self.guarded("The label-free examination", step, lambda: self._examine(step))
        if self.probes and (step % self.probe_every == 0 or step == run.steps) and step not in self.probed:
            self.guarded("A probe", step, lambda: self._probe(step))

    @property
    def finished(self) -> bool:
        """Whether the run has nothing more to gain, as `training.stop=auto` sees it."""
        return self.verdict is not None and self.verdict.finished

    def note_loading(self, pairs: list[tuple[str, str]], notes: Iterable[str]) -> None:
        """Say what the loader has to say; list every image that can't be decoded once, and say so at the first."""
        for note in notes:
            self.warn(note)
        run = self.run
        fresh = {key: reason for key, reason in pairs if key not in run.unreadable}
        if not fresh:
            return
        if not run.unreadable:
            self.warn(
                f"Some images can't be decoded; they are skipped and listed in {run.folder.unreadable.name}."
            )
        run.unreadable |= fresh
        append_text(run.folder.unreadable, "".join(f"{key}\t{reason}\n" for key, reason in fresh.items()))

    def warn(self, text: str) -> None:
        """Say something that asks for attention."""
        self.display.say(text, style="bold yellow")

    def _examine(self, step: int) -> None:
        assert self.verdict is not None
        figures = self.verdict.look(self.run.model.teacher.backbone, step)
        self._log({"step": step, "planned_steps": self.run.steps, **figures})
        told = ("score", "retrieval", "correspondence")
        shown = " · ".join(f"{name} {figures[f'verdict.{name}']:.4g}" for name in told)
        self.display.say(f"step {step} · without labels: {shown}")
        if self.finished:
            self.display.say(
                "The score has stood still for a quarter of the run: training.stop=auto ends it."
            )

    def _probe(self, step: int) -> None:
        backbone = self.run.model.teacher.backbone
        numbers = {name: value for probe in self.probes for name, value in probe(backbone).items()}
        self._log({"step": step, **numbers})
        shown = " · ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.display.say(f"step {step} · {shown}")

    def guarded(self, what: str, step: int, act: Callable[[], object]) -> None:
        """Anything may fail here, other people's code too; nothing here is worth a run."""
        try:
            act()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.warn(f"{what} failed at step {step}; the run goes on. {reason[:500]}")
            self._log({"step": step, "failed": f"{what}: {reason[:500]}"})

    def _log(self, record: dict[str, Any]) -> None:
        if not self.log.write(record):
            self.warn(
                f"{self.log.path} can't be written (is the disk full?); its records wait for the next try."
            )

    def _read(self, scalars: dict[str, Tensor]) -> dict[str, float]:
        """Bring a record's figures to the host, as means over the processes; start the next record's means."""
        cls = scalars.pop("teacher_cls", None)
        names = list(scalars)
        count = self.run.sums.pop(_COUNT)
        scalars = scalars | {name: total / count for name, total in self.run.sums.items()}
        values = torch.stack([scalars[n].to(scalars["loss"].device).float().reshape(()) for n in names])
        figures = dict(zip(names, (all_reduce_sum(values) / world_size()).tolist(), strict=True))
        self.run.sums = {}
        if cls is not None and bool(cls.isfinite().all()):
            figures["effective_rank"] = float(effective_rank(cls))
        return figures

    def _introduce(self) -> None:
        run, config = self.run, self.run.config
        total = run.cost.so_far(run.progress(run.steps), 0)["flops"]
        growing = "" if run.cost.growing is None else " at the end"
        parameters = sum(p.numel() for p in run.model.student.parameters())
        self.display.say(
            f"{config.recipe} on {run.source.name}: {len(run.source):,} images, {run.steps:,} steps of "
            f"{config.training.batch_size}, {parameters / 1e6:.1f} M parameters, "
            f"{run.fabric.world_size} process(es) on {run.fabric.device.type} → {run.folder.path}"
        )
        self.display.say(
            f"{run.cost.flops:.3g} FLOPs a step{growing}, {total:.3g} in all. Precision {run.precision.name}: "
            f"{run.precision.reason}."
        )
        for note in run.notes:
            self.display.say(note)
        if run.done:
            self.display.say(f"Continuing after step {run.done:,}.")
