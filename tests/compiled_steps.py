"""Twenty compiled steps of a recipe beside three eager ones, as a program: the compiler would trace the tests' check of
annotations, too.

    PYTHONPATH=tests python tests/compiled_steps.py glocal
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from glocal.conformance.small_runs import make_views
from glocal.recipes import configure
from glocal.schedules import Progress
from glocal.training.config import RunConfig
from glocal.training.gradients import backward
from glocal.training.network import SelfDistillation, StepInput, build_distillation

SMALL = [
    "backbone.size=micro", "backbone.embed_dim=32", "backbone.depth=2", "backbone.num_heads=2", "backbone.patch_size=8",
    "backbone.image_size=32", "backbone.drop_path=0.3", "views.global.size=32", "training.batch_size=4",
    "speed.precision=fp32",
]  # fmt: skip
LOCAL = ["views.local.size=16", "views.local.count=3"]


def small(recipe: str) -> RunConfig:
    overrides = [*SMALL, *(LOCAL if recipe != "glocal" else [])]
    prototypes = [f"objectives.{name}.head.prototypes=24" for name in ("image", "patch", "masked")]
    config = configure(recipe, data="DATA", out="RUN", overrides=overrides)
    names = [p for p in prototypes if p.split(".")[1] in config.objectives and recipe != "glocal"]
    return configure(recipe, data="DATA", out="RUN", overrides=[*overrides, *names])


def counting(graphs: list[int]) -> Callable[..., Any]:
    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(list(module.graph.nodes)))
        return module.forward

    return backend


def losses(model: SelfDistillation, config: RunConfig, steps: int) -> list[float]:
    values = []
    for step in range(steps):
        torch.manual_seed(step)
        views = make_views(4, seed=step, groups=config.views)
        scalars = backward(model, StepInput(views, Progress(step, steps, 10), watch=False))
        model.finish_step()
        values.append(float(scalars["loss"]))
    return values


def main(recipe: str) -> dict[str, Any]:
    """Losses of both, how many graphs were compiled and what broke them."""
    torch._dynamo.utils.counters.clear()
    config, graphs = small(recipe), list[int]()
    eager, compiled = build_distillation(config), build_distillation(config)
    for network in (compiled.student, compiled.teacher):
        network.compile_passes(backend=counting(graphs))
    expected, seen = losses(eager, config, 3), losses(compiled, config, 20)
    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    return {"eager": expected, "compiled": seen, "graphs": len(graphs), "breaks": breaks}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
