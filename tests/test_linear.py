"""The linear probe, low-shot logistic regression and fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import MemorySource, coloured, small_encoder
from narrowing import present
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from glocal.errors import ConfigError, DataError
from glocal.evaluation.classification.finetune import FineTune, parameter_groups
from glocal.evaluation.classification.linear import LinearProbe, rank_classes, readouts_for, train_heads
from glocal.evaluation.classification.logistic import LowShot, draw_shots
from glocal.extraction.image_embeddings import extract_embeddings
from glocal.extraction.work import Work
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.loading import load
from glocal.models.vit import VisionTransformer

QUIET = Work(progress=False)


def blobs(rows: int, seed: int = 0, classes: int = 4, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1.2, (classes, dim))
    labels = generator.integers(0, classes, rows)
    x = centres[labels] + generator.normal(0, 1, (rows, dim))
    return torch.from_numpy(x), torch.from_numpy(labels)


def slow_head(
    x: torch.Tensor,
    y: torch.Tensor,
    classes: int,
    rate: float,
    epochs: int,
    batch_size: int,
    momentum: float,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's own cross-entropy, autograd and SGD, one head alone."""
    weight = torch.randn(x.shape[1], classes, generator=torch.Generator().manual_seed(seed + 1)) * 0.01
    weight = weight.to(x.dtype).requires_grad_()
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.SGD([weight, bias], lr=rate, momentum=momentum)
    steps = epochs * -(-len(x) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + np.cos(np.pi * step / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(x[rows] @ weight + bias, y[rows]).backward()
            optimiser.step()
            schedule.step()
    return weight.detach(), bias.detach()


def test_each_head_ends_as_if_trained_alone() -> None:
    x, y = blobs(90)
    rates, columns = [0.01, 0.3, 2.0], [[slice(0, 6)], [slice(1, 3), slice(4, 6)]]
    grid = train_heads(x, y, 4, rates, columns=columns, epochs=3, batch_size=32, momentum=0.9, seed=5)
    for heads, inputs in zip(grid, (x, torch.cat([x[:, 1:3], x[:, 4:6]], 1)), strict=True):
        for place, rate in enumerate(rates):
            weight, bias = slow_head(inputs, y, 4, rate, epochs=3, batch_size=32, momentum=0.9, seed=5)
            own = slice(4 * place, 4 * place + 4)
            assert torch.allclose(heads.weight[:, own], weight, atol=1e-9)
            assert torch.allclose(heads.bias[own], bias, atol=1e-9)


def test_each_head_of_the_whole_grid_ends_as_if_trained_alone() -> None:
    x, y = blobs(90, dim=10)
    columns = [[slice(2, 4)], [slice(0, 4)], [slice(2, 10)], [slice(0, 10)]]
    rates = LinearProbe().learning_rates
    grid = train_heads(x, y, 4, rates, columns=columns, epochs=3, batch_size=32, momentum=0.9, seed=5)
    for heads, choice in zip(grid, columns, strict=True):
        for place, rate in enumerate(rates):
            weight, bias = slow_head(
                x[:, choice[0]], y, 4, rate, epochs=3, batch_size=32, momentum=0.9, seed=5
            )
            own = slice(4 * place, 4 * place + 4)
            assert torch.allclose(heads.weight[:, own], weight, atol=1e-9)
            assert torch.allclose(heads.bias[own], bias, atol=1e-9)


def test_single_precision_and_a_diverged_neighbour_change_nothing() -> None:
    x, y = blobs(200)
    x = x.float()
    with_diverged = train_heads(x, y, 4, [0.01, 1e38, 0.3], epochs=20, batch_size=64)[0]
    assert not with_diverged.weight[:, 4:8].isfinite().any()
    for own, rate in ((slice(0, 4), 0.01), (slice(8, 12), 0.3)):
        alone = train_heads(x, y, 4, [rate], epochs=20, batch_size=64)[0]
        assert torch.allclose(with_diverged.weight[:, own], alone.weight, atol=1e-5)
        assert torch.allclose(with_diverged.bias[own], alone.bias, atol=1e-5)


def test_a_long_training_reaches_scikit_learn() -> None:
    x, y = blobs(400)
    test_x, test_y = blobs(300, seed=1)
    heads = train_heads(x, y, 4, [0.5], epochs=150, batch_size=100)[0]
    found = rank_classes(heads, test_x, 4)[0, :, 0]
    expected = LogisticRegression(C=1e6, max_iter=1000).fit(x, y).predict(test_x)
    assert (found.numpy() == expected).mean() > 0.97
    assert abs(float((found == test_y).double().mean()) - (expected == test_y.numpy()).mean()) < 0.02


def test_a_diverged_head_never_wins_and_harms_no_other() -> None:
    data = {"train": coloured(60, 3, name="train"), "test": coloured(30, 3, seed=1, name="test")}
    config = LinearProbe(
        least_steps=100, batch_size=16, learning_rates=(1e-2, 1e-1, 1e38), inputs=("cls", "4cls+mean")
    )
    result = config.run(small_encoder(), data, QUIET)
    scores = {(row["input"], row["learning_rate"]): row["held_out_top1"] for row in result.rows}
    assert all(np.isneginf(scores[name, 1e38]) for name in config.inputs)
    assert result.picked["learning_rate"] < 1
    assert result.numbers["top1"] > 60
    assert result.to_json()["rows"][2]["held_out_top1"] is None


def test_probe_is_independent_of_batch_size_and_workers() -> None:
    data = {"train": coloured(60, 3, name="train", bad=(3,)), "test": coloured(30, 3, seed=1, name="test")}
    config = LinearProbe(epochs=5, batch_size=16, least_steps=1)
    one = config.run(small_encoder(), data, Work(progress=False, batch_size=64))
    other = config.run(small_encoder(), data, Work(progress=False, batch_size=7, workers=2))
    assert one.numbers == other.numbers
    assert one.rows == other.rows
    assert any("skipped 1" in note for note in one.notes)
    assert len(one.rows) == 4 * 13


def test_the_test_images_never_decide() -> None:
    train, test = coloured(60, 3, name="train"), coloured(30, 3, seed=1, name="test")
    config = LinearProbe(epochs=5, batch_size=16, least_steps=1)
    honest = config.run(small_encoder(), {"train": train, "test": test}, QUIET)
    test.labels = np.roll(present(test.labels), 1)
    wrong = config.run(small_encoder(), {"train": train, "test": test}, QUIET)
    assert honest.picked == wrong.picked
    assert honest.rows == wrong.rows
    assert honest.numbers["top1"] + wrong.numbers["top1"] <= 100


def test_every_choice_of_layers_is_one_run_of_columns() -> None:
    assert readouts_for(["cls", "4cls+mean"]) == ["mean_patches@-1", "cls@-1", "cls@-2", "cls@-3", "cls@-4"]


def test_shots_are_drawn_by_class_and_nested() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 2])
    few, more = draw_shots(labels, 5, seed=1), draw_shots(labels, 20, seed=1)
    assert np.bincount(labels[few]).tolist() == [5, 5, 2]
    assert set(few) <= set(more)
    assert np.bincount(labels[draw_shots(labels, 0.1, seed=0)]).tolist() == [10, 5, 1]
    assert not np.array_equal(few, draw_shots(labels, 5, seed=2))


