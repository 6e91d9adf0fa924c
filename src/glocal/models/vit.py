"""The Vision Transformer: plain, readable, with timm's parameter names, for images of any size and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from glocal.errors import ModelError
from glocal.models.aggregator import Aggregator
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.blocks import Block, Rotary, attention_weights
from glocal.models.features import Features, Masks, layer_number
from glocal.models.initialisation import initialise, mimic_trained_attention
from glocal.models.position import resample_table, rotary_table, rotate


class PatchEmbed(nn.Module):
    """One linear projection of each patch. Held as a convolution for its parameter's shape, run as a matrix product."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, patch_size, patch_size)

    def forward(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch patches dim"]:
        """Embed patches row by row, or those with these numbers only (on the pixels' device)."""
        patches = self.cut(pixels)
        if kept is not None:
            # As pixels, before the projection: what is dropped costs nothing, and choosing has no backward.
            first = torch.arange(0, patches.shape[:2].numel(), patches.shape[1], device=kept.device)[:, None]
            patches = patches.flatten(0, 1).index_select(0, (kept + first).flatten()).view(*kept.shape, -1)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def cut(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches pixels"]:
        """Flattened patches row by row, in the order of the projection's weights."""
        side = self.patch_size
        batch, channels, height, width = pixels.shape
        patches = pixels.reshape(batch, channels, height // side, side, width // side, side)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class VisionTransformer(Backbone):
    """A pre-norm Vision Transformer (Dosovitskiy et al. 2021) that takes any image whose sides its patch divides.

    Parameters are named as in timm. `checkpoint_blocks` (set from outside; speed and memory only) recomputes each
    block in the backward pass; `running` (set from outside) leaves out the blocks behind so many. Departure from the DINO family: a table with registers has no row for the class token,
    which loses nothing because the class token itself is learnt.

    >>> model = VisionTransformer(BackboneConfig(size="micro", patch_size=8, image_size=32))
    >>> model(torch.randn(2, 3, 32, 48)).patches.shape
    torch.Size([2, 24, 64])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim, self.depth, self.num_heads = dim, depth, heads = config.dimensions
        self.patch_size = config.patch_size
        self.checkpoint_blocks = False
        self.running: int | None = None
        self.patch_embed = PatchEmbed(config.patch_size, config.channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        rows = (config.image_size // config.patch_size) ** 2 + config.table_has_class_row
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, dim)) if config.position == "table" else None
        self.blocks = nn.ModuleList(
            Block(
                dim, heads, config.hidden, swiglu=config.ffn == "swiglu", qkv_bias=config.qkv_bias,
                layer_scale=config.layer_scale, norm_eps=config.norm_eps,
                drop_path=config.drop_path * number / max(1, depth - 1),
            )
            for number in range(depth)
        )  # fmt: skip
        if config.pooling == "class_attention":
            self.aggregator: Aggregator | None = Aggregator(dim, heads, norm_eps=config.norm_eps)
            # SelfPatch has one final norm, inside the aggregator. Going past nn.Module's registration keeps one name
            # for its parameters; copies of this module keep the alias.
            self.__dict__["norm"] = self.aggregator.norm
        else:
            self.aggregator = None
            self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.final_norm else nn.Identity()
        initialise(self, "fan_in" if config.init == "auto" and dim < 384 else config.init)
        if config.attention_init == "mimetic":
            for block in self.blocks:
                assert isinstance(block, Block)
                mimic_trained_attention(block.attn.qkv.weight, block.attn.proj.weight, heads)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class token and registers."""
        return int(self.config.class_token) + self.config.registers

    def forward(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        kept: Int64[Tensor, "batch kept"] | None = None,
        masks: Masks | None = None,
    ) -> Features:
        """Embed normalised pixels; height and width are any multiples of the patch size.

        With `kept` (patch numbers, on the CPU) every image goes on with these patches only, at their own positions, and
        the features hold only them; the prefix tokens always stay. Patches under `masks` are replaced by its vector
        before they get their positions.

        Raises:
            ModelError: when the patch size does not divide a side or the channels differ.
        """
        grid = self.grid(pixels)
        x, rotary = self._embed(pixels, grid, kept, masks)
        for block in self.blocks[: self.running]:
            x = self._run(block, x, rotary)
        return replace(self._features(x, grid), kept=kept, masked=None if masks is None else masks.hidden)

    def intermediate(
        self, pixels: Float[Tensor, "batch channels height width"], layers: Sequence[int]
    ) -> list[Features]:
        """Features after several blocks, each through the final norm, in the order asked; -1 is the last block."""
        wanted = [layer_number(layer, self.depth) for layer in layers]
        grid = self.grid(pixels)
        x, rotary = self._embed(pixels, grid)
        outputs: dict[int, Features] = {}
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = self._run(block, x, rotary)
            if number in wanted:
                outputs[number] = self._features(x, grid)
        return [outputs[number] for number in wanted]

    def last_attention(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch heads patches"]:
        """The last block's attention from the class token (or the class attention's query) to the patches."""
        grid = self.grid(pixels)
        x, rotary = self._before_last(pixels, grid)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        if self.aggregator is not None:
            return self.aggregator.attention(last(x, rotary))
        if not self.config.class_token:
            raise ModelError(
                "A backbone that pools by the mean has no class token whose attention could be shown."
            )
        query, key, _ = last.attn.queries_keys_values(last.norm1(x))
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        return attention_weights(query[:, :, :1], key)[:, :, 0, self.prefix_tokens :]

    def last_keys(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches dim"]:
        """The last block's keys of the patches, heads side by side, before any rotation (for LOST, TokenCut)."""
        x, _ = self._before_last(pixels, self.grid(pixels))
        last = self.blocks[-1]
        assert isinstance(last, Block)
        _, key, _ = last.attn.queries_keys_values(last.norm1(x))
        return key.transpose(1, 2).flatten(2)[:, self.prefix_tokens :]

    def grid(self, pixels: Float[Tensor, "batch channels height width"]) -> tuple[int, int]:
        """Rows and columns of patches, after checking that the pixels fit."""
        _, channels, height, width = pixels.shape
        side = self.patch_size
        if channels != self.config.channels:
            raise ModelError(
                f"The backbone takes {self.config.channels} channels; the pixels have {channels}."
            )
        if height % side or width % side or not height or not width:
            raise ModelError(
                f"A {height}x{width} image can't be cut into {side}-pixel patches. Resize or crop it to multiples of "
                f"{side}, for example {max(1, height // side) * side}x{max(1, width // side) * side}."
            )
        return height // side, width // side

    def _embed(
        self, pixels: Tensor, grid: tuple[int, int], kept: Tensor | None = None, masks: Masks | None = None
    ) -> tuple[Tensor, Rotary | None]:
        """Tokens that enter the first block, class token first, then registers, then (kept) patches; and the rotation."""
        on_device = None if kept is None else kept.to(pixels.device, non_blocking=True)
        x = self.patch_embed(pixels, on_device)
        if masks is not None:
            hidden = masks.hidden if kept is None else masks.hidden.gather(1, kept)
            hidden = hidden.to(x.device, non_blocking=True)
            x = torch.where(hidden[..., None], masks.vector.to(x.dtype), x)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.pos_embed is None:
            rotary = rotary_table(
                grid, self.embed_dim // self.num_heads, self.prefix_tokens, self.config.rope_base, x.device
            )
            if on_device is not None:
                rotary = self._rotary_of(on_device, rotary)
            return torch.cat([*prefix, x], dim=1) if prefix else x, rotary
        class_rows = int(self.config.table_has_class_row)
        side = self.config.image_size // self.patch_size
        table = resample_table(
            self.pos_embed[0, class_rows:].reshape(side, side, -1), grid,
            antialias=self.config.position_antialias, offset=self.config.position_offset,
        ).flatten(0, 1)  # fmt: skip
        # `embedding`: its backward sorts; `index_select`'s would add on a GPU in whatever order, and all to the same few rows.
        x = x + (table if on_device is None else F.embedding(on_device, table))
        if class_rows:
            prefix[0] = prefix[0] + self.pos_embed[:, :1]
        return torch.cat([*prefix, x], dim=1) if prefix else x, None

    def _rotary_of(self, kept: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The rotation of prefix tokens and kept patches: (batch, 1, tokens, head_dim)."""
        prefix = torch.arange(self.prefix_tokens, device=kept.device).expand(kept.shape[0], -1)
        tokens = torch.cat([prefix, kept + self.prefix_tokens], dim=1)
        return table[0][tokens][:, None], table[1][tokens][:, None]

    def _run(self, block: nn.Module, x: Tensor, rotary: Rotary | None) -> Tensor:
        assert isinstance(block, Block)
        # Drawn outside the checkpoint, so that recomputation needs no saved generator state.
        factors = block.draw_factors(x.shape[0], x.device)
        if self.checkpoint_blocks and torch.is_grad_enabled():
            result: Tensor = checkpoint(
                block, x, rotary, factors, use_reentrant=False, preserve_rng_state=False
            )
            return result
        return block(x, rotary, factors)  # type: ignore[no-any-return]

    def _before_last(self, pixels: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Rotary | None]:
        x, rotary = self._embed(pixels, grid)
        for block in self.blocks[:-1]:
            x = self._run(block, x, rotary)
        return x, rotary

    def _features(self, x: Tensor, grid: tuple[int, int]) -> Features:
        if self.aggregator is not None:
            return Features(self.aggregator(x), self.norm(x), grid, x)
        if self.config.registers:
            x = torch.cat([x[:, : int(self.config.class_token)], x[:, self.prefix_tokens :]], dim=1)
        normed = self.norm(x)
        if not self.config.class_token:
            return Features(normed.mean(dim=1), normed, grid, x)
        # One split, not two slices: its backward joins both gradients in one pass instead of adding two padded ones.
        cls, patches = normed.split([1, normed.shape[1] - 1], dim=1)
        return Features(cls[:, 0], patches, grid, x)
