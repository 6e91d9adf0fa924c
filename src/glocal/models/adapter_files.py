"""A low-rank adapter as a small file beside the weights it belongs to, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from glocal.atomic_files import allow_readers
from glocal.errors import ModelError
from glocal.models.adaptation import adapters, low_rank_update, weights_digest
from glocal.models.encoder import Encoder, shorten

_KIND = "glocal adapter 1"


def save_adapter(path: Path, backbone: nn.Module, base: str) -> None:
    """Write a backbone's adapters: A and B of each layer (float32), the scale, and which weights they go beside.

    `base` is what `glocal.load` is given for those weights.
    """
    layers = dict(adapters(backbone))
    tensors = {
        f"{name}.{factor}": getattr(layer, factor).detach().cpu().contiguous()
        for name, layer in layers.items()
        for factor in ("down", "up")
    }
    scale = next(iter(layers.values())).scale
    digest = weights_digest(backbone, list(layers))
    save_file(tensors, path, {"kind": _KIND, "base": base, "scale": repr(scale), "digest": digest})
    allow_readers(path)


def is_adapter(path: Path) -> bool:
    """Whether this safetensors file is an adapter of ours."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("kind") == _KIND
    except (SafetensorError, OSError):
        return False


@torch.no_grad()
def load_adapter(path: Path, load: Callable[[str], Encoder]) -> Encoder:
    """The adapter's base model with the adapter merged into it.

    Raises:
        ModelError: when the base can't be found or holds other weights than those that were adapted.
    """
    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        encoder = load(about["base"])
    except ModelError as error:
        raise ModelError(
            f"'{path}' is an adapter to the weights '{about['base']}', which can't be loaded: {error}"
        ) from error
    names = [name.removesuffix(".down") for name in tensors if name.endswith(".down")]
    known = dict(encoder.backbone.named_modules())
    absent = [name for name in names if name not in known]
    if absent or weights_digest(encoder.backbone, names) != about["digest"]:
        what = f"no {shorten(absent)}" if absent else "other weights"
        raise ModelError(
            f"'{path}' is an adapter to '{about['base']}', which now holds {what}. Restore those weights, or load the "
            "merged export beside it."
        )
    for name in names:
        update = low_rank_update(tensors[f"{name}.up"], tensors[f"{name}.down"], float(about["scale"]))
        encoder.backbone.get_submodule(name).get_parameter("weight").add_(update)
    encoder.name = f"{encoder.name}+{path.stem}"
    return encoder
