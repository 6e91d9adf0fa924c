"""From a configuration to a backbone with fresh weights."""

from __future__ import annotations

from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.vit import VisionTransformer


def build_backbone(config: BackboneConfig) -> Backbone:
    """Ours, or the timm architecture that the configuration names.

    Raises:
        ModelError: when it names one and timm is not installed.

    >>> build_backbone(BackboneConfig(size="micro", patch_size=8, image_size=32)).embed_dim
    64
    """
    if config.timm is None:
        return VisionTransformer(config)
    from glocal.models.timm_backbone import rebuild_timm

    return rebuild_timm(config)
