"""Weights that enter a run and leave it: what `init=` decides of its configuration, and the backbone it exports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from glocal.errors import ConfigError, ModelError
from glocal.models.adapter_files import save_adapter
from glocal.models.backbone import Backbone
from glocal.models.encoder import Encoder, LoadReport
from glocal.models.export import export_backbone
from glocal.models.licences import in_words, presumed_licence
from glocal.models.loading import load, load_into
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation
from glocal.views.groups import ViewGroup

# What weights leave open: how training treats them, and the side that their position table is resized to.
_OPEN = ("drop_path", "init", "attention_init", "patch_embed_init", "image_size")


def adopt_weights(config: RunConfig, spec: str) -> RunConfig:
    """The configuration with its backbone and its pixels' statistics taken from the weights at `spec`.

    Of the recipe's backbone its stochastic depth stays. A recipe that continues (`training.heads_first`) shows views at the
    side that the weights are evaluated at; other recipes' views are not touched: sizes that the weights' patches do not
    divide are refused when the configuration is validated.

    Raises:
        ModelError: when the weights can't be loaded or are of a model that can't be trained.
    """
    encoder = load(spec)
    backbone = _trainable(encoder).config.model_copy(update={"drop_path": config.backbone.drop_path})
    decided = {"init": spec, "backbone": backbone, "mean": encoder.mean, "std": encoder.std}
    if config.training.heads_first:
        decided["views"] = views_at(config.views, encoder.image_size, encoder.patch_size)
    return config.model_copy(update=decided)


def views_at(views: Mapping[str, ViewGroup], side: int, patch_size: int) -> dict[str, ViewGroup]:
    """The groups with the largest view's longer side at `side` pixels, the others in proportion, in whole patches."""
    largest = max(max(group.height_width) for group in views.values())

    def whole(pixels: int) -> int:
        return max(1, round(pixels * side / largest / patch_size)) * patch_size

    sizes = {
        name: (whole(group.height_width[0]), whole(group.height_width[1])) for name, group in views.items()
    }
    return {name: group.model_copy(update={"size": sizes[name]}) for name, group in views.items()}


def refuse_contradictions(config: RunConfig, adopted: RunConfig) -> None:
    """Compare a configuration after its overrides with what the weights decided.

    Raises:
        ConfigError: naming each setting that the weights contradict.
    """
    pairs = [("mean", config.mean, adopted.mean), ("std", config.std, adopted.std)]
    pairs += [
        (f"backbone.{name}", getattr(config.backbone, name), getattr(adopted.backbone, name))
        for name in type(config.backbone).model_fields
        if name not in _OPEN
    ]
    wrong = [f"{name}={given} where they have {theirs}" for name, given, theirs in pairs if given != theirs]
    if wrong:
        raise ConfigError(
            f"init={config.init} decides what the model is, and this contradicts its weights: {'; '.join(wrong)}. Leave "
            "these settings out, or train without init=."
        )


def load_start(model: SelfDistillation, config: RunConfig) -> LoadReport:
    """Start both backbones from `config.init`; a position table of another size is resampled.

    Raises:
        ConfigError: when the configuration contradicts the weights.
        ModelError: when the weights can't be loaded; nothing is loaded in part.
    """
    assert config.init is not None
    encoder = load(config.init)
    decided = {"backbone": _trainable(encoder).config, "mean": encoder.mean, "std": encoder.std}
    refuse_contradictions(config, config.model_copy(update=decided))
    load_into(model.student.backbone, encoder)
    model.teacher.backbone.load_state_dict(model.student.backbone.state_dict())
    report = encoder.report or LoadReport("timm", tuple(encoder.backbone.state_dict()))
    stated = encoder.provenance.get("licence")
    notes = [report.note, _statistics_note(encoder), in_words(stated, report.layout)]
    told = "; ".join(note for note in notes if note)
    return replace(report, note=told, licence=stated or presumed_licence(report.layout))


def export_teacher(
    folder: Path, backbone: Backbone, config: RunConfig, step: int, origin: Mapping[str, Any]
) -> None:
    """Write the teacher's backbone so that `glocal.load` and timm read it, and a low-rank adapter also by itself. `origin` is
    what the run folder keeps of licence and data (`RunFolder.read_origin`).
    """
    export_backbone(
        backbone, folder, mean=config.mean, std=config.std, image_size=view_side(config),
        extra=_provenance(config, step) | dict(origin),
    )  # fmt: skip
    if config.adapt.method == "lora" and config.init is not None:
        start = Path(config.init).expanduser()
        save_adapter(
            folder / "adapter.safetensors", backbone, str(start.resolve()) if start.exists() else config.init
        )


def _provenance(config: RunConfig, step: int) -> dict[str, Any]:
    """Where these weights come from, for whoever gets them: what they were trained on, by which terms, from what."""
    return {
        "recipe": config.recipe,
        "step": step,
        "data": config.data,
        "terms": {name: getattr(term, "kind", "") for name, term in config.active_objectives().items()},
        "init": config.init,
        "adapt": config.adapt.method,
        "frozen_teacher": config.teacher.frozen,
    }


def as_encoder(config: RunConfig, backbone: Backbone) -> Encoder:
    """A backbone of this run as evaluation takes it."""
    return Encoder(
        name=config.out,
        backbone=backbone,
        embed_dim=backbone.embed_dim,
        patch_size=config.backbone.patch_size,
        image_size=view_side(config),
        mean=config.mean,
        std=config.std,
        report=None,
    )


def view_side(config: RunConfig) -> int:
    """Pixels at which a run's backbone is evaluated: its largest views'."""
    return max(max(group.height_width) for group in config.views.values())


def _trainable(encoder: Encoder) -> Backbone:
    backbone = encoder.backbone
    if not isinstance(backbone, Backbone):
        kind = type(backbone).__name__
        raise ModelError(
            f"Training can't start from '{encoder.name}': {kind} is neither a Vision Transformer of glocal's nor timm's."
        )
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules()):
        raise ModelError(
            f"Training can't start from '{encoder.name}': it keeps running statistics (BatchNorm), which a moving-average "
            "teacher doesn't follow. Choose a model with LayerNorm or GroupNorm, such as ConvNeXt, Swin or a ViT."
        )
    if backbone.config.channels != 3:
        raise ModelError(
            f"Training can't start from '{encoder.name}': it takes {backbone.config.channels} channels, and images are "
            "read as three (RGB). Take weights of three channels."
        )
    return backbone


def _statistics_note(encoder: Encoder) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (encoder.mean, encoder.std))
    return f"pixels of mean ({mean}) and deviation ({std})"
