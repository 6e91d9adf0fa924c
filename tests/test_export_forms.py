"""`glocal export`: every form is read back and equal; what a form has no place for is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import glocal
from glocal.errors import ConfigError, ModelError
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.export_check import compare, refuse_differences, three_sizes
from glocal.models.export_forms import Form, export_model
from glocal.models.position import _resampling_matrix, resampling_weights
from glocal.models.vit import VisionTransformer

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)


def encoder(**settings: object) -> Encoder:
    torch.manual_seed(0)
    values = {"size": "micro", "depth": 1, "patch_size": 8, "image_size": 40} | settings
    model = VisionTransformer(BackboneConfig.model_validate(values)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    about = {"recipe": "dino", "data": "photos/", "terms": {"image": "image_level"}, "licence": "apache-2.0"}
    return Encoder("mine", model, 64, 8, 40, MEAN, STD, provenance=about)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("source", [3, 5, 14])
def test_the_written_out_resampling_is_torchs(source: int, offset: float, antialias: bool) -> None:
    for target in (2, 3, 5, 8, 14, 20):
        expected = torch.eye(source)
        if target != source:
            expected = _resampling_matrix(source, target, antialias, offset, torch.device("cpu"))
        torch.testing.assert_close(
            resampling_weights(source, target, antialias, offset), expected, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    "settings",
    [{}, {"position_antialias": False, "qkv_bias": False}, {"registers": 2, "layer_scale": 0.3, "ffn": "swiglu"},
     {"position": "rope", "registers": 1, "norm_eps": 1e-5}, {"position": "rope", "ffn": "swiglu", "layer_scale": 0.5}],
    ids=str,
)  # fmt: skip
def test_transformers_reads_it_without_our_code(settings: dict[str, object], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    exported = export_model(encoder(**settings), "transformers", tmp_path / "out")
    assert max(d.value for d in exported.differences) < 1e-5
    assert {d.size for d in exported.differences} == {(40, 40), (16, 16), (40, 56)}
    processor = transformers.AutoImageProcessor.from_pretrained(exported.folder)
    assert tuple(processor.image_mean) == MEAN and tuple(processor.image_std) == STD
    again = glocal.load(exported.folder)
    assert (again.mean, again.std, again.image_size) == (MEAN, STD, 40)
    assert again.provenance["licence"] == "apache-2.0"


def test_timm_form_is_ours_and_its_card_tells_where_it_comes_from(tmp_path: Path) -> None:
    exported = export_model(encoder(), "timm", tmp_path / "out")
    card = (exported.folder / "README.md").read_text()
    assert (
        "license: apache-2.0" in card
        and "| terms | image (image_level) |" in card
        and "| data | photos/ |" in card
    )
    assert all(
        f"| {d.size[0]}x{d.size[1]} | {d.images} | {d.value:.1e} |" in card for d in exported.differences
    )
    assert glocal.load(exported.folder).provenance["recipe"] == "dino"


@pytest.mark.usefixtures("unchecked")  # Sides are symbols while torch.export traces, and no integers.
@pytest.mark.parametrize("settings", [{}, {"position": "rope", "pooling": "class_attention"}], ids=str)
def test_a_program_takes_any_size_and_number(settings: dict[str, object], tmp_path: Path) -> None:
    model = encoder(**settings)
    exported = export_model(model, "program", tmp_path / "out")
    assert max(d.value for d in exported.differences) < 1e-5
    program = torch.export.load(exported.folder / "model.pt2").module()
    pixels = torch.randn(5, 3, 24, 72)
    torch.testing.assert_close(program(pixels)[1], model.features(pixels).patches, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # a traced side is a symbol, no int
@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("settings", [{}, {"position": "rope", "registers": 2, "ffn": "swiglu"}], ids=str)
def test_onnx_takes_any_size_or_one(settings: dict[str, object], size: int | None, tmp_path: Path) -> None:
    """The exporter works for about half a minute."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = encoder(**settings)
    exported = export_model(model, "onnx", tmp_path / "out", size)
    assert max(d.value for d in exported.differences) < 1e-5
    session = onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = torch.randn(3, 3, *((40, 40) if size else (24, 64)))
    cls, _ = session.run(None, {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(cls), model.features(pixels).cls, atol=1e-5, rtol=1e-5)


def test_a_difference_is_seen_and_refused() -> None:
    model, other = encoder(), encoder()
    with torch.no_grad():
        other.backbone.get_parameter("blocks.0.mlp.fc2.bias")[3] += 0.1

    def run(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = other.features(pixels)
        return features.cls, features.patches

    with pytest.raises(ModelError, match=r"differs from the model by .* on random images of 40x40 pixels"):
        refuse_differences(compare(model, run, three_sizes(model)), "The export")


@pytest.mark.parametrize(
    ("settings", "to", "size", "message"),
    [
        ({"pooling": "mean"}, "transformers", None, "no class for pooling=mean"),
        ({"ffn_hidden": 100}, "transformers", None, "feed-forward width of 100"),
        ({}, "timm", 40, "takes any size. Leave it out"),
        ({}, "program", 30, "no multiple of the patch .8 pixels.. Choose 32"),
    ],
)
def test_what_a_form_has_no_place_for_is_named(
    settings: dict[str, object], to: Form, size: int | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, ModelError), match=message):
        export_model(encoder(**settings), to, tmp_path / "out", size)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_model(encoder(), "timm", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
