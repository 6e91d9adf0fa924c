"""`init=`: what weights decide of a run, what contradicts them, and that their pixels' statistics reach every place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import small_config
from narrowing import of_kind
from safetensors.torch import load_file, save_file

import glocal
from glocal.errors import ConfigError, ModelError
from glocal.models.backbone import BackboneConfig
from glocal.models.export import export_backbone
from glocal.models.vit import VisionTransformer
from glocal.recipes import configure
from glocal.training import loop
from glocal.training.config import RunConfig
from glocal.views.augment import augment
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
SETTINGS = [
    "training.batch_size=8",
    "training.steps=1",
    "probe.enabled=false",
    "verdict.enabled=false",
    "speed.workers=0",
    "speed.precision=fp32",
]


def weights(folder: Path, **settings: object) -> Path:
    torch.manual_seed(0)
    values = {"size": "micro", "embed_dim": 64, "depth": 2, "num_heads": 4, "patch_size": 8, "image_size": 32}
    model = VisionTransformer(BackboneConfig.model_validate(values | settings))
    return export_backbone(model, folder, mean=MEAN, std=STD)


def start(init: object, *overrides: str, out: object = "unused", recipe: str = "dino") -> RunConfig:
    return configure(
        recipe, data="digits", out=str(out), preset="small", init=str(init), overrides=[*SETTINGS, *overrides]
    )


@pytest.mark.parametrize(
    "settings",
    [{"patch_size": 16}, {"registers": 2, "layer_scale": 1.0}, {"position": "rope"}, {"pooling": "mean"},
     {"pooling": "class_attention"}],
    ids=str,
)  # fmt: skip
def test_architecture_and_statistics_come_from_the_weights(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    folder = weights(tmp_path / "w", **settings)
    config = start(folder, out=tmp_path / "run")
    theirs = json.loads((folder / "config.json").read_text())["glocal"]["backbone"]
    assert config.backbone.model_dump(mode="json") == theirs
    assert (config.mean, config.std) == (MEAN, STD)
    run = loop.pretrain(config)
    encoder = glocal.load(run)
    assert (encoder.mean, encoder.std) == (MEAN, STD)
    assert "mean:\n- 0.5" in (run / "config.yaml").read_text()


def test_training_sees_pixels_of_the_weights_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = augment

    def spy(
        views: Views,
        groups: dict[str, ViewGroup],
        patch_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> Views:
        seen.append((mean, std))
        return original(views, groups, patch_size, mean, std)

    monkeypatch.setattr(loop, "augment", spy)
    loop.pretrain(start(weights(tmp_path / "w"), out=tmp_path / "run"))
    assert seen == [(MEAN, STD)]


def test_a_step_at_rate_zero_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    folder = weights(tmp_path / "w")
    config = start(folder, "optimiser.warmup_epochs=0", "teacher.momentum=1.0", out=tmp_path / "run")
    loop.pretrain(config)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "run" / "export"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.patch_size=4", r"backbone\.patch_size=4 where they have 8"),
        ("backbone.depth=3", r"backbone\.depth=3 where they have 2"),
        ("backbone.registers=4", r"backbone\.registers=4 where they have 0"),
        ("mean=[0.1,0.1,0.1]", r"mean=\(0\.1, 0\.1, 0\.1\) where they have \(0\.5"),
    ],
)
def test_a_setting_that_contradicts_the_weights_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    folder = weights(tmp_path / "w")
    with pytest.raises(ConfigError, match=message):
        start(folder, override)
    assert start(folder, "backbone.drop_path=0.2", "backbone.image_size=64").backbone.drop_path == 0.2


def test_a_configuration_made_by_hand_is_held_against_the_weights(tmp_path: Path) -> None:
    config = small_config(
        init=str(weights(tmp_path / "w", embed_dim=32, num_heads=2)), out=str(tmp_path / "run")
    )
    config = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": 8})})
    with pytest.raises(ConfigError, match=r"contradicts its weights: mean=\(0\.485.*where they have \(0\.5"):
        loop.pretrain(config)


def test_views_that_the_weights_patches_do_not_divide_are_named(tmp_path: Path) -> None:
    folder = weights(tmp_path / "w", patch_size=14, image_size=56)
    with pytest.raises(
        ConfigError, match=r"views\.global\.size is 64x64.*patches of 14.*set views\.global\.size=70"
    ):
        start(folder)
    sizes = ["views.global.size=70", "views.local.size=28"]
    assert start(folder, *sizes).backbone.patch_size == 14


def test_what_the_terms_need_and_the_weights_lack_is_named(tmp_path: Path) -> None:
    config = start(weights(tmp_path / "w"), recipe="selfpatch", out=tmp_path / "run")
    reference = config.model_copy(
        update={
            "objectives": {
                "n": config.objectives["neighbours"].model_copy(update={"aggregation": "class_attention"})
            }
        }
    )
    with pytest.raises(ConfigError, match="aggregation=class_attention, but the backbone has a class token"):
        loop.pretrain(reference)


def test_weights_of_one_channel_are_refused(tmp_path: Path) -> None:
    model = VisionTransformer(BackboneConfig(size="micro", patch_size=8, image_size=32, channels=1))
    folder = export_backbone(model, tmp_path, mean=(0.5,), std=(0.5,))
    with pytest.raises(ModelError, match="takes 1 channels, and images are read as three"):
        start(folder)


@pytest.mark.parametrize("which", ["last.pt", "checkpoints", "run"])
def test_our_own_checkpoints_are_read_exactly(tmp_path: Path, which: str) -> None:
    """A width of 64 with 4 heads: shapes alone would say one head."""
    run = loop.pretrain(start(weights(tmp_path / "w"), out=tmp_path / "run"))
    expected = glocal.load(run)
    spec = {"last.pt": run / "checkpoints" / "last.pt", "checkpoints": run / "checkpoints", "run": run}[which]
    for file in (run / "export").iterdir():
        file.rename(tmp_path / file.name)
    encoder, pixels = glocal.load(spec), torch.randn(2, 3, 40, 24)
    assert encoder.report is not None and encoder.report.layout == "glocal checkpoint"
    assert (encoder.mean, encoder.std, encoder.image_size) == (MEAN, STD, 64)
    torch.testing.assert_close(encoder.features(pixels).cls, expected.features(pixels).cls, rtol=0, atol=0)
    assert encoder.backbone.num_heads == 4


def test_a_checkpoint_says_itself_what_it_is_or_is_read_through_its_run(tmp_path: Path) -> None:
    run = loop.pretrain(start(weights(tmp_path / "w"), out=tmp_path / "run"))
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    alone = tmp_path / "alone.pt"
    first = {key: state[key] for key in ("step", "student", "teacher")} | {"format": 1}
    torch.save(first, alone)
    with pytest.raises(ModelError, match=r"checkpoint of format 1.*Put the file back into checkpoints/"):
        glocal.load(alone)
    torch.save(first, run / "checkpoints" / "step-1.pt")
    assert glocal.load(run / "checkpoints" / "step-1.pt").name == "run-step-1"
    config = of_kind(VisionTransformer, glocal.load(run).backbone).config
    text = json.dumps({"backbone": config.model_dump(mode="json"), "views": {"g": {"size": [48, 64]}}})
    torch.save(
        first | {"format": 2, "config": text, "mean": [0.1] * 3, "std": [0.2] * 3, "image_size": 56}, alone
    )
    encoder = glocal.load(alone)
    assert (encoder.mean, encoder.std, encoder.image_size) == ((0.1,) * 3, (0.2,) * 3, 56)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "[1, 2]", "holds a list, where a mapping"),
        ("config.json", "{", "can't be read as JSON"),
        ("config.json", '{"glocal": {}}', "can't be read as a model: .* is missing"),
        ("config.json", '{"glocal": {"backbone": {"dept": 3}}}', "no such setting"),
        ("config.json", '{"model_type": "vit"}', "can't be read as a model: .* is missing"),
        ("config.json", '{"pretrained_cfg": {"input_size": [3, 64, 32]}}', "only tables of square images"),
        ("config.json", '{"pretrained_cfg": {"std": [0, 0, 0]}}', "can't be divided by"),
        ("config.json", '{"pretrained_cfg": {"mean": "x"}}', "can't be read as a model: "),
    ],
)
def test_a_broken_folder_ends_in_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = weights(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises((ModelError, ConfigError), match=message) as caught:
        glocal.load(folder)
    assert "\n" not in str(caught.value)


def test_half_precision_is_widened_and_a_folder_without_config_is_named(tmp_path: Path) -> None:
    folder = weights(tmp_path / "w")
    state = load_file(folder / "model.safetensors")
    save_file({n: t.half() for n, t in state.items()}, folder / "model.safetensors")
    encoder = glocal.load(folder)
    assert {p.dtype for p in encoder.backbone.parameters()} == {torch.float32}
    loop.pretrain(start(folder, out=tmp_path / "run"))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no model folder.*It holds model\.safetensors"):
        start(folder)
