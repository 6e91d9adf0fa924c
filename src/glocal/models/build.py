"""From a configuration to a backbone with fresh weights."""

from __future__ import annotations

from collections.abc import Callable

from glocal.errors import ConfigError
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.vit import VisionTransformer
from glocal.own_code import load_class


def build_backbone(config: BackboneConfig) -> Backbone:
    """Ours, the timm architecture that the configuration names, or a person's own.

    Raises:
        ModelError: when it names one of timm's and timm is not installed.
        ConfigError: when it names code that is not there, or no backbone.

    >>> build_backbone(BackboneConfig(size="micro", patch_size=8, image_size=32)).embed_dim
    64
    """
    if config.own is not None:
        return _build_own(config, config.own)
    if config.timm is None:
        return VisionTransformer(config)
    from glocal.models.timm_backbone import rebuild_timm

    return rebuild_timm(config)


def _build_own(config: BackboneConfig, words: str) -> Backbone:
    needs = ("forward", "intermediate")
    kind: Callable[[BackboneConfig], Backbone] = load_class(words, Backbone, "backbone.own", needs)  # type: ignore[type-abstract]
    backbone = kind(config)
    missing = [
        name
        for name in ("config", "embed_dim", "patch_size", "blocks", "norm", "depth")
        if not hasattr(backbone, name)
    ]
    if missing:
        raise ConfigError(f"backbone.own: {words} doesn't set {', '.join(missing)} in its constructor.")
    return backbone
