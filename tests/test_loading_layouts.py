"""Released layouts: a plain re-statement of each original's forward pass, under its names, equals the loaded model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from slow_layouts import (
    DEPTH,
    DIM,
    HEADS,
    PATCH,
    SIDE,
    dino_forward,
    dino_positions,
    linear,
    norm,
    patches_of,
    random_state,
    run_block,
    vit_shapes,
)
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import ModelError
from glocal.models.backbone import BackboneConfig
from glocal.models.loading import load, load_into
from glocal.models.vit import VisionTransformer

PIXELS = {name: torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
          for name, size in (("square", (40, 40)), ("other", (24, 56)))}  # fmt: skip
sizes = pytest.mark.parametrize("pixels", PIXELS.values(), ids=PIXELS)


def check(file: Path, pixels: Tensor, expected: Tensor, layout: str, prefix: int = 1) -> None:
    encoder = load(file)
    assert encoder.report is not None and encoder.report.layout == layout
    assert not encoder.report.missing and not encoder.report.unexpected
    found = encoder.features(pixels)
    torch.testing.assert_close(found.cls, expected[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.patches, expected[:, prefix:], atol=1e-5, rtol=1e-5)


@sizes
def test_dino_equals_its_forward_pass(pixels: Tensor, tmp_path: Path) -> None:
    state = random_state(vit_shapes())
    torch.save(state, tmp_path / "dino.pth")
    check(tmp_path / "dino.pth", pixels, dino_forward(state, pixels), "dino")


@sizes
def test_a_full_dino_checkpoint_gives_the_teacher(pixels: Tensor, tmp_path: Path) -> None:
    state = random_state(vit_shapes())
    teacher = {f"backbone.{n}": t for n, t in state.items()} | {"head.mlp.0.weight": torch.randn(8, DIM)}
    student = {f"module.{n}": torch.zeros_like(t) for n, t in teacher.items()}
    full = {"student": student, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(lr=1.0, data="x")}
    torch.save(full, tmp_path / "full.pth")
    check(tmp_path / "full.pth", pixels, dino_forward(state, pixels), "dino")
    report = load(tmp_path / "full.pth").report
    assert report is not None and report.network == "teacher" and report.ignored == ("head.mlp.0.weight",)


def test_ibot_mugs_and_mae_leave_out_what_is_no_backbone(tmp_path: Path) -> None:
    state = random_state(vit_shapes())
    pixels = PIXELS["square"]
    expected = dino_forward(state, pixels)
    torch.save({"state_dict": state | {"masked_embed": torch.zeros(1, DIM)}}, tmp_path / "a.pth")
    check(tmp_path / "a.pth", pixels, expected, "ibot")
    relation = {n.replace("blocks.0", "relation_blocks.0"): t for n, t in state.items() if "blocks.0" in n}
    torch.save({"state_dict": state | relation}, tmp_path / "b.pth")
    check(tmp_path / "b.pth", pixels, expected, "mugs")
    decoder = {"decoder_embed.weight": torch.zeros(9, DIM), "mask_token": torch.zeros(1, 1, 9)}
    torch.save({"model": state | decoder}, tmp_path / "c.pth")
    check(tmp_path / "c.pth", pixels, expected, "mae")
    torch.save({"model": state}, tmp_path / "d.pth")
    check(tmp_path / "d.pth", pixels, expected, "mae")


@sizes
def test_timm_states_are_resized_with_antialiasing(pixels: Tensor, tmp_path: Path) -> None:
    state = random_state(vit_shapes())
    save_file(
        state | {"head.weight": torch.zeros(10, DIM), "head.bias": torch.zeros(10)},
        tmp_path / "a.safetensors",
    )
    x = torch.cat([state["cls_token"].expand(2, -1, -1), patches_of(state, pixels)], 1)
    grid = (pixels.shape[2] // PATCH, pixels.shape[3] // PATCH)
    table = state["pos_embed"][:, 1:].reshape(1, SIDE, SIDE, DIM).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    x = x + torch.cat([state["pos_embed"][:, :1], table], 1)
    for i in range(DEPTH):
        x = run_block(state, f"blocks.{i}", x)
    check(tmp_path / "a.safetensors", pixels, norm(state, "norm", x), "timm")


@sizes
@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov2_equals_its_forward_pass(pixels: Tensor, swiglu: bool, tmp_path: Path) -> None:
    def chunked(i: int) -> str:
        return f"blocks.{i // 2}.{i}"

    shapes = vit_shapes(block=chunked, scale=True)
    if swiglu:
        for name in [n for n in shapes if ".mlp." in n]:
            del shapes[name]
        for i in range(DEPTH):
            shapes |= {f"{chunked(i)}.mlp.w12.weight": (352, DIM), f"{chunked(i)}.mlp.w12.bias": (352,),
                       f"{chunked(i)}.mlp.w3.weight": (DIM, 176), f"{chunked(i)}.mlp.w3.bias": (DIM,)}  # fmt: skip
    state = random_state(shapes)
    torch.save(state | {"mask_token": torch.zeros(1, DIM)}, tmp_path / "dinov2.pth")
    check(tmp_path / "dinov2.pth", pixels, dino_forward(state, pixels, chunked), "dinov2")


@sizes
def test_dinov2_with_registers_equals_its_forward_pass(pixels: Tensor, tmp_path: Path) -> None:
    state = random_state(vit_shapes(scale=True) | {"register_tokens": (1, 4, DIM)})
    torch.save(state | {"mask_token": torch.zeros(1, DIM)}, tmp_path / "reg.pth")
    grid = (pixels.shape[2] // PATCH, pixels.shape[3] // PATCH)
    table = state["pos_embed"][:, 1:].reshape(1, SIDE, SIDE, DIM).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    first = (state["cls_token"] + state["pos_embed"][:, :1]).expand(2, -1, -1)
    x = torch.cat([first, state["register_tokens"].expand(2, -1, -1), patches_of(state, pixels) + table], 1)
    for i in range(DEPTH):
        x = run_block(state, f"blocks.{i}", x)
    check(tmp_path / "reg.pth", pixels, norm(state, "norm", x), "dinov2_registers", prefix=5)


@sizes
@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov3_equals_its_forward_pass(pixels: Tensor, swiglu: bool, tmp_path: Path) -> None:
    shapes = vit_shapes(rows=None, scale=True) | {"storage_tokens": (1, 4, DIM)}
    if swiglu:
        for name in [n for n in shapes if ".mlp." in n]:
            del shapes[name]
        for i in range(DEPTH):
            shapes |= {f"blocks.{i}.mlp.w{n}.weight": (192, DIM) for n in (1, 2)} | {
                f"blocks.{i}.mlp.w{n}.bias": (192,) for n in (1, 2)
            }
            shapes |= {f"blocks.{i}.mlp.w3.weight": (DIM, 192), f"blocks.{i}.mlp.w3.bias": (DIM,)}
    state = random_state(shapes)
    quarter = DIM // HEADS // 4
    periods = 100.0 ** (torch.arange(quarter) / quarter)
    saved = state | {"rope_embed.periods": periods, "mask_token": torch.zeros(1, DIM)}
    for i in range(DEPTH):
        mask = torch.ones(3 * DIM)
        mask[DIM : 2 * DIM] = 0
        saved[f"blocks.{i}.attn.qkv.bias_mask"] = mask
        state[f"blocks.{i}.attn.qkv.bias"] = state[f"blocks.{i}.attn.qkv.bias"] * mask
    torch.save(saved, tmp_path / "dinov3.pth")

    h, w = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
    angles = torch.zeros(5 + h * w, DIM // HEADS)
    for row in range(h):
        for column in range(w):
            centre = torch.tensor([[2 * (row + 0.5) / h - 1], [2 * (column + 0.5) / w - 1]])
            angles[5 + row * w + column] = (2 * np.pi * centre / periods).flatten().repeat(2)
    sign = torch.cat([-torch.ones(2 * quarter), torch.ones(2 * quarter)])
    x = torch.cat(
        [
            state["cls_token"].expand(2, -1, -1),
            state["storage_tokens"].expand(2, -1, -1),
            patches_of(state, pixels),
        ],
        1,
    )
    for i in range(DEPTH):
        x = run_block(state, f"blocks.{i}", x, (angles.cos(), angles.sin() * sign), eps=1e-5)
    check(tmp_path / "dinov3.pth", pixels, norm(state, "norm", x, 1e-5), "dinov3", prefix=5)


@sizes
@pytest.mark.parametrize(
    ("query", "blocks"), [("head.cls_token", "head.blocks_token_only"), ("head.query", "head.ca.blocks")]
)
def test_selfpatch_equals_its_forward_pass(pixels: Tensor, query: str, blocks: str, tmp_path: Path) -> None:
    parent = blocks.rpartition(".")[0]
    query = f"{parent}.{query.rpartition('.')[2]}"
    shapes = vit_shapes(class_token=False, rows=SIDE**2, final_norm=False)
    shapes |= {query: (1, 1, DIM), f"{parent}.norm.weight": (DIM,), f"{parent}.norm.bias": (DIM,)}
    for i in range(2):
        layers = {"norm1": (DIM,), "norm2": (DIM,), "mlp.fc1": (4 * DIM, DIM), "mlp.fc2": (DIM, 4 * DIM)}
        for name, shape in (
            layers | {f"attn.{part}": (DIM, DIM) for part in ("q", "k", "v", "proj")}
        ).items():
            shapes |= {f"{blocks}.{i}.{name}.weight": shape, f"{blocks}.{i}.{name}.bias": shape[:1]}
    state = random_state(shapes)
    saved = {(n if n.startswith("head.") else f"backbone.{n}"): t for n, t in state.items()}
    saved |= {"head.mlp.0.weight": torch.zeros(8, DIM), "head_patch.last_layer.weight_g": torch.ones(8, 1)}
    torch.save({"teacher": saved}, tmp_path / "selfpatch.pth")

    x = patches_of(state, pixels) + dino_positions(state["pos_embed"], pixels)
    for i in range(DEPTH):
        x = run_block(state, f"blocks.{i}", x)
    u = state[query].expand(2, -1, -1)
    for i in range(2):
        z = norm(state, f"{blocks}.{i}.norm1", torch.cat([u, x], 1))
        q, k, v = (linear(state, f"{blocks}.{i}.attn.{n}", t).unflatten(2, (HEADS, -1)).transpose(1, 2)
                   for n, t in (("q", z[:, :1]), ("k", z), ("v", z)))  # fmt: skip
        attended = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v
        u = u + linear(state, f"{blocks}.{i}.attn.proj", attended.transpose(1, 2).flatten(2))
        z = norm(state, f"{blocks}.{i}.norm2", u)
        u = u + linear(state, f"{blocks}.{i}.mlp.fc2", F.gelu(linear(state, f"{blocks}.{i}.mlp.fc1", z)))
    expected = norm(state, f"{parent}.norm", torch.cat([u, x], 1))
    check(tmp_path / "selfpatch.pth", pixels, expected, "selfpatch")


@sizes
def test_selfpatch_without_its_head_gives_patches_before_the_norm_and_their_mean(
    pixels: Tensor, tmp_path: Path
) -> None:
    state = random_state(vit_shapes(class_token=False, rows=SIDE**2, final_norm=False))
    torch.save(state, tmp_path / "flat.pth")
    x = patches_of(state, pixels) + dino_positions(state["pos_embed"], pixels)
    for i in range(DEPTH):
        x = run_block(state, f"blocks.{i}", x)
    check(tmp_path / "flat.pth", pixels, torch.cat([x.mean(1, keepdim=True), x], 1), "selfpatch")
    report = load(tmp_path / "flat.pth").report
    assert report is not None and "lacks SelfPatch's class-attention head" in report.summary()


def test_partial_and_unknown_files_are_refused_by_name(tmp_path: Path) -> None:
    state = random_state(vit_shapes())
    file = tmp_path / "weights.pth"
    torch.save({n: t for n, t in state.items() if n != "norm.weight"}, file)
    with pytest.raises(ModelError, match=r"only in part.*1 missing \(norm.weight\)"):
        load(file)
    torch.save(state | {"blocks.0.attn.gate.weight": torch.zeros(3)}, file)
    with pytest.raises(ModelError, match=r"1 unexpected \(blocks.0.attn.gate.weight\)"):
        load(file)
    torch.save({"conv1.weight": torch.zeros(3)}, file)
    with pytest.raises(ModelError, match=r"no Vision Transformer checkpoint that glocal knows.*conv1.weight"):
        load(file)
    torch.save({n: t for n, t in state.items() if "blocks" not in n}, file)
    with pytest.raises(ModelError, match="lacks what every backbone has"):
        load(file)
    torch.save(state | {"pos_embed": torch.zeros(1, 13, DIM)}, file)
    with pytest.raises(ModelError, match="13 rows fits no square grid"):
        load(file)


def test_files_that_run_code_or_are_no_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"model": {}, "callback": Path("x"), "f": test_dino_equals_its_forward_pass}, file)
    with pytest.raises(ModelError, match="holds Python objects beside weights"):
        load(file)
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match=r"can't be read|Python objects"):
        load(file)
    (tmp_path / "x.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="can't be read as safetensors"):
        load(tmp_path / "x.safetensors")
    torch.save({"epoch": 3}, file)
    with pytest.raises(ModelError, match="holds no weights"):
        load(file)
    with pytest.raises(ModelError, match="There is no model at"):
        load(tmp_path / "absent.pth")
    (tmp_path / "run").mkdir()
    with pytest.raises(ModelError, match="is no model folder"):
        load(tmp_path / "run")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match="no weight file"):
        load(tmp_path / "notes.txt")


def test_settings_override_what_shapes_do_not_show(tmp_path: Path) -> None:
    torch.save(random_state(vit_shapes()), tmp_path / "a.pth")
    backbone = load(tmp_path / "a.pth", {"num_heads": 8}).backbone
    assert isinstance(backbone, VisionTransformer) and backbone.num_heads == 8


def test_training_can_start_from_weights_of_another_image_size(tmp_path: Path) -> None:
    state = random_state(vit_shapes())
    torch.save(state, tmp_path / "a.pth")
    config = BackboneConfig(embed_dim=DIM, depth=DEPTH, num_heads=HEADS, patch_size=PATCH, image_size=24)
    backbone = VisionTransformer(config)
    load_into(backbone, load(tmp_path / "a.pth"))
    assert backbone.pos_embed is not None and backbone.pos_embed.shape == (1, 10, DIM)
    assert backbone.pos_embed.requires_grad
    torch.testing.assert_close(
        backbone.blocks[2].get_parameter("mlp.fc1.weight"), state["blocks.2.mlp.fc1.weight"]
    )
    other = VisionTransformer(config.model_copy(update={"depth": 2}))
    with pytest.raises(ModelError, match=r"another architecture.*blocks\.2"):
        load_into(other, load(tmp_path / "a.pth"))


def test_a_timm_folder_brings_its_statistics(tmp_path: Path) -> None:
    save_file(random_state(vit_shapes()), tmp_path / "model.safetensors")
    config = {"architecture": "vit", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load(tmp_path)
    assert encoder.mean == (0.5,) * 3 and encoder.std == (0.25,) * 3
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    torch.testing.assert_close(encoder.normalise(white), torch.full((1, 3, 8, 8), 2.0))
