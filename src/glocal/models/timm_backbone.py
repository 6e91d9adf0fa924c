"""Any timm model that gives patch tokens, as a backbone for evaluation. Needs the timm extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import ModelError
from glocal.models.encoder import Encoder
from glocal.models.features import Features, layer_number


class TimmBackbone(nn.Module):
    """A timm Vision Transformer seen through its `forward_intermediates`.

    The image's embedding is the class token, or the mean of the patches when there is none. `tokens_before_norm` holds
    the same layer without the final norm.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.embed_dim, self.depth = int(model.num_features), len(model.blocks)
        self.patch_size = int(model.patch_embed.patch_size[0])
        self.has_class_token = bool(getattr(model, "has_class_token", True))

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Features:
        """Features of the last block."""
        return self.intermediate(pixels, [-1])[0]

    def intermediate(
        self, pixels: Float[Tensor, "batch channels height width"], layers: Sequence[int]
    ) -> list[Features]:
        """Features of several blocks through the final norm, in the order asked; -1 is the last block."""
        asked = [layer_number(layer, self.depth) for layer in layers]
        numbers = sorted(set(asked))
        found = self.model.forward_intermediates(
            pixels,
            indices=numbers,
            norm=False,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        side = self.patch_size
        grid = (pixels.shape[2] // side, pixels.shape[3] // side)
        features = {number: self._features(item, grid) for number, item in zip(numbers, found, strict=True)}
        return [features[number] for number in asked]

    def _features(self, item: Any, grid: tuple[int, int]) -> Features:
        patches, prefix = item if isinstance(item, (tuple, list)) else (item, None)
        if prefix is None or not self.has_class_token:
            tokens = patches
            normed = self.model.norm(tokens)
            return Features(normed.mean(dim=1), normed, grid, tokens)
        tokens = torch.cat([prefix[:, :1], patches], dim=1)
        normed = self.model.norm(tokens)
        return Features(normed[:, 0], normed[:, 1:], grid, tokens)


def load_timm(name: str) -> Encoder:
    """Load timm's pretrained model of this name (timm may download it: that is what the name asks for).

    Raises:
        ModelError: when timm is absent, the name unknown, or the model gives no patch tokens.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"timm:{name} needs timm. Install it: pip install 'glocal[timm]'.") from error
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise ModelError(f"timm can't make '{name}' with dynamic image sizes: {error}.") from error
    if (
        not hasattr(model, "forward_intermediates")
        or not hasattr(model, "blocks")
        or not hasattr(model, "patch_embed")
    ):
        raise ModelError(f"timm:{name} ({type(model).__name__}) is no Vision Transformer with patch tokens.")
    model.requires_grad_(False).eval()
    data: dict[str, Any] = timm.data.resolve_model_data_config(model)
    backbone = TimmBackbone(model).eval()
    return Encoder(
        f"timm:{name}", backbone, backbone.embed_dim, backbone.patch_size, int(data["input_size"][-1]),
        tuple(data["mean"]), tuple(data["std"]),
    )  # fmt: skip
