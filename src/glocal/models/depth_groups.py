"""At which depth of a backbone a parameter lies, read from its name: what layer-wise learning rates go by."""

from __future__ import annotations

import re

# `model.` stands before the names of a timm model; its blocks may be stages (ConvNeXt) or layers of blocks (Swin).
_WRAPPERS = r"^(?:backbone\.|model\.)*"
_BLOCK = re.compile(_WRAPPERS + r"(?:blocks|stages|layers)[._](\d+)\.")
_EMBEDDING = re.compile(_WRAPPERS + r"(?:patch_embed\.|stem[._]|(?:cls_token|pos_embed|reg_token)$)")


def depth_of(name: str, depth: int) -> int:
    """0 for patch embedding, positions and class token, 1 to `depth` for the blocks, `depth` + 1 for all above them.

    Above the blocks lie the final norm, class attention (whose own blocks are named blocks too) and heads.

    >>> [depth_of(n, 12) for n in ("patch_embed.proj.bias", "blocks.3.norm1.bias", "aggregator.blocks.0.norm1.bias")]
    [0, 4, 13]
    """
    block = _BLOCK.match(name)
    if block:
        return int(block.group(1)) + 1
    return 0 if _EMBEDDING.match(name) else depth + 1
