"""What `adapt=` saves on a ViT-B-sized model: time and peak memory of a training step against `adapt=full`.

    python -m benchmarks.bench_adapt [tiny]

Each peak is of a process of its own. Steps of all modes take turns in one process, so that a machine that slows down
slows all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.ratios import Ratio, Size, device, in_a_process, print_ratios, ratio, take_turns
from glocal.models.adaptation import AdaptConfig, adapt
from glocal.models.backbone import BackboneConfig
from glocal.models.teacher import MovingAverage, freeze
from glocal.models.vit import VisionTransformer

BARS = {"lora": (0.80, 0.65), "norms": (None, None), "last:2": (None, None)}
"""Time and memory of `adapt=full`, at most."""


class Subject:
    """Student, teacher, AdamW and average over one batch of 224-pixel views; the loss asks for image and patches."""

    def __init__(self, mode: str, batch: int, size: str = "base") -> None:
        torch.manual_seed(0)
        config = BackboneConfig.model_validate({"size": size, "patch_size": 16})
        self.student = VisionTransformer(config).to(device())
        self.teacher = freeze(VisionTransformer(config).to(device()))
        self.teacher.load_state_dict(self.student.state_dict())
        adapt(self.student, self.teacher, AdaptConfig.model_validate(mode))
        moved = [p for p in self.student.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(moved, lr=1e-5, fused=True)
        self.average = MovingAverage(self.teacher, self.student)
        self.pixels = torch.randn(batch, 3, 224, 224, device=device())

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


def peak(mode: str, batch: int, size: str) -> float:
    """Peak memory in GiB of a process that takes three steps, less that of one that only imports."""
    return in_a_process(
        "from benchmarks.bench_adapt import Subject; from glocal.training.stopwatch import peak_memory_gib;"
        f"before = peak_memory_gib(); s = Subject({mode!r}, {batch}, {size!r});"
        "[s.step() for _ in range(3)]; print(peak_memory_gib() - before)"
    )


def ratios(size: Size) -> list[Ratio]:
    """Views of 224 pixels, two at a time."""
    torch.set_float32_matmul_precision("medium")
    backbone, batch, rounds = ("base", 2, 4) if size == "full" else ("micro", 1, 1)
    subjects = {mode: Subject(mode, batch, backbone) for mode in ("full", *BARS)}
    times = take_turns({mode: subject.step for mode, subject in subjects.items()}, rounds)
    whole = peak("full", batch, backbone)
    found = []
    for mode, (time_bar, memory_bar) in BARS.items():
        found.append(ratio(f"ViT-B adapt={mode} step / full", times, mode, "full", time_bar))
        share = peak(mode, batch, backbone) / whole
        found.append(Ratio(f"ViT-B adapt={mode} memory / full", (share,), memory_bar))
    return found


if __name__ == "__main__":
    print_ratios(ratios)
