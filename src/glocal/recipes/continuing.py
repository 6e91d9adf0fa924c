"""Continue: any loadable ViT, trained further on one's own images, with the untouched model as line zero.

Released weights come without heads, so both terms either need none or grow new ones on the untouched trunk first
(`training.heads_first`). Low rates that fall with depth and a slow teacher keep what the weights know.

    glocal pretrain continue init=dinov2_vits14.pth data=photos/ out=runs/mine
    glocal pretrain continue init=runs/first data=photos/ out=runs/second adapt=lora

What each part is worth, and when to continue rather than start from nothing: docs/continue.md.
"""

from __future__ import annotations

from glocal.objectives.by_relation.relations import RelationsConfig
from glocal.recipes.contrast import glocal
from glocal.recipes.scales import Scale
from glocal.training.config import OptimiserConfig, RunConfig, TeacherConfig


def continue_(scale: Scale, data: str, out: str) -> RunConfig:
    """Further training from `init=MODEL`: the flagship's contrast by new heads, and relations between matched patches,
    which need no head; views at the size that the weights were trained at.

    Never run here at published scale.
    """
    config = glocal(scale, data, out)
    return config.model_copy(
        update={
            "recipe": "continue",
            "objectives": config.objectives | {"relations": RelationsConfig()},
            "optimiser": OptimiserConfig(
                kind="adamw",
                learning_rate=2e-4,
                scaling="none",
                warmup_epochs=None,
                weight_decay=0.04,
                layer_decay=0.7,
            ),
            "teacher": TeacherConfig(momentum=0.99),
            "training": config.training.model_copy(update={"epochs": 20.0, "heads_first": True}),
        }
    )
