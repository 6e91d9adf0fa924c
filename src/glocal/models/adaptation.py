"""`adapt=`: which of a loaded backbone's weights training moves: all, the last blocks, the norms, or low-rank adapters.

Low-rank adapters (Hu et al. 2022, LoRA, section 4.1): a frozen layer W gets an update (alpha / rank) B A of low rank
beside it, B starting at zero, so that the first step starts from the untouched model. Departures: the moving-average
teacher averages A and B, not their product, which keeps its frozen weights shared with the student's.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.config import Config
from glocal.errors import ModelError

Positive = Annotated[int, Field(ge=1)]
Target = Literal["qkv", "proj", "fc1", "fc2"]


class AdaptConfig(Config):
    """Which of the backbone's weights training moves. Short forms: `full`, `last:2`, `norms`, `lora`, `lora:16`."""

    method: Literal["full", "last", "norms", "lora"] = "full"
    """`full`: all. `last`: the last blocks and what lies above them. `norms`: layer norms and LayerScale. `lora`:
    low-rank updates beside frozen linear layers, merged into an ordinary ViT at export."""
    blocks: Positive = 2
    """Of `last`: how many blocks."""
    rank: Positive = 8
    """Of `lora`: rank of an update."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Of `lora`: an update is scaled by alpha / rank."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("qkv", "proj", "fc1", "fc2")
    """Of `lora`: the linear layers of a block that get an update."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        method, _, number = value.partition(":")
        counted = {"last": "blocks", "lora": "rank"}
        if not number:
            return {"method": method}
        if method not in counted or not number.isdigit():
            raise ValueError("write full, norms, last:BLOCKS, lora or lora:RANK")
        return {"method": method, counted[method]: int(number)}


class LowRankLinear(nn.Linear):
    """A linear layer with a low-rank update beside its frozen weight, whose parameter it shares and whose name it keeps.

    y = W x + b + (alpha / rank) B A x. The frozen weight gets no gradient, which saves its share of the backward pass.

    >>> layer = LowRankLinear(nn.Linear(8, 4), rank=2, scale=1.0)
    >>> [name for name, _ in layer.named_parameters()]
    ['weight', 'bias', 'down', 'up']
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = base.in_features, base.out_features, scale
        self.weight, self.bias = base.weight, base.bias
        place: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Parameter(torch.randn(rank, self.in_features, **place) * self.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(self.out_features, rank, **place))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Apply weight and update."""
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.down), self.scale * self.up)

    def update(self) -> Float[Tensor, "outputs inputs"]:
        """What the adapter adds to the weight."""
        return low_rank_update(self.up, self.down, self.scale)


def adapt(student: nn.Module, teacher: nn.Module, config: AdaptConfig) -> None:
    """Freeze what `config` leaves alone and put adapters in, in both backbones, which must hold equal weights.

    Frozen parameters get no gradient and no optimiser state, and the teacher holds the student's own tensors.

    Raises:
        ModelError: when the backbone has no such layers.
    """
    if config.method == "full":
        return
    student.requires_grad_(False)
    for parameter in _moved(student, config):
        parameter.requires_grad_(True)
    if config.method == "lora":
        # A second insertion draws other numbers; the teacher starts with the student's.
        _insert(teacher, config)
        teacher.load_state_dict(student.state_dict())
        teacher.requires_grad_(False)
    _share_frozen(student, teacher)


def _moved(backbone: nn.Module, config: AdaptConfig) -> list[nn.Parameter]:
    """The parameters that training moves; for `lora` the adapters that this puts in."""
    blocks = getattr(backbone, "blocks", None)
    if config.method == "lora":
        return [p for layer in _insert(backbone, config) for p in (layer.down, layer.up)]
    if config.method == "norms":
        norms = [
            m for m in backbone.modules() if isinstance(m, nn.LayerNorm) or type(m).__name__ == "LayerScale"
        ]
        return [p for norm in norms for p in norm.parameters()]
    if blocks is None or config.blocks > len(blocks):
        raise ModelError(
            f"adapt=last:{config.blocks} asks for more blocks than the backbone has "
            f"({0 if blocks is None else len(blocks)}). Choose fewer, or adapt=full."
        )
    above = [m for name, m in backbone.named_children() if name in ("norm", "aggregator")]
    return [p for module in (*blocks[-config.blocks :], *above) for p in module.parameters()]


def _insert(backbone: nn.Module, config: AdaptConfig) -> list[LowRankLinear]:
    inserted = []
    for parent in list(backbone.modules()):
        for name, layer in list(parent.named_children()):
            if name in config.targets and type(layer) is nn.Linear:
                adapted = LowRankLinear(layer, config.rank, config.alpha / config.rank)
                setattr(parent, name, adapted)
                inserted.append(adapted)
    if not inserted:
        raise ModelError(
            f"adapt=lora found no layer named {', '.join(config.targets)} in {type(backbone).__name__}. Use adapt=full."
        )
    return inserted


def _share_frozen(student: nn.Module, teacher: nn.Module) -> None:
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            parent, _, last = name.rpartition(".")
            setattr(teacher.get_submodule(parent), last, parameter)


def adapters(backbone: nn.Module) -> Iterator[tuple[str, LowRankLinear]]:
    """The adapted layers of a backbone by name."""
    return ((name, m) for name, m in backbone.named_modules() if isinstance(m, LowRankLinear))


@torch.no_grad()
def merge_adapters(backbone: nn.Module) -> nn.Module:
    """The same model without adapters: their updates are added to the weights of a copy. A model without any comes
    back as it is.
    """
    if next(adapters(backbone), None) is None:
        return backbone
    merged = copy.deepcopy(backbone)
    for name, layer in list(adapters(merged)):
        parent, _, last = name.rpartition(".")
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight, plain.bias = nn.Parameter(layer.weight + layer.update()), layer.bias
        setattr(merged.get_submodule(parent), last, plain)
    return merged


def fold_adapters(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state of an adapted backbone as one of an ordinary backbone."""
    plain = {name: tensor for name, tensor in state.items() if not name.endswith((".down", ".up"))}
    for name in [n.removesuffix(".down") for n in state if n.endswith(".down")]:
        update = low_rank_update(state[f"{name}.up"], state[f"{name}.down"], scale)
        plain[f"{name}.weight"] = plain[f"{name}.weight"] + update
    return plain


def low_rank_update(up: Tensor, down: Tensor, scale: float) -> Float[Tensor, "outputs inputs"]:
    """The product, scaled, in double precision and rounded once."""
    return (scale * (up.double() @ down.double())).to(up.dtype)


def weights_digest(backbone: nn.Module, names: list[str]) -> str:
    """A short hash of the weights of these layers: tells whether an adapter is put beside the weights it was made for."""
    digest = hashlib.blake2b(digest_size=12)
    for name in sorted(names):
        weight = backbone.get_submodule(name).get_parameter("weight").detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()
