"""Any timm model that gives a grid of patches, as a backbone to train, evaluate and export. Needs the timm extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import ModelError
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.features import Features, Masks, layer_number


class TimmBackbone(Backbone):
    """A timm model seen through its `forward_intermediates`.

    Transformers with class token: as our own. Without one, and for models that end in a map (Swin, ConvNeXt, hybrids),
    the image's embedding is the mean of the patches. `tokens_before_norm` is the residual stream of a transformer; for
    a map it is the patches themselves, and only the last stage is given.

    >>> import timm  # doctest: +SKIP
    >>> TimmBackbone(timm.create_model("convnext_atto", num_classes=0), "convnext_atto").patch_size  # doctest: +SKIP
    32
    """

    def __init__(self, model: Any, name: str = "", arguments: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.model = model
        self.config = _describe(model, name, arguments or {})
        self.embed_dim, _, self.num_heads = self.config.dimensions
        self.patch_size = self.config.patch_size
        self.is_transformer = _is_transformer(model)
        self.checkpoint_blocks = False
        self.aggregator = None
        stages = list(model.blocks) if self.is_transformer else _stages(model)
        self.depth = len(stages) if self.is_transformer else 1
        # Past nn.Module's registration: these parameters have their names in `model` already.
        self.__dict__["blocks"] = nn.ModuleList(stages)
        self.__dict__["norm"] = model.norm if self.is_transformer else nn.Identity()

    def forward(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        kept: Tensor | None = None,
        masks: Masks | None = None,
    ) -> Features:
        """Features of the last block or stage.

        Raises:
            ModelError: when patches are to be dropped or hidden, which timm's models can't.
        """
        if kept is not None or masks is not None:
            raise ModelError(
                f"timm's {type(self.model).__name__} sees whole images only. Set views.NAME.keep_patches=1 and leave terms "
                "out that mask patches, or use a Vision Transformer of glocal's."
            )
        if self.checkpoint_blocks and hasattr(self.model, "set_grad_checkpointing"):
            self.model.set_grad_checkpointing(True)
        return self.intermediate(pixels, [-1])[0]

    def intermediate(
        self, pixels: Float[Tensor, "batch channels height width"], layers: Sequence[int]
    ) -> list[Features]:
        """Features of several blocks through the final norm, in the order asked; -1 is the last block."""
        asked, grid = [layer_number(layer, self.depth) for layer in layers], self.grid(pixels)
        if not self.is_transformer:
            maps = self.model.forward_intermediates(
                pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
            )
            tokens = maps[-1].flatten(2).transpose(1, 2)
            return [Features(tokens.mean(dim=1), tokens, grid, tokens)] * len(asked)
        numbers = sorted(set(asked))
        outputs = self.model.forward_intermediates(
            pixels, indices=numbers, norm=False, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )  # fmt: skip
        features = {n: self._features(output, grid) for n, output in zip(numbers, outputs, strict=True)}
        return [features[number] for number in asked]

    def _features(self, output: Any, grid: tuple[int, int]) -> Features:
        patches, prefix = output if isinstance(output, (tuple, list)) else (output, None)
        if prefix is None or not self.config.class_token:
            normed = self.model.norm(patches)
            return Features(normed.mean(dim=1), normed, grid, patches)
        tokens = torch.cat([prefix[:, :1], patches], dim=1)
        normed = self.model.norm(tokens)
        return Features(normed[:, 0], normed[:, 1:], grid, tokens)


def rebuild_timm(config: BackboneConfig) -> TimmBackbone:
    """The architecture that a configuration names, with random weights.

    Raises:
        ModelError: when timm is absent or has no such architecture.
    """
    assert config.timm is not None
    droppable = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    model = create_timm(config.timm, False, config.timm_arguments | droppable)
    return TimmBackbone(model, config.timm, config.timm_arguments)


def create_timm(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> Any:
    """Timm's model without a classifier.

    Raises:
        ModelError: when timm is absent or refuses.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"timm:{name} needs timm. Install it: pip install 'glocal[timm]'.") from error
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"timm can't make '{name}': {error}.") from error


def _is_transformer(model: Any) -> bool:
    return all(
        hasattr(model, attribute) for attribute in ("blocks", "norm", "patch_embed", "num_prefix_tokens")
    )


def _stages(model: Any) -> list[nn.Module]:
    return [model.get_submodule(info["module"]) for info in model.feature_info]


def _describe(model: Any, name: str, arguments: Mapping[str, Any]) -> BackboneConfig:
    """The configuration of a wrapped model: what training must know of it, and how to make it again."""
    last = (getattr(model, "feature_info", None) or [{}])[-1]
    if not hasattr(model, "forward_intermediates") or not {"num_chs", "reduction"} <= set(last):
        raise ModelError(
            f"timm:{name} ({type(model).__name__}) gives no grid of patches. Choose a Vision Transformer, Swin, ConvNeXt "
            "or another model with `forward_intermediates`."
        )
    dim, side = int(last["num_chs"]), int(last["reduction"])
    transformer = _is_transformer(model)
    has_class = transformer and bool(getattr(model, "has_class_token", model.num_prefix_tokens > 0))
    return BackboneConfig(
        timm=name or type(model).__name__, timm_arguments=dict(arguments), embed_dim=dim,
        depth=len(model.blocks) if transformer else len(model.feature_info),
        num_heads=dim // 64 if dim % 64 == 0 else 1, patch_size=side, image_size=max(1, 224 // side) * side,
        pooling="class_token" if has_class else "mean",
    )  # fmt: skip