def test_low_shot_equals_scikit_learn_on_its_draw() -> None:
    encoder = small_encoder()
    train, test = coloured(120, 4, name="train"), coloured(60, 4, seed=1, name="test", bad=(7,))
    config = LowShot(shares=(0.2,), per_class=(2,), seeds=2, strengths=(1.0,))
    result = config.run(encoder, {"train": train, "test": test}, QUIET)
    assert set(result.numbers) == {
        f"{size}_{figure}"
        for size in ("20_percent", "2_per_class")
        for figure in ("top1", "top1_std", "per_class")
    }
    assert min(result.numbers["20_percent_top1"], result.numbers["2_per_class_top1"]) > 35  # chance is 25
    scores = [row["top1"] for row in result.rows if row["shots"] == "20_percent"]
    assert np.isclose(result.numbers["20_percent_top1"], np.mean(scores))
    assert np.isclose(result.numbers["20_percent_top1_std"], np.std(scores, ddof=1))

    from glocal.evaluation.classification.labels import split_held_out

    x = extract_embeddings(encoder, train, work=QUIET).first.double().numpy()
    found = extract_embeddings(encoder, test, work=QUIET)
    scale = np.sqrt((x**2).mean())
    labels = present(train.labels)
    rest, _ = split_held_out(labels, 0.1, seed=0)
    drawn = rest[draw_shots(labels[rest], 0.2, seed=1)]
    reference = LogisticRegression(C=1.0, max_iter=5000, tol=1e-9).fit(x[drawn] / scale, labels[drawn])
    expected = (reference.predict(found.first.double().numpy() / scale) == found.labels).mean()
    assert np.isclose(scores[1], 100 * expected)


