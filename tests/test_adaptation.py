"""`adapt=`: what moves and what stands still, what it costs, and that adapters merge into an ordinary ViT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import glocal
from glocal.errors import ConfigError, ModelError
from glocal.models.adaptation import AdaptConfig, LowRankLinear, adapt, adapters, merge_adapters
from glocal.models.backbone import BackboneConfig
from glocal.models.export import export_backbone
from glocal.models.teacher import MovingAverage
from glocal.models.vit import VisionTransformer
from glocal.objectives import RelationsConfig
from glocal.recipes import configure, continue_run
from glocal.training import loop
from glocal.training.config import RunConfig

CONFIG = BackboneConfig(size="micro", embed_dim=64, depth=3, num_heads=4, patch_size=8, image_size=32)
QUICK = [
    "training.batch_size=8",
    "training.steps=2",
    "probe.enabled=false",
    "verdict.enabled=false",
    "speed.workers=0",
    "speed.precision=fp32",
]


def pair(short: str, **settings: object) -> tuple[VisionTransformer, VisionTransformer]:
    torch.manual_seed(0)
    student = VisionTransformer(CONFIG)
    teacher = copy.deepcopy(student).requires_grad_(False)
    base = AdaptConfig.model_validate(short)
    adapt(student, teacher, base.model_copy(update=settings))
    return student, teacher


def moving(model: VisionTransformer) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def step(student: VisionTransformer, teacher: VisionTransformer, momentum: float = 0.5) -> None:
    features = student(torch.randn(2, 3, 32, 32))
    (features.cls.square().sum() + features.patches.square().sum()).backward()
    with torch.no_grad():
        for p in student.parameters():
            if p.grad is not None:
                p.sub_(1e-2 * p.grad / (p.grad.norm() + 1e-6))
    MovingAverage(teacher, student).update(momentum)


@pytest.mark.parametrize(
    ("short", "expected"),
    [
        ("last:1", lambda n: n.startswith(("blocks.2.", "norm."))),
        ("last:2", lambda n: n.startswith(("blocks.1.", "blocks.2.", "norm."))),
        ("norms", lambda n: "norm" in n),
        ("lora", lambda n: n.endswith((".down", ".up"))),
        ("full", lambda n: True),
    ],
)
def test_what_moves_and_what_stands_still(short: str, expected: Callable[[str], bool]) -> None:
    student, teacher = pair(short)
    names = [name for name, _ in student.named_parameters()]
    assert moving(student) == {n for n in names if expected(n)} and moving(teacher) == set()
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    step(student, teacher)
    for name, p in student.named_parameters():
        assert (p.grad is not None) == expected(name)
        if not expected(name):
            assert torch.equal(p, before[name]) and teacher.get_parameter(name) is p
    last = "blocks.2.attn.qkv.up" if short == "lora" else "blocks.2.norm1.bias"
    torch.testing.assert_close(teacher.get_parameter(last), (before[last] + student.get_parameter(last)) / 2)


def test_adapters_start_as_the_untouched_model_and_merge_into_an_ordinary_one() -> None:
    torch.manual_seed(0)
    untouched = VisionTransformer(CONFIG)
    student, teacher = pair("lora:4")
    pixels = torch.randn(2, 3, 24, 40)
    torch.testing.assert_close(student(pixels).patches, untouched(pixels).patches, rtol=0, atol=0)
    for _ in range(5):
        step(student, teacher)
    merged = merge_adapters(teacher)
    assert list(merged.state_dict()) == list(untouched.state_dict()) and not list(adapters(merged))
    difference = (merged(pixels).patches - teacher(pixels).patches).abs().max()
    moved = (teacher(pixels).patches - untouched(pixels).patches).abs().max()
    assert difference < 1e-5 < 1e-2 < moved


def test_an_update_is_its_definition() -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5)
    layer = LowRankLinear(base, rank=2, scale=0.5)
    layer.up.data.normal_()
    x = torch.randn(3, 6)
    expected = x @ (base.weight + 0.5 * layer.up @ layer.down).T + base.bias
    torch.testing.assert_close(layer(x), expected)


def test_targets_choose_the_layers() -> None:
    student, _ = pair("lora", targets=("qkv", "fc2"))
    assert {name.rpartition(".")[2] for name, _ in adapters(student)} == {"qkv", "fc2"}


@pytest.mark.parametrize(
    ("short", "message"),
    [("last:9", "asks for more blocks than the backbone has \\(3\\)"), ("lora", "found no layer named")],
)
def test_what_a_backbone_lacks_is_named(short: str, message: str) -> None:
    backbone = VisionTransformer(CONFIG) if short.startswith("last") else torch.nn.Sequential()
    with pytest.raises(ModelError, match=message):
        adapt(backbone, copy.deepcopy(backbone), AdaptConfig.model_validate(short))


def start(tmp_path: Path, *overrides: str) -> RunConfig:
    torch.manual_seed(0)
    weights = export_backbone(VisionTransformer(CONFIG), tmp_path / "weights")
    words = [*QUICK, *overrides]
    return configure(
        "dino", data="digits", out=str(tmp_path / "run"), preset="small", init=str(weights), overrides=words
    )


def test_a_run_leaves_an_ordinary_model_and_a_small_adapter(tmp_path: Path) -> None:
    run = loop.pretrain(start(tmp_path, "adapt=lora:2", "teacher.momentum=0"))
    ordinary = glocal.load(run)
    assert ordinary.backbone.config == CONFIG
    adapter = run / "export" / "adapter.safetensors"
    assert adapter.stat().st_size < (run / "export" / "model.safetensors").stat().st_size / 8
    pixels = torch.randn(2, 3, 32, 32)
    expected = ordinary.features(pixels).patches
    for spec in (adapter, run / "checkpoints" / "last.pt"):
        torch.testing.assert_close(glocal.load(spec).features(pixels).patches, expected, rtol=0, atol=1e-5)
    untouched = glocal.load(tmp_path / "weights")
    assert not torch.allclose(untouched.features(pixels).patches, expected, atol=1e-3)
    state = load_file(tmp_path / "weights" / "model.safetensors")
    with torch.no_grad():
        changed = VisionTransformer(CONFIG)
        changed.load_state_dict({n: t + 1e-3 for n, t in state.items()})
    export_backbone(changed, tmp_path / "weights")
    with pytest.raises(ModelError, match="which now holds other weights"):
        glocal.load(adapter)


def test_a_resumed_adaptation_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = loop.pretrain(start(tmp_path, "adapt=lora", "training.steps=4"))
    expected = load_file(whole / "export" / "adapter.safetensors")
    config = start(
        tmp_path, "adapt=lora", "training.steps=4", "training.keep_every=2", "training.checkpoint_every=2"
    )
    half = loop.pretrain(config.model_copy(update={"out": str(tmp_path / "half")}))
    (half / "checkpoints" / "step-2.pt").replace(half / "checkpoints" / "last.pt")
    loop.pretrain(continue_run(str(half), []), resume=True)
    found = load_file(half / "export" / "adapter.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("last:x", "last:BLOCKS"),
        ("norms:3", "last:BLOCKS"),
        ("half", "Input should be"),
        ("lora:0", "greater than"),
    ],
)
def test_a_wrong_word_is_explained(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start(tmp_path, f"adapt={value}")


def test_adapting_needs_weights() -> None:
    with pytest.raises(ConfigError, match=r"adapt=lora keeps most weights as they are.*give init=MODEL"):
        configure("dino", data="digits", out="x", preset="small", overrides=["adapt=lora"])


def test_an_earlier_self_of_an_adapted_model_is_an_ordinary_one(tmp_path: Path) -> None:
    config = start(tmp_path)
    terms = {"same": RelationsConfig(form="gram", targets="earlier", refresh_steps=1)}
    config = config.model_copy(update={"adapt": AdaptConfig.model_validate("lora"), "objectives": terms})
    assert glocal.load(loop.pretrain(config)).backbone.config == CONFIG
