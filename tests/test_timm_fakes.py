"""The wrapper of timm's models against a stand-in for timm, so that it is tested where timm is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from narrowing import of_kind
from torch import nn

import glocal
from glocal.errors import ConfigError, ModelError
from glocal.models.export import export_backbone
from glocal.models.timm_backbone import TimmBackbone
from glocal.recipes import configure
from glocal.training import loop

QUICK = ["training.batch_size=4", "training.steps=1", "probe.enabled=false", "verdict.enabled=false",
         "speed.workers=0", "speed.precision=fp32", "views.global.keep_patches=1"]  # fmt: skip


class FakeConvNet(nn.Module):
    """Two stages that end in a map of 24 channels and stride 8."""

    feature_info = (
        {"num_chs": 8, "reduction": 4, "module": "stages.0"},
        {"num_chs": 24, "reduction": 8, "module": "stages.1"},
    )

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Conv2d(width, 24, 2, 2))
        self.norm = nn.GroupNorm(1, 24)

    def forward_intermediates(
        self, x: torch.Tensor, indices: int, norm: bool, output_fmt: str, intermediates_only: bool
    ) -> list[torch.Tensor]:
        assert (indices, norm, output_fmt, intermediates_only) == (1, True, "NCHW", True)
        return [self.norm(self.stages(x))]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module named timm that knows one architecture; `dynamic_img_size` is unknown to it."""
    fake, data = ModuleType("timm"), ModuleType("timm.data")
    torch.manual_seed(0)

    def create_model(name: str, pretrained: bool, num_classes: int, **arguments: Any) -> FakeConvNet:
        if name == "batchnorm":
            model = FakeConvNet(**arguments)
            setattr(model, "norm", nn.BatchNorm2d(24))  # noqa: B010
            return model
        if name != "fake":
            raise RuntimeError(f"Unknown model ({name})")
        return FakeConvNet(**arguments)

    about = {"input_size": (3, 36, 36), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    vars(fake).update(create_model=create_model, data=data)
    vars(data).update(resolve_model_data_config=lambda model: about)
    monkeypatch.setitem(sys.modules, "timm", fake)
    monkeypatch.setitem(sys.modules, "timm.data", data)


def test_a_map_becomes_patches_and_their_mean(timm: None) -> None:
    encoder = glocal.load("timm-untrained:fake")
    assert (encoder.patch_size, encoder.embed_dim, encoder.image_size) == (8, 24, 32)
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    pixels = torch.randn(2, 3, 24, 16)
    features = encoder.features(pixels)
    with torch.no_grad():
        inner = of_kind(FakeConvNet, encoder.backbone.model)
        expected = inner.norm(inner.stages(pixels))
    assert features.grid == (3, 2)
    torch.testing.assert_close(features.patches[:, 3], expected[:, :, 1, 1])
    torch.testing.assert_close(features.cls, expected.mean(dim=(2, 3)))
    with pytest.raises(ModelError, match=r"20x16 image can't be cut into cells of 8"):
        encoder.features(pixels[:, :, :20])
    with pytest.raises(ModelError, match="no layer -2"):
        encoder.intermediate(pixels, [-2])


def test_it_trains_and_comes_back_from_export_and_checkpoint(timm: None, tmp_path: Path) -> None:
    config = configure(
        "local-global",
        data="digits",
        out=str(tmp_path / "run"),
        preset="cifar",
        init="timm-untrained:fake",
        overrides=QUICK,
    )
    assert config.backbone.timm == "fake" and config.mean == (0.1, 0.2, 0.3)
    run = loop.pretrain(config)
    encoder, pixels = glocal.load(run), torch.randn(1, 3, 32, 32)
    again = glocal.load(run / "checkpoints" / "last.pt")
    assert encoder.mean == (0.1, 0.2, 0.3) and encoder.backbone.config == config.backbone
    torch.testing.assert_close(encoder.features(pixels).cls, again.features(pixels).cls)


def test_layer_decay_goes_by_stages(timm: None) -> None:
    from glocal.models.depth_groups import depth_of

    backbone = of_kind(TimmBackbone, glocal.load("timm-untrained:fake").backbone)
    depths = {name: depth_of(name, len(backbone.blocks)) for name, _ in backbone.named_parameters()}
    assert depths["model.stages.0.weight"] == 1 and depths["model.stages.1.bias"] == 2
    assert depths["model.norm.weight"] == 3


def test_what_can_not_be_is_said_in_a_sentence(timm: None, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="timm can't make 'other'"):
        glocal.load("timm-untrained:other")
    with pytest.raises(ModelError, match="keeps running statistics"):
        configure("dino", data="digits", out="x", preset="cifar", init="timm-untrained:batchnorm")
    with pytest.raises(
        ConfigError, match=r"timm's fake is no Vision Transformer of ours.* set views\.global\.keep_patches=1"
    ):
        configure(
            "dino",
            data="digits",
            out="x",
            preset="cifar",
            init="timm-untrained:fake",
            overrides=["views.global.keep_patches=0.5"],
        )
    folder = export_backbone(of_kind(TimmBackbone, glocal.load("timm-untrained:fake").backbone), tmp_path)
    (folder / "config.json").write_text('{"architecture": "fake", "model_args": {"width": 9}}')
    with pytest.raises(ModelError, match="size mismatch"):
        glocal.load(folder)


def test_without_timm_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs timm\. Install it: pip install 'glocal\[timm\]'"):
        glocal.load("timm:convnext_atto")