def test_fits_that_stopped_early_are_counted() -> None:
    data = {"train": coloured(120, 4), "test": coloured(40, 4, seed=1)}
    few, enough = (
        LowShot(shares=(1.0,), per_class=(5,), seeds=2, strengths=(10.0,), iterations=most)
        for most in (1, 1000)
    )
    result = few.run(small_encoder(), data, QUIET)
    assert "4 of 4 fits stopped before the gradient fell to 0.0001" in result.notes
    assert not any(row["converged"] for row in result.rows)
    result = enough.run(small_encoder(), data, QUIET)
    assert all(row["converged"] for row in result.rows) and not result.notes
    everything = [row for row in result.rows if row["shots"] == "100_percent"]
    assert everything[0] == {**everything[1], "seed": 0}  # the same images, fitted once
    assert result.numbers["100_percent_top1_std"] == 0


def test_low_shot_of_pairs_of_images() -> None:
    train = coloured(2, 2)
    with pytest.raises(DataError, match="held out"):
        LowShot(shares=(), per_class=(1,)).run(small_encoder(), {"train": train, "test": train}, QUIET)


def digits(rows: slice) -> MemorySource:
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8, 1)[rows] * 15.9).astype(np.uint8).repeat(3, 3)
    return MemorySource(pixels.repeat(2, 1).repeat(2, 2), labels[rows], name=f"digits {rows.start}")


def test_fine_tuning_learns_digits_keeps_its_model_and_leaves_the_encoder_alone(tmp_path: Path) -> None:
    encoder = small_encoder()
    before = encoder.fingerprint()
    data = {"train": digits(slice(0, 400)), "test": digits(slice(1000, 1200))}
    config = FineTune(
        epochs=8, batch_size=32, learning_rate=2e-2, layer_decay=0.9, warmup_epochs=1, mirror=False,
        crop_area=(0.7, 1.0), transform={"size": 16}, save=str(tmp_path / "tuned"),
    )  # fmt: skip
    state = torch.random.get_rng_state()
    result = config.run(encoder, data, QUIET)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder.fingerprint() == before
    assert result.numbers["top1"] > 50  # chance is 10
    tuned, head = load(str(tmp_path / "tuned")), load_file(tmp_path / "tuned" / "head.safetensors")
    embeddings = extract_embeddings(tuned, data["test"], config.transform, work=QUIET).first
    predicted = (embeddings @ head["weight"].T + head["bias"]).argmax(1).numpy()
    assert 100 * (predicted == data["test"].labels).mean() == pytest.approx(result.numbers["top1"])


def test_layers_below_learn_more_slowly() -> None:
    backbone, head = small_encoder().backbone, torch.nn.Linear(64, 3)
    groups = parameter_groups(backbone, head, FineTune(layer_decay=0.5))
    factor = {id(p): group["factor"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(factor) == len(list(backbone.parameters())) + 2
    assert factor[id(head.weight)] == factor[id(backbone.get_parameter("norm.weight"))] == 1
    assert [factor[id(backbone.get_parameter(f"blocks.{n}.attn.qkv.weight"))] for n in range(4)] == [
        0.5**4,
        0.5**3,
        0.5**2,
        0.5,
    ]
    assert (
        factor[id(backbone.pos_embed)]
        == factor[id(backbone.get_parameter("patch_embed.proj.weight"))]
        == 0.5**5
    )
    assert decay[id(head.bias)] == decay[id(backbone.get_parameter("norm.weight"))] == 0
    assert decay[id(head.weight)] == 0.05


def test_class_attention_learns_like_the_head() -> None:
    """Its own blocks are called blocks too."""
    config = BackboneConfig(size="micro", patch_size=8, image_size=16, pooling="class_attention")
    backbone = VisionTransformer(config)
    groups = parameter_groups(backbone, torch.nn.Linear(64, 3), FineTune(layer_decay=0.5))
    factor = {id(p): group["factor"] for group in groups for p in group["params"]}
    assert {factor[id(p)] for p in present(backbone.aggregator).parameters()} == {1}
    assert factor[id(backbone.get_parameter("blocks.0.norm1.weight"))] == 0.5**4


def test_choices_that_a_shallow_model_lacks_are_left_out_and_named() -> None:
    torch.manual_seed(0)
    backbone = VisionTransformer(BackboneConfig(size="micro", depth=2, patch_size=8, image_size=32)).eval()
    encoder = Encoder("shallow", backbone, 64, 8, 32)
    data = {"train": coloured(60, 3), "test": coloured(30, 3, seed=1)}
    result = LinearProbe(epochs=1, least_steps=5).run(encoder, data, QUIET)
    assert {row["input"] for row in result.rows} == {"cls", "cls+mean"}
    assert result.notes[0] == "4cls, 4cls+mean left out: the model has 2 blocks"
    with pytest.raises(ConfigError, match="has 2 blocks, too few for 4cls"):
        LinearProbe(inputs=("4cls",)).run(encoder, data, QUIET)
