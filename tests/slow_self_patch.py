"""SelfPatch's loss, one patch after another in NumPy, and the networks that it is compared on."""

from __future__ import annotations

import math

import numpy as np
import torch
from conftest import GROUPS, small_config
from narrowing import of_kind
from torch import nn

from glocal.matching.similar_patches import Border
from glocal.models.aggregator import Aggregator, ClassAttentionBlock
from glocal.models.backbone import BackboneConfig
from glocal.models.heads import PrototypeHead
from glocal.objectives import SelfPatchConfig
from glocal.objectives.base import ObjectiveConfig
from glocal.objectives.over_prototypes.self_patch import SelfPatch
from glocal.schedules import Progress
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

PROGRESS = Progress(step=50, total_steps=100, steps_per_epoch=10)
BACKBONE = BackboneConfig(size="micro", embed_dim=32, depth=2, num_heads=2, patch_size=4, image_size=32)
POOLED = BACKBONE.model_copy(update={"pooling": "class_attention"})
CENTRE = torch.linspace(-0.2, 0.2, 24)


def build(
    term: SelfPatchConfig,
    groups: dict[str, ViewGroup] = GROUPS,
    backbone: BackboneConfig = BACKBONE,
    **others: ObjectiveConfig,
) -> SelfDistillation:
    """Both networks with weights that make attention and features far from uniform, and a centre that is not zero."""
    model = build_distillation(
        small_config(views=groups, backbone=backbone, objectives={"term": term, **others})
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in (model.student, model.teacher):
            for parameter in network.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.objectives["term"].get_buffer("centre.centre").copy_(CENTRE)
    return model


def run(
    model: SelfDistillation, views: Views, watch: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    outcome: tuple[torch.Tensor, dict[str, torch.Tensor]] = model(StepInput(views, PROGRESS, watch))
    return outcome


# ------------------------------------------------------------------------------------------------- the slow version


def array(x: nn.Parameter | torch.Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return np.asarray(x @ array(layer.weight).T + array(layer.bias))


def norm(layer: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return np.asarray(
        x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.eps) * array(layer.weight) + array(layer.bias)
    )


gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def slow_positives(
    tokens: np.ndarray, grid: tuple[int, int], k: int, border: Border, include_self: bool
) -> list[list[tuple[float, int]]]:
    """(similarity, patch) of every patch's positives in a 3x3 window."""
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    chosen = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            found = []
            for r in range(row - 1, row + 2):
                for c in range(column - 1, column + 2):
                    if (r, c) == (row, column) and not include_self:
                        continue
                    if border == "clip" and not (0 <= r < grid[0] and 0 <= c < grid[1]):
                        continue
                    other = r % grid[0] * grid[1] + c % grid[1]
                    found.append((float(unit[row * grid[1] + column] @ unit[other]), other))
            chosen.append(sorted(found, reverse=True)[:k])
    return chosen


def slow_aggregate(aggregator: Aggregator, context: np.ndarray) -> np.ndarray:
    """One learnt query over one context (k, dim), everything recomputed."""
    query = array(aggregator.query)[0]
    for module in aggregator.blocks:
        block = of_kind(ClassAttentionBlock, module)
        z = norm(block.norm1, np.concatenate([query, context]))
        q, k, v = linear(block.attn.q, z[:1]), linear(block.attn.k, z), linear(block.attn.v, z)
        size = q.shape[1] // block.attn.num_heads
        heads = []
        for h in range(block.attn.num_heads):
            part = slice(h * size, (h + 1) * size)
            heads.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(size)) @ v[:, part])
        query = query + linear(block.attn.proj, np.concatenate(heads, axis=1))
        query = query + linear(block.mlp.fc2, gelu(linear(block.mlp.fc1, norm(block.norm2, query))))
    return np.asarray(norm(aggregator.norm, query)[0])


def slow_logits(head: PrototypeHead, x: np.ndarray) -> np.ndarray:
    first, _, second = head.mlp
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    x = linear(second, gelu(linear(first, x)))
    w = array(head.directions)
    return np.asarray(x / np.linalg.norm(x) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T)


def slow_patch_loss(
    config: SelfPatchConfig,
    aggregator: Aggregator | None,
    heads: tuple[PrototypeHead, PrototypeHead],
    seen: list[np.ndarray],
    grid: tuple[int, int],
) -> float:
    """Mean over the patches of one view; `seen` holds its raw and normed teacher patches and the student's patches."""
    raw, normed, ours = seen
    positives = slow_positives(
        raw if config.match_on == "raw" else normed, grid, config.k, config.border, config.include_self
    )
    losses = []
    for patch, found in enumerate(positives):
        index = [other for _, other in found]
        if aggregator is None:
            weight = np.maximum([similarity for similarity, _ in found], 1e-6)
            target = (weight / weight.sum()) @ normed[index]
        else:
            target = slow_aggregate(aggregator, raw[index])
        p = softmax((slow_logits(heads[1], target) - CENTRE.double().numpy()) / 0.04)
        losses.append(-(p * np.log(softmax(slow_logits(heads[0], ours[patch]) / 0.1))).sum())
    return float(np.mean(losses))


def slow_loss(
    model: SelfDistillation, views: Views, groups: dict[str, ViewGroup], aggregator: Aggregator | None
) -> float:
    objective = of_kind(SelfPatch, model.objectives["term"])
    config = objective.config
    heads = (
        of_kind(PrototypeHead, model.student.heads["term"]),
        of_kind(PrototypeHead, model.teacher.heads["term"]),
    )
    grids = {name: (g.height_width[0] // 4, g.height_width[1] // 4) for name, g in groups.items()}
    total, weights = 0.0, 0.0
    for name in objective.groups:
        pixels = views.groups[name].pixels
        patches = grids[name][0] * grids[name][1]
        for image in range(len(views)):
            for view in range(pixels.shape[1]):
                with torch.no_grad():
                    theirs, ours = (
                        n.backbone(pixels[image, view][None]) for n in (model.teacher, model.student)
                    )
                seen = [
                    array(theirs.tokens_before_norm)[0, -patches:],
                    array(theirs.patches)[0],
                    array(ours.patches)[0],
                ]
                weight = patches if config.average == "token" else 1.0
                total += weight * slow_patch_loss(config, aggregator, heads, seen, grids[name])
                weights += weight
    return float(total / weights)
