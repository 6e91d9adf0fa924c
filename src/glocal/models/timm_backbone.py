"""Any timm model that gives a grid of patches, as a backbone to train, evaluate and export. Needs the timm extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import ModelError
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.encoder import Encoder, LoadReport
from glocal.models.features import Features, Masks, layer_number
from glocal.models.layouts import convert
from glocal.models.weight_files import build_encoder

# Tried in turn: how timm's families are told to take images of any size.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


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

    def grid(self, pixels: Float[Tensor, "batch channels height width"]) -> tuple[int, int]:
        """Rows and columns of patches."""
        side, (height, width) = self.patch_size, pixels.shape[2:]
        if height % side or width % side or not height or not width:
            raise ModelError(
                f"A {height}x{width} image can't be cut into cells of {side} pixels. Resize or crop it to multiples of {side}."
            )
        return height // side, width // side

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
    model = _create(config.timm, False, config.timm_arguments | droppable)
    return TimmBackbone(model, config.timm, config.timm_arguments)


def load_timm(name: str, pretrained: bool = True) -> Encoder:
    """Load timm's model of this name (timm may download its weights: that is what the name asks for).

    A plain Vision Transformer becomes ours when it gives equal features; everything else stays timm's, wrapped.

    Raises:
        ModelError: when timm is absent, the name unknown, or the model gives no grid of patches.
    """
    model, arguments = _create_for_any_size(name, pretrained)
    wrapped = TimmBackbone(model, name, arguments).eval().requires_grad_(False)
    import timm

    data: dict[str, Any] = timm.data.resolve_model_data_config(model)
    said = f"timm:{name}" if pretrained else f"timm-untrained:{name}"
    report = LoadReport("timm", tuple(wrapped.state_dict()), note=f"trained as timm's {type(model).__name__}")
    encoder = _as_ours(wrapped, said) or Encoder(
        said, wrapped, wrapped.embed_dim, wrapped.patch_size, 0, report=report
    )
    encoder.image_size = max(1, int(data["input_size"][-1]) // encoder.patch_size) * encoder.patch_size
    encoder.mean, encoder.std = tuple(data["mean"]), tuple(data["std"])
    about = getattr(model, "pretrained_cfg", None) or {}
    encoder.provenance = {"architecture": name, "licence": about.get("license") if pretrained else None}
    return encoder


def load_timm_state(
    name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor], said: str
) -> Encoder:
    """A timm folder's weights in the architecture that it names.

    Raises:
        ModelError: when timm is absent, or weights are missing or left over.
    """
    backbone = TimmBackbone(_create(name, False, arguments), name, arguments)
    wanted = backbone.model.state_dict()
    given = {n: t for n, t in state.items() if n in wanted or not n.startswith(("head.", "fc."))}
    wrong = sorted(wanted.keys() ^ given.keys())
    if wrong:
        raise ModelError(
            f"'{said}' doesn't hold the weights of timm's {name}; they differ in {', '.join(wrong[:4])}."
        )
    backbone.model.load_state_dict({n: t.to(wanted[n].dtype) for n, t in given.items()})
    backbone.eval().requires_grad_(False)
    size = 224 // backbone.patch_size * backbone.patch_size
    report = LoadReport("timm", tuple(given), note=f"timm's {type(backbone.model).__name__}")
    return Encoder(said, backbone, backbone.embed_dim, backbone.patch_size, size, report=report)


def _create_for_any_size(name: str, pretrained: bool) -> tuple[Any, dict[str, Any]]:
    for arguments in _ANY_SIZE:
        try:
            return _create(name, pretrained, arguments), dict(arguments)
        except TypeError:
            continue
    raise ModelError(f"timm can't make '{name}' without a classifier. Choose a vision backbone.")


def _create(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"timm:{name} needs timm. Install it: pip install 'glocal[timm]'.") from error
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"timm can't make '{name}': {error}.") from error


def _is_transformer(model: Any) -> bool:
    return all(hasattr(model, part) for part in ("blocks", "norm", "patch_embed", "num_prefix_tokens"))


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


def _as_ours(wrapped: TimmBackbone, said: str) -> Encoder | None:
    """The same weights in our Vision Transformer, or None where that isn't the same model."""
    model = wrapped.model
    if type(model).__name__ != "VisionTransformer":
        return None
    settings = {"num_heads": model.blocks[0].attn.num_heads, "norm_eps": getattr(model.norm, "eps", 1e-6)}
    try:
        encoder = build_encoder(convert(model.state_dict(), "timm", settings), said, "")
    except (ModelError, ValueError, KeyError):
        return None
    side = 3 * wrapped.patch_size
    for size in ((side, side), (side, 2 * side)):
        pixels = torch.randn(
            1, model.patch_embed.proj.weight.shape[1], *size, generator=torch.Generator().manual_seed(0)
        )
        with torch.no_grad():
            ours, theirs = encoder.backbone(pixels), wrapped(pixels)
        if not all(torch.allclose(a, b, atol=1e-4, rtol=1e-4)
                   for a, b in ((ours.cls, theirs.cls), (ours.patches, theirs.patches))):  # fmt: skip
            return None
    return encoder
