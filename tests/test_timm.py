"""The way to timm and from it, where timm is installed: it is an optional extra and brings torchvision along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from narrowing import of_kind
from safetensors.torch import load_file

import glocal
from glocal.errors import ModelError
from glocal.models.backbone import BackboneConfig
from glocal.models.build import build_backbone
from glocal.models.export import export_backbone
from glocal.models.timm_backbone import TimmBackbone
from glocal.models.vit import VisionTransformer
from glocal.recipes import configure
from glocal.training import loop

timm = pytest.importorskip("timm", reason="timm is not installed; `pip install timm` runs these tests")

QUICK = ["training.batch_size=4", "training.steps=1", "probe.enabled=false", "verdict.enabled=false",
         "speed.workers=0", "speed.precision=fp32", "optimiser.warmup_epochs=0"]  # fmt: skip


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_features_are_timms_own(name: str) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=0, img_size=112).eval()
    backbone, pixels = TimmBackbone(model), torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        found, expected = backbone(pixels), model.forward_features(pixels)
        middle = backbone.intermediate(pixels, [-12, -1])
    torch.testing.assert_close(found.cls, expected[:, 0])
    torch.testing.assert_close(found.patches, expected[:, model.num_prefix_tokens :])
    torch.testing.assert_close(middle[1].patches, found.patches)
    assert not torch.equal(middle[0].patches, found.patches)
    with pytest.raises(ModelError, match="no layer -13"):
        backbone.intermediate(pixels, [-13])


def test_an_exported_folder_is_a_timm_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = VisionTransformer(BackboneConfig(size="micro", patch_size=8, image_size=64)).eval()
    export_backbone(backbone, tmp_path, mean=(0.5,) * 3, std=(0.25,) * 3, image_size=64)
    model = as_timm_reads_it(tmp_path)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        ours = glocal.load(tmp_path).features(pixels)
    torch.testing.assert_close(ours.cls, tokens[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.patches, tokens[:, 1:], atol=1e-5, rtol=1e-5)


def as_timm_reads_it(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text())
    model = timm.create_model(config["architecture"], pretrained=False, num_classes=0, **config["model_args"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "deit3_small_patch16_224"]
)
def test_a_plain_vit_becomes_ours(name: str) -> None:
    encoder = glocal.load(f"timm-untrained:{name}")
    assert isinstance(encoder.backbone, VisionTransformer)
    assert encoder.mean == tuple(timm.create_model(name).pretrained_cfg["mean"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("convnext_atto", "ConvNeXt"), ("swin_tiny_patch4_window7_224", "SwinTransformer"),
     ("vit_tiny_r_s16_p8_224", "VisionTransformer"), ("vit_base_patch16_siglip_gap_224", "VisionTransformer")],
)  # fmt: skip
def test_other_models_give_their_own_grid_of_patches(name: str, kind: str) -> None:
    encoder = glocal.load(f"timm-untrained:{name}")
    if isinstance(encoder.backbone, VisionTransformer):
        assert name.endswith("gap_224")
        return
    assert type(encoder.backbone.model).__name__ == kind
    side = encoder.patch_size
    pixels = torch.randn(2, 3, 4 * side, 5 * side)
    features = encoder.features(pixels)
    with torch.no_grad():
        expected = of_kind(TimmBackbone, encoder.backbone).model.forward_features(pixels)
    if expected.ndim == 4:
        expected = (expected if kind == "SwinTransformer" else expected.movedim(1, -1)).flatten(1, 2)
    torch.testing.assert_close(features.patches, expected[:, -20:], atol=1e-5, rtol=1e-5)
    assert features.grid == (4, 5) and features.cls.shape == (2, encoder.embed_dim)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_model_that_is_no_vit_trains_and_leaves_as_it_came(name: str, tmp_path: Path) -> None:
    overrides = [*QUICK, "views.global.size=64", "views.local.size=32", "views.local.count=1"]
    overrides += ["views.global.keep_patches=1", "views.local.keep_patches=1"]
    out, init = str(tmp_path / "run"), f"timm-untrained:{name}"
    run = loop.pretrain(
        configure("pw-self", data="digits", out=out, preset="small", init=init, overrides=overrides)
    )
    encoder, again = glocal.load(run), glocal.load(run / "checkpoints" / "last.pt")
    assert of_kind(TimmBackbone, encoder.backbone).config.timm == name
    pixels = torch.randn(1, 3, 64, 96)
    model = as_timm_reads_it(run / "export")
    with torch.no_grad():
        maps = model.forward_intermediates(
            pixels, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
    for loaded in (encoder, again):
        torch.testing.assert_close(
            loaded.features(pixels).patches, maps[-1].flatten(2).mT, atol=1e-5, rtol=1e-5
        )


def test_a_timm_folder_goes_in_with_its_statistics_and_out_again(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto", pretrained=False, num_classes=0).eval()
    from safetensors.torch import save_file

    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    about = {"architecture": "convnext_atto", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "config.json").write_text(json.dumps(about))
    encoder, pixels = glocal.load(folder), torch.randn(1, 3, 64, 64)
    assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.25,) * 3)
    export_backbone(
        of_kind(TimmBackbone, encoder.backbone), tmp_path / "out", mean=encoder.mean, std=encoder.std
    )
    again = as_timm_reads_it(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(again.forward_features(pixels), model.forward_features(pixels))


def test_models_that_can_not_be_trained_say_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="keeps running statistics"):
        configure("dino", data="digits", out="x", preset="small", init="timm-untrained:resnet18")
    with pytest.raises(ModelError, match="timm can't make 'nothing'"):
        glocal.load("timm-untrained:nothing")
    backbone = build_backbone(
        of_kind(TimmBackbone, glocal.load("timm-untrained:convnext_atto").backbone).config
    )
    with pytest.raises(ModelError, match="sees whole images only"):
        backbone(torch.zeros(1, 3, 64, 64), kept=torch.zeros(1, 2, dtype=torch.long))
