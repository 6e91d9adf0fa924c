"""The forward passes of released models, written plainly under the names of their own files."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
DIM, HEADS, DEPTH, PATCH, SIDE = 128, 2, 3, 8, 5


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), state[f"{name}.weight"], state[f"{name}.bias"], eps)


def random_state(shapes: dict[str, tuple[int, ...]]) -> State:
    torch.manual_seed(0)
    return {n: torch.randn(s) * (s[-1] ** -0.5 if len(s) == 2 else 0.5) for n, s in shapes.items()}


def vit_shapes(
    *,
    class_token: bool = True,
    rows: int | None = SIDE**2 + 1,
    final_norm: bool = True,
    block: Callable[[int], str] = "blocks.{}".format,
    scale: bool = False,
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (DIM, 3, PATCH, PATCH), "patch_embed.proj.bias": (DIM,),
        **({"cls_token": (1, 1, DIM)} if class_token else {}),
        **({"pos_embed": (1, rows, DIM)} if rows else {}),
    }  # fmt: skip
    for i in range(DEPTH):
        layers = {"norm1": (DIM,), "norm2": (DIM,), "attn.qkv": (3 * DIM, DIM), "attn.proj": (DIM, DIM),
                  "mlp.fc1": (4 * DIM, DIM), "mlp.fc2": (DIM, 4 * DIM)}  # fmt: skip
        for name, shape in layers.items():
            shapes |= {f"{block(i)}.{name}.weight": shape, f"{block(i)}.{name}.bias": shape[:1]}
        if scale:
            shapes |= {f"{block(i)}.ls{n}.gamma": (DIM,) for n in (1, 2)}
    if final_norm:
        shapes |= {"norm.weight": (DIM,), "norm.bias": (DIM,)}
    return shapes


def run_block(
    state: State, name: str, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None, eps: float = 1e-6
) -> Tensor:
    q, k, v = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, eps)).chunk(3, dim=-1)
    q, k, v = (t.reshape(*t.shape[:2], HEADS, -1).transpose(1, 2) for t in (q, k, v))
    if rotation is not None:
        cos, sin = rotation
        q, k = (t * cos + torch.cat(t.chunk(2, -1)[::-1], -1) * sin for t in (q, k))
    attended = ((q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5).softmax(-1) @ v
    y = linear(state, f"{name}.attn.proj", attended.transpose(1, 2).flatten(2))
    x = x + y * state.get(f"{name}.ls1.gamma", torch.tensor(1.0))
    z = norm(state, f"{name}.norm2", x, eps)
    if f"{name}.mlp.w12.weight" in state:
        gate, value = linear(state, f"{name}.mlp.w12", z).chunk(2, -1)
        y = linear(state, f"{name}.mlp.w3", F.silu(gate) * value)
    elif f"{name}.mlp.w1.weight" in state:
        y = linear(
            state,
            f"{name}.mlp.w3",
            F.silu(linear(state, f"{name}.mlp.w1", z)) * linear(state, f"{name}.mlp.w2", z),
        )
    else:
        y = linear(state, f"{name}.mlp.fc2", F.gelu(linear(state, f"{name}.mlp.fc1", z)))
    return x + y * state.get(f"{name}.ls2.gamma", torch.tensor(1.0))


def patches_of(state: State, pixels: Tensor) -> Tensor:
    x = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    return x.flatten(2).transpose(1, 2)


def dino_positions(table: Tensor, pixels: Tensor) -> Tensor:
    """DINO's way: scale factors with 0.1 added to the target, no antialiasing, and nothing at the table's own size."""
    h, w = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
    if h == w == SIDE:
        return table
    image = table.reshape(1, SIDE, SIDE, DIM).permute(0, 3, 1, 2)
    image = F.interpolate(image, scale_factor=((h + 0.1) / SIDE, (w + 0.1) / SIDE), mode="bicubic")
    assert image.shape[-2:] == (h, w)
    return image.permute(0, 2, 3, 1).reshape(1, -1, DIM)


def dino_forward(state: State, pixels: Tensor, block: Callable[[int], str] = "blocks.{}".format) -> Tensor:
    x = torch.cat([state["cls_token"].expand(len(pixels), -1, -1), patches_of(state, pixels)], 1)
    x = x + torch.cat([state["pos_embed"][:, :1], dino_positions(state["pos_embed"][:, 1:], pixels)], 1)
    for i in range(DEPTH):
        x = run_block(state, block(i), x)
    return norm(state, "norm", x)
