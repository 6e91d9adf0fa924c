"""The way to timm and from it, where timm is installed: it is an optional extra and brings torchvision along."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import glocal
from glocal.errors import ModelError
from glocal.models.export import export_backbone
from glocal.models.timm_backbone import TimmBackbone
from glocal.models.vit import BackboneConfig, VisionTransformer

timm = pytest.importorskip("timm", reason="timm is not installed; `pip install timm` runs these tests")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_features_are_timms_own(name):
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


def test_an_exported_folder_is_a_timm_model(tmp_path):
    torch.manual_seed(0)
    backbone = VisionTransformer(BackboneConfig(size="micro", patch_size=8, image_size=64)).eval()
    export_backbone(backbone, tmp_path, mean=(0.5,) * 3, std=(0.25,) * 3, image_size=64)
    config = json.loads((tmp_path / "config.json").read_text())
    model = timm.create_model(
        config["architecture"], pretrained=False, num_classes=0, **config["model_args"]
    ).eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        ours = glocal.load(tmp_path).features(pixels)
    torch.testing.assert_close(ours.cls, tokens[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.patches, tokens[:, 1:], atol=1e-5, rtol=1e-5)
