"""Export and reload; the encoder's manners."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from glocal.errors import ModelError
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.export import export_backbone
from glocal.models.loading import load
from glocal.models.vit import VisionTransformer


def backbone(**settings: object) -> VisionTransformer:
    torch.manual_seed(0)
    values = {"size": "micro", "patch_size": 8, "image_size": 32} | settings
    return VisionTransformer(BackboneConfig.model_validate(values))


@pytest.mark.parametrize(
    "settings",
    [{}, {"registers": 4, "layer_scale": 0.1}, {"pooling": "class_attention"}, {"position": "rope"}],
    ids=str,
)
def test_what_is_exported_loads_equal(settings: dict[str, object], tmp_path: Path) -> None:
    model = backbone(drop_path=0.2, **settings).train()
    folder = export_backbone(
        model, tmp_path / "run" / "export", mean=(0.1, 0.2, 0.3), image_size=48, extra={"epoch": 3}
    )
    assert model.training and sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    encoder = load(tmp_path / "run")
    pixels = torch.randn(2, 3, 48, 24)
    found, expected = encoder.features(pixels), model.eval()(pixels)
    torch.testing.assert_close(found.cls, expected.cls)
    torch.testing.assert_close(found.patches, expected.patches)
    assert encoder.name == "run" and encoder.mean == (0.1, 0.2, 0.3) and encoder.image_size == 48
    assert isinstance(encoder.backbone, VisionTransformer) and encoder.backbone.config == model.config
    assert json.loads((folder / "config.json").read_text())["glocal"]["extra"] == {"epoch": 3}
    assert encoder.report is not None and encoder.report.summary().endswith(
        "0 missing, 0 unexpected, 0 ignored"
    )


def test_broken_weights_are_not_passed_on(tmp_path: Path) -> None:
    model = backbone()
    with torch.no_grad():
        model.get_parameter("norm.weight").fill_(float("nan"))
    with pytest.raises(ModelError, match="differs from the one in memory by nan"):
        export_backbone(model, tmp_path / "export")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match=r"failed: .*choose another folder"):
        export_backbone(backbone(), tmp_path / "file" / "export")


def test_an_export_cut_short_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_backbone(backbone(), tmp_path / "export")
    before = load(folder).fingerprint()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glocal.models.export.save_file", full_disk)
    changed = backbone()
    with torch.no_grad():
        changed.get_parameter("norm.weight").add_(1)
    with pytest.raises(ModelError, match="No space left"):
        export_backbone(changed, folder)
    assert load(folder).fingerprint() == before and len(list(folder.iterdir())) == 2


def test_an_encoder_leaves_modes_and_gradients_alone() -> None:
    model = backbone(drop_path=0.5).train()
    encoder = Encoder("training", model, 64, 8, 32)
    pixels = torch.randn(8, 3, 32, 32)
    first = encoder.features(pixels)
    torch.testing.assert_close(first.cls, encoder.features(pixels).cls)
    assert model.training and not first.cls.requires_grad and not first.cls.is_inference()
    torch.testing.assert_close(encoder.intermediate(pixels, [-1])[0].cls, first.cls)
    assert encoder.last_keys(pixels).shape == (8, 16, 64) and encoder.attention(pixels).shape == (8, 4, 16)


def test_the_fingerprint_sees_every_weight_and_the_preprocessing() -> None:
    model = backbone()
    encoder = Encoder("a", model, 64, 8, 32)
    before = encoder.fingerprint()
    assert before == Encoder("another name", model, 64, 8, 32).fingerprint()
    assert before != Encoder("a", model, 64, 8, 32, mean=(0.5, 0.5, 0.5)).fingerprint()
    with torch.no_grad():
        model.blocks[3].get_parameter("mlp.fc2.bias")[5] += 1e-3
    assert encoder.fingerprint() != before


def test_what_a_backbone_cannot_give_is_named() -> None:
    encoder = Encoder("plain", torch.nn.Linear(3, 3), 3, 8, 32)
    with pytest.raises(ModelError, match=r"plain \(Linear\) gives no attention maps"):
        encoder.attention(torch.zeros(1, 3, 8, 8))


def test_everyone_whom_the_system_allows_may_read_an_export(tmp_path: Path) -> None:
    former = os.umask(0o022)
    try:
        folder = export_backbone(backbone(), tmp_path / "export")
    finally:
        os.umask(former)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
