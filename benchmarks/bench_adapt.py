"""What `adapt=` saves on a ViT-B-sized model: time and peak memory of a training step against `adapt=full`.

    python -m benchmarks.bench_adapt [--batch 2] [--repeats 4]

Each peak is of a process of its own. Steps of all modes take turns in one process, so that a machine that slows down
slows all.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor

from glocal.models.adaptation import AdaptConfig, adapt
from glocal.models.backbone import BackboneConfig
from glocal.models.teacher import MovingAverage, freeze
from glocal.models.vit import VisionTransformer
from glocal.training.stopwatch import peak_memory_gib

MODES = ["full", "last:2", "norms", "lora"]


class Subject:
    """Student, teacher, AdamW and average over one batch of 224-pixel views; the loss asks for image and patches."""

    def __init__(self, mode: str, batch: int) -> None:
        torch.manual_seed(0)
        config = BackboneConfig(size="base", patch_size=16)
        self.student, self.teacher = VisionTransformer(config), freeze(VisionTransformer(config))
        self.teacher.load_state_dict(self.student.state_dict())
        adapt(self.student, self.teacher, AdaptConfig.model_validate(mode))
        moved = [p for p in self.student.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(moved, lr=1e-5, fused=True)
        self.average = MovingAverage(self.teacher, self.student)
        self.pixels = torch.randn(batch, 3, 224, 224)

    def step(self) -> None:
        """Teacher, student, backward, update, average."""
        with torch.no_grad():
            target = self.teacher(self.pixels)
        features = self.student(self.pixels)
        loss: Tensor = (features.cls - target.cls.flip(0)).square().mean()
        (loss + (features.patches - target.patches.flip(0)).square().mean()).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update(0.99)


def peak(mode: str, batch: int) -> float:
    """Peak memory in GiB of a process that takes three steps, less that of one that only imports."""
    command = [sys.executable, "-m", "benchmarks.bench_adapt", "--batch", str(batch), "--peak", mode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("medium")
    if arguments.peak is not None:
        before = peak_memory_gib()
        subject = Subject(arguments.peak, arguments.batch)
        for _ in range(3):
            subject.step()
        print(peak_memory_gib() - before)
        return
    peaks = {mode: peak(mode, arguments.batch) for mode in MODES}
    subjects = {mode: Subject(mode, arguments.batch) for mode in MODES}
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for repeat in range(arguments.repeats + 1):
        for mode, subject in subjects.items():
            start = time.process_time()
            subject.step()
            if repeat:
                times[mode].append(time.process_time() - start)
    full = statistics.median(times["full"])
    print(f"ViT-B/16, {arguments.batch} views of 224 pixels, {torch.get_num_threads()} thread(s)")
    for mode in MODES:
        ratio, memory = statistics.median(times[mode]) / full, peaks[mode] / peaks["full"]
        print(f"{mode:8} time {ratio:.2f} of full, peak memory {memory:.2f} of full ({peaks[mode]:.2f} GiB)")


if __name__ == "__main__":
    main()
