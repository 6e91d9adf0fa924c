"""Every setting of every `*-reference` recipe, and of `dino` at ImageNet's scale, against the published one, line by line.

The published values are those of the papers and of the authors' code. `OURS` holds settings that no published code has, at
the value that leaves the method as it was. The colours of the views stand in test_reference_views. A setting that is added
to a run has to be given a line here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from glocal.recipes import RECIPES, configure

NOT_THE_METHOD = ("recipe", "data", "out", "seed", "speed", "probe", "verdict", "training.log_every", "training.recorders",
                  "training.checkpoint_every", "training.keep_every")  # fmt: skip

CROP = {"aspect": [3 / 4, 4 / 3], "flip": 0.5, "keep_patches": 1.0, "keep_patches_of": "student",
        "strong_probability": 0.5, "strong_coin": "view"}  # fmt: skip
CONSTANT: dict[str, Any] = {"over_epochs": None, "every": "step", "warmup_epochs": 0.0, "warmup_from": 0.0}
HEAD = {"hidden": 2048, "layers": 3, "bottleneck": 256, "prototypes": 65536, "norm_last_layer": True, "init": "trunc_normal",
        "frozen_epochs": 1.0}  # fmt: skip
CENTRE = {"method": "centre", "momentum": 0.9, "iterations": 3}
"""Sinkhorn's iterations are unused by a moving centre."""


def rising(start: float, end: float) -> dict[str, Any]:
    """A cosine over the whole run, moved every iteration."""
    return {"start": start, "end": end, "shape": "cosine", **CONSTANT}


def warm(epochs: int) -> dict[str, Any]:
    """The teacher's temperature: linear by epochs, then constant."""
    return {
        "start": 0.04,
        "end": 0.07,
        "shape": "linear",
        **CONSTANT,
        "over_epochs": float(epochs),
        "every": "epoch",
    }


def image_term(temperature: object, **head: object) -> dict[str, Any]:
    return {
        "kind": "image_level", "weight": 1.0, "head_of": None, "head": HEAD | head, "student_temperature": 0.1,
        "teacher_temperature": temperature, "centring": CENTRE, "pair_weights": "flat", "skip_same_number": False,
    }  # fmt: skip


OURS: dict[str, Any] = {
    "init": None, "balance": None,
    "adapt": {"method": "full", "blocks": 2, "rank": 8, "alpha": 16.0, "targets": ["qkv", "proj", "fc1", "fc2"]},
    "backbone": {
        "timm": None, "timm_arguments": {}, "own": None, "own_arguments": {}, "embed_dim": None, "depth": None, "num_heads": None, "channels": 3, "final_norm": True, "registers": 0,
        "layer_scale": None, "attention_init": "drawn", "patch_embed_init": "drawn", "ffn": "mlp", "ffn_hidden": None,
        "qkv_bias": True, "position": "table", "rope_base": 100.0, "norm_eps": 1e-6,
    },
    "optimiser": {"kind": "adamw", "muon_learning_rate": 0.02, "betas": [0.9, 0.999], "layer_decay": 1.0},
    "teacher": {"frozen": None, "frozen_size": None},
    "training": {
        "steps": None, "images": None, "flops": None, "minutes": None, "stop": "never", "blocks": None, "accumulate": 1,
        "heads_first": False,
    },
}  # fmt: skip

DINO: dict[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "crops": "image",
    "views": {
        "global": {"count": 2, "size": 224, "area": [0.4, 1.0], "seen_by": "both", **CROP},
        "local": {"count": 8, "size": 96, "area": [0.05, 0.4], "seen_by": "student", **CROP},
    },
    "backbone": {
        "size": "small", "patch_size": 16, "image_size": 224, "pooling": "class_token", "drop_path": 0.1, "init": "auto",
        "position_antialias": False, "position_offset": 0.1,
    },
    # The short run of 100 epochs with the batch and the temperatures of the longer ones.
    "objectives": {"image": image_term(warm(30))},
    "optimiser": {
        "learning_rate": 5e-4, "scaling": "linear", "reference_batch": 256, "final_learning_rate": 1e-6, "warmup_epochs": 10.0,
        "weight_decay": rising(0.04, 0.4), "patch_embed_factor": 1.0, "clip": 3.0, "clip_by": "parameter",
    },
    "teacher": {"momentum": rising(0.996, 1.0)},
    "training": {"batch_size": 1024, "epochs": 100.0},
}  # fmt: skip


def local_global(size: str, patch: int, prototypes: int, batch: int, crops: str) -> dict[str, Any]:
    """One head over all tokens, a centre a position, a plain mean; temperature without warm-up."""
    return {
        "crops": crops,
        "backbone": {"size": size, "patch_size": patch, "init": "trunc_normal"},
        "objectives": {
            "all": {
                "kind": "local_global_reference", "weight": 1.0, "head_of": None, "image_share": None,
                "head": HEAD | {"prototypes": prototypes}, "student_temperature": 0.1, "teacher_temperature": 0.04,
                "centre_momentum": 0.9,
            }
        },
        "training": {"batch_size": batch},
    }  # fmt: skip


def selfpatch(epochs: int) -> dict[str, Any]:
    return {
        "views": {"global": {"area": [0.25, 1.0]}, "local": {"area": [0.05, 0.25]}},
        "backbone": {"pooling": "class_attention"},
        "objectives": {
            "image": image_term(0.04),
            "neighbours": {
                "kind": "self_patch", "weight": 0.1, "head_of": None, "head": HEAD | {"prototypes": 4096},
                "student_temperature": 0.1, "teacher_temperature": 0.04, "centring": CENTRE,
                "aggregation": "class_attention", "k": 4, "window": 3, "border": "torus", "include_self": False,
                "match_on": "raw", "views": "all", "average": "view", "share": 1.0,
            },
        },
        "training": {"epochs": float(epochs)},
    }  # fmt: skip


