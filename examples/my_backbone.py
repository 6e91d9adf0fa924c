"""A backbone of one's own: `backbone.own=examples/my_backbone.py:Mixer`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from glocal.errors import ModelError
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.features import Features, Masks, layer_number


class Mixer(Backbone):
    """ConvMixer (Trockman and Kolter 2022) with layer norms: patches mixed by depthwise convolutions, no attention.

    `backbone.own_arguments={kernel: 7}` sets the side of the convolutions.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config, self.patch_size = config, config.patch_size
        self.embed_dim, self.depth, _ = config.dimensions
        kernel = config.own_arguments.get("kernel", 5)
        self.patch_embed = nn.Conv2d(3, self.embed_dim, self.patch_size, self.patch_size)
        self.blocks = nn.ModuleList(MixerBlock(self.embed_dim, kernel) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.embed_dim)

    def forward(self, pixels: Tensor, kept: Tensor | None = None, masks: Masks | None = None) -> Features:
        """Features of normalised pixels; convolutions need the whole grid, so none can be left out."""
        if kept is not None or masks is not None:
            raise ModelError(
                "A Mixer sees whole images only. Set views.NAME.keep_patches=1 and leave masking terms out."
            )
        return self.intermediate(pixels, [-1])[0]

    def intermediate(self, pixels: Tensor, layers: Sequence[int]) -> list[Features]:
        """Features after several blocks, through the final norm."""
        grid = self.grid(pixels)
        maps, outputs = self.patch_embed(pixels), []
        for block in self.blocks:
            maps = block(maps)
            outputs.append(maps.flatten(2).transpose(1, 2))
        return [self._features(outputs[layer_number(layer, self.depth)], grid) for layer in layers]

    def _features(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        normed = self.norm(tokens)
        return Features(normed.mean(dim=1), normed, grid, tokens)


class MixerBlock(nn.Module):
    """Neighbours are mixed channel by channel, then channels patch by patch."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.neighbours = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.channels = nn.Conv2d(dim, dim, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(1, dim) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, dim, rows, columns) to the same."""
        maps = maps + nn.functional.gelu(self.neighbours(self.norms[0](maps)))
        return maps + nn.functional.gelu(self.channels(self.norms[1](maps)))
