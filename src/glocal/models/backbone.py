"""What a backbone is: its configuration, and what training, every objective and export ask of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from glocal.config import Config
from glocal.errors import ModelError
from glocal.models.aggregator import Aggregator
from glocal.models.features import Features, Masks

# Far above any published model: a number in a damaged file must not fill the memory before it is refused.
Positive = Annotated[int, Field(ge=1, le=16_384)]


class Dimensions(NamedTuple):
    """What a size name stands for."""

    embed_dim: int
    depth: int
    num_heads: int


SIZES: dict[str, Dimensions] = {
    "micro": Dimensions(64, 4, 4),
    "tiny": Dimensions(192, 12, 3),
    "small": Dimensions(384, 12, 6),
    "base": Dimensions(768, 12, 12),
    "large": Dimensions(1024, 24, 16),
    "giant": Dimensions(1536, 40, 24),
}


class BackboneConfig(Config):
    """A Vision Transformer, ours or, with `timm`, another architecture. Everything here changes results."""

    timm: str | None = None
    """A timm architecture in place of ours, such as convnext_tiny: one that gives a grid of patches. Set by `init=`, as
    are then its width, patch size (the grid's stride) and pooling; settings of ours beside these have no effect."""
    timm_arguments: dict[str, Any] = Field(default_factory=dict)
    """What timm needs beside the name to make it again."""
    own: str | None = None
    """A backbone of your own in place of ours, `my_backbone.py:NAME` or `package.module:NAME`; it is made from these
    settings and heeds those that it wants to."""
    own_arguments: dict[str, Any] = Field(default_factory=dict)
    """What your own backbone reads beside them."""
    size: Literal["micro", "tiny", "small", "base", "large", "giant"] = "small"
    """Width, depth and heads: micro 64/4/4, tiny 192/12/3, small 384/12/6, base 768/12/12, large 1024/24/16,
    giant 1536/40/24."""
    embed_dim: Positive | None = None
    """Width, when it isn't the size's."""
    depth: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of blocks, when it isn't the size's."""
    num_heads: Positive | None = None
    """Attention heads, when they aren't the size's."""
    patch_size: Positive = 16
    """Side of a patch in pixels."""
    image_size: Positive = 224
    """Side in pixels of the square that the position table covers; other sizes are interpolated from it."""
    channels: Positive = 3
    """Of the images; training reads three."""
    pooling: Literal["class_token", "class_attention", "mean"] = "class_token"
    """Where the image's embedding comes from: a class token (ViT, DINO), or, without one, class attention over the
    patches (SelfPatch) or their mean."""
    final_norm: bool = True
    """Whether features pass a norm at the end; released SelfPatch trunks have none."""
    registers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Extra tokens without a position that hold what belongs to no patch (Darcet et al. 2024); dropped at the end."""
    layer_scale: float | None = None
    """Initial factor of each residual branch, learnt per channel; null for none."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth: share of samples that skip a block's branches, growing linearly from 0 to this at the last."""
    init: Literal["auto", "trunc_normal", "fan_in"] = "auto"
    """`trunc_normal`: std 0.02 (the DINO family). `fan_in`: std 1/sqrt(fan in). `auto`: fan_in below width 384, where
    std 0.02 gives random features that are nearly constant and training that stalls."""
    attention_init: Literal["drawn", "mimetic"] = "drawn"
    """`drawn`: as `init` says. `mimetic`: as trained attention looks (Trockman and Kolter 2023): tokens attend to their
    like from the first step, which short runs gain from."""
    patch_embed_init: Literal["drawn", "whitened"] = "drawn"
    """`drawn`: as `init` says. `whitened`: computed from the run's own images before the first step, so that outputs are
    uncorrelated over their patches; without effect where `init=` gives weights. One linear layer either way."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    """The second half of a block: two layers with GELU, or SwiGLU."""
    ffn_hidden: Positive | None = None
    """Hidden width of the feed-forward part; by default 4 widths, or two thirds of that in multiples of 8 (SwiGLU)."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    position: Literal["table", "rope"] = "table"
    """A learnt table of absolute positions, or axial rotary embeddings (DINOv3)."""
    position_antialias: bool = True
    """Whether a table is shrunk with antialiasing (timm, DINOv2 with registers) or without (DINO, DINOv2)."""
    position_offset: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Added to the grid's side where the table's scale is computed: 0.1 in DINO and DINOv2, else 0."""
    rope_base: Annotated[float, Field(gt=1)] = 100.0
    """Longest wavelength of the rotations; only with position=rope."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the variance in every norm."""

    @model_validator(mode="after")
    def _fits(self) -> BackboneConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}"
            )
        dim, _, heads = self.dimensions
        if dim % heads:
            raise ValueError(f"num_heads {heads} must divide the width {dim}")
        if self.position == "rope" and (dim // heads) % 4:
            raise ValueError(
                f"rotary positions need a head width that 4 divides; {dim} / {heads} is {dim // heads}"
            )
        if self.pooling == "class_attention" and (self.registers or not self.final_norm):
            raise ValueError("class_attention has no registers, and its norm is the final norm")
        return self

    @property
    def dimensions(self) -> Dimensions:
        """Width, depth and heads after overrides."""
        size = SIZES[self.size]
        return Dimensions(
            self.embed_dim or size.embed_dim, self.depth or size.depth, self.num_heads or size.num_heads
        )

    @property
    def is_ours(self) -> bool:
        """Whether this describes a Vision Transformer of ours, whose parameters have names and shapes that are known."""
        return self.timm is None and self.own is None

    @property
    def class_token(self) -> bool:
        """Whether the sequence starts with a class token."""
        return self.pooling == "class_token"

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward part."""
        full = 4 * self.dimensions.embed_dim
        return self.ffn_hidden or (full if self.ffn == "mlp" else -(-(full * 2 // 3) // 8) * 8)

    @property
    def table_has_class_row(self) -> bool:
        """Whether the position table's first row is the class token's (not with registers, as in timm)."""
        return self.class_token and self.registers == 0


class Backbone(nn.Module):
    """From normalised pixels to `Features`. Ours is `VisionTransformer`; `TimmBackbone` wraps timm's; `backbone.own` names
    yours, a subclass whose constructor takes the configuration and sets what stands here without a default.
    """

    config: BackboneConfig
    embed_dim: int
    patch_size: int
    blocks: nn.ModuleList
    """From the first to the last; their rates may fall with depth, and each is compiled by itself."""
    norm: nn.Module
    """The final norm, or an identity."""
    depth: int
    """How many layers `intermediate` counts."""
    num_heads: int
    """Of its attention; 1 where it has none."""
    checkpoint_blocks: bool
    """Whether blocks recompute their activations in the backward pass; set from outside."""
    aggregator: Aggregator | None
    patch_embed: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.checkpoint_blocks, self.aggregator = 1, False, None

    @abstractmethod
    def forward(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        kept: Int64[Tensor, "batch kept"] | None = None,
        masks: Masks | None = None,
    ) -> Features:
        """Embed normalised pixels, all patches or those kept, some of them hidden."""

    @abstractmethod
    def intermediate(
        self, pixels: Float[Tensor, "batch channels height width"], layers: Sequence[int]
    ) -> list[Features]:
        """Features after several blocks; -1 is the last."""

    def grid(self, pixels: Float[Tensor, "batch channels height width"]) -> tuple[int, int]:
        """Rows and columns of patches.

        Raises:
            ModelError: for pixels that don't fit.
        """
        side, (height, width) = self.patch_size, pixels.shape[2:]
        if height % side or width % side or not height or not width:
            raise ModelError(
                f"A {height}x{width} image can't be cut into cells of {side} pixels. Resize or crop it to multiples of {side}."
            )
        return height // side, width // side
