"""AdamW or Muon with per-group decay and rates, schedules by step, and clipping that never asks the device for a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.models.blocks import Attention, SwiGlu
from glocal.models.depth_groups import depth_of
from glocal.schedules import Progress, Schedule, value_at
from glocal.training.config import OptimiserConfig
from glocal.training.muon import MuonWithAdamW


def build_optimiser(module: nn.Module, depth: int, config: OptimiserConfig) -> torch.optim.AdamW:
    """Group parameters by (rate factor, decayed or not, how many matrices, trunk or head) and make the optimiser.

    Biases and one-dimensional tensors are not decayed; the class token and the position table are (DINO's rule).
    `rate_factor`, `decayed` and `matrices` stay in each group for `set_schedules` and Muon. AdamW is fused: one pass over
    memory instead of about ten; 6 times faster than the default at ViT-S with 65,536 prototypes on two cores.
    """
    matrices = _matrices(module) if config.kind == "muon" else {}
    groups: dict[tuple[float, bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(".bias")
            trunk = name.startswith("student.backbone.")
            key = _rate_factor(name, depth, config), decayed, matrices.get(parameter, 0), trunk
            groups.setdefault(key, []).append(parameter)
    settings = [
        {"params": parameters, "rate_factor": factor, "decayed": decayed, "matrices": count, "trunk": trunk}
        for (factor, decayed, count, trunk), parameters in groups.items()
    ]
    kind = MuonWithAdamW if config.kind == "muon" else torch.optim.AdamW
    return kind(settings, lr=config.learning_rate, betas=config.betas, weight_decay=0.0, fused=True)


def _matrices(module: nn.Module) -> dict[Tensor, int]:
    """The parameters that Muon moves, and how many matrices each holds: weights of all linear layers.

    Patch embedding (a convolution), positions, tokens and prototypes are none: their rows are a table, not a map.
    """
    counts = {layer.weight: 1 for layer in module.modules() if isinstance(layer, nn.Linear)}
    counts |= {layer.qkv.weight: 3 for layer in module.modules() if isinstance(layer, Attention)}
    return counts | {layer.fc1.weight: 2 for layer in module.modules() if isinstance(layer, SwiGlu)}


def _rate_factor(name: str, depth: int, config: OptimiserConfig) -> float:
    """Layer-wise decay: heads and the final norm 1, the last block `layer_decay`, the embedding the smallest power."""
    within = name.removeprefix("student.")
    factor = config.patch_embed_factor if within.startswith("backbone.patch_embed.") else 1.0
    return factor * config.layer_decay ** (depth + 1 - depth_of(within, depth))


def peak_learning_rate(config: OptimiserConfig, batch_size: int) -> float:
    """The configured rate scaled to the global batch."""
    ratio = batch_size / config.reference_batch
    factor = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[config.scaling]
    return config.learning_rate * factor


def learning_rate_schedule(config: OptimiserConfig, batch_size: int) -> Schedule:
    """Linear warm-up from 0, then cosine to the final rate."""
    peak = peak_learning_rate(config, batch_size)
    end = min(peak, config.final_learning_rate)
    return Schedule(start=peak, end=end, warmup_epochs=config.warmup_epochs)


def set_schedules(
    optimiser: torch.optim.Optimizer,
    config: OptimiserConfig,
    rate: Schedule,
    progress: Progress,
    factor: float = 1.0,
    trunk: float = 1.0,
) -> tuple[float, float]:
    """Write this step's learning rate, times `factor`, and weight decay into every group; return them.

    The backbone's is also multiplied by `trunk` (see `heads_first.py`). Muon's rate is at every step the same share of its peak as AdamW's.
    """
    learning_rate, decay = rate.at(progress) * factor, value_at(config.weight_decay, progress)
    muon = config.muon_learning_rate * learning_rate / rate.start
    for group in optimiser.param_groups:
        share = trunk if group["trunk"] else 1.0
        group["lr"] = (muon if group["matrices"] else learning_rate) * group["rate_factor"] * share
        group["weight_decay"] = decay if group["decayed"] else 0.0
    return learning_rate, decay


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], config: OptimiserConfig, progress: Progress
) -> Float[Tensor, ""]:
    """Clip in place and return the global norm before clipping (a tensor: reading it waits for the device).

    By parameter (DINO): each tensor is scaled to at most `clip`; by a list of multi-tensor kernels, where the
    reference loops over tensors and copies every norm to the host.
    """
    gradients: list[Any] = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch._foreach_norm(gradients)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if config.clip is not None:
        largest = value_at(config.clip, progress)
        if config.clip_by == "parameter":
            factors = list((largest / (torch.stack(norms) + 1e-6)).clamp_(max=1.0).unbind())
            torch._foreach_mul_(gradients, factors)
        else:
            torch._foreach_mul_(gradients, (largest / (total + 1e-6)).clamp_(max=1.0))
    return total