def mugs(
    size: str, epochs: int, batch: int, rate: float, last_rate: float, decay: tuple[float, float], drop: float,
    temperature: object, frozen: int, norm_last_layer: bool = False, clip: object = 3.0,
) -> dict[str, Any]:  # fmt: skip
    """A column of the published table of runs."""
    contrast = {
        "weight": 1 / 3, "head_of": None, "temperature": 0.2, "pair_weights": "balanced", "skip_same_number": True,
        "queue": 65536, "exclude_own": False, "storage": "fp32", "fill_random": True,
        "head": {"hidden": 2048, "layers": 3, "out_dim": 256, "init": "trunc_normal", "predictor_hidden": 4096},
    }  # fmt: skip
    group = image_term(temperature, norm_last_layer=norm_last_layer, frozen_epochs=float(frozen))
    large = {"count": 2, "size": 224, "area": [0.25, 1.0], **CROP}
    return {
        "views": {
            "teacher": large | {"seen_by": "teacher"},
            "global": large | {"seen_by": "student", "strong_coin": "image"},
            "local": {"count": 10, "area": [0.05, 0.25]},
        },
        "backbone": {"size": size, "drop_path": drop},
        "objectives": {
            "instance": contrast | {"kind": "instance"},
            "local_group": contrast | {
                "kind": "local_group", "neighbours": 8, "memory": 65536, "query": {"norm": "before", "tokens": "all"},
                "row": {"norm": "after", "tokens": "patches"}, "student_rows": "weak", "double_advance": True,
            },
            "group": group | {"weight": 1 / 3, "pair_weights": "balanced", "skip_same_number": True},
        },
        "optimiser": {
            "learning_rate": rate, "final_learning_rate": last_rate, "weight_decay": rising(*decay),
            "patch_embed_factor": 0.2, "clip": clip,
        },
        "training": {"batch_size": batch, "epochs": float(epochs)},
    }  # fmt: skip


LATE_CLIP = {"start": 3.0, "end": 0.3, "shape": "step", **CONSTANT, "over_epochs": 101.0}
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("dino", "imagenet"): {},
    ("local-global-reference", "cifar10"): local_global("tiny", 16, 1000, 120, "batch"),
    ("local-global-reference", "imagenet100"): local_global("base", 8, 10000, 24, "batch"),
    ("local-global-reference", "imagenet1k"): local_global("tiny", 16, 65536, 24, "batch"),
    ("pw-self-reference", "cifar10"): local_global("tiny", 16, 1000, 120, "image"),
    ("pw-self-reference", "imagenet100"): local_global("base", 8, 10000, 24, "image"),
    ("pw-self-reference", "imagenet1k"): local_global("tiny", 16, 65536, 24, "image"),
    ("selfpatch-reference", "s200"): selfpatch(200),
    ("selfpatch-reference", "s300"): selfpatch(300),
    ("mugs-reference", "s100"): mugs("small", 100, 512, 8e-4, 1e-6, (0.04, 0.2), 0.1, 0.04, 1),
    ("mugs-reference", "s300"): mugs("small", 300, 1024, 8e-4, 1e-6, (0.04, 0.1), 0.1, warm(30), 1),
    ("mugs-reference", "s800"): mugs("small", 800, 1024, 8e-4, 1e-6, (0.04, 0.1), 0.1, warm(30), 1),
    ("mugs-reference", "b400"): mugs("base", 400, 1008, 8e-4, 2e-6, (0.04, 0.1), 0.1, warm(50), 3),
    ("mugs-reference", "l250"): mugs(
        "large", 250, 640, 1.5e-3, 1.5e-4, (0.025, 0.08), 0.3, warm(50), 3, True, LATE_CLIP
    ),
}


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings into mappings; anything else replaces. A recipe's objectives are its own."""
    both = below | above
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict) and key != "objectives":
            both[key] = laid_over(below[key], above[key])
    return both


def lines(plain: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every setting."""
    if isinstance(plain, dict) and plain:
        for name, value in plain.items():
            yield from lines(value, f"{key}.{name}" if key else str(name))
    elif not key.startswith(NOT_THE_METHOD) and not key.endswith((".photometric", ".strong")):
        yield key, plain


@pytest.mark.parametrize(("recipe", "preset"), PUBLISHED, ids=str)
def test_every_setting_is_the_published_one(recipe: str, preset: str) -> None:
    config = configure(recipe, data="DATA", out="RUN", preset=preset)
    published = dict(lines(laid_over(laid_over(OURS, DINO), PUBLISHED[recipe, preset])))
    settings = dict(lines(config.model_dump(mode="json")))
    told = [
        f"{key}: published {published.get(key, 'nothing')}, here {settings.get(key, 'nothing')}"
        for key in sorted(published.keys() | settings.keys())
        if published.get(key, "nothing") != settings.get(key, "nothing")
    ]
    assert not told, "\n".join(told)


def test_every_preset_of_every_reference_recipe_is_listed() -> None:
    references = {(name, p) for name in RECIPES if name.endswith("-reference") for p in RECIPES[name].presets}
    assert references | {("dino", "imagenet")} == set(PUBLISHED)
