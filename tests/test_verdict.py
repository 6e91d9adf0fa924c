"""Label-free figures against slow NumPy versions; the score, the diagnosis in words, and the examination in a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config

from glocal.data import open_source
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.features import Features
from glocal.models.loading import load
from glocal.models.vit import VisionTransformer
from glocal.training.config import RunConfig
from glocal.training.loop import pretrain
from glocal.verdict.collapse import CollapseMonitor
from glocal.verdict.config import VerdictConfig
from glocal.verdict.diagnosis import diagnose
from glocal.verdict.examination import Examination, label_free_figures, period, view_pair
from glocal.verdict.figures import (
    correspondence_accuracy,
    high_norm_share,
    position_share,
    retrieval_accuracy,
)
from glocal.verdict.score import best_step, score, stands_still

# --------------------------------------------------------------------------------------------------- figures


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_retrieval_equals_asking_one_by_one() -> None:
    gallery, noise = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    queries = gallery + noise
    right = 0
    for i, query in enumerate(queries.numpy()):
        similar = [cosine(query, row) for row in gallery.numpy()]
        right += int(all(similar[i] > other for j, other in enumerate(similar) if j != i))
    assert 0 < right < 30
    assert float(retrieval_accuracy(queries, gallery)) == pytest.approx(right / 30)


def test_constant_embeddings_find_nothing() -> None:
    same = torch.ones(8, 4)
    assert float(retrieval_accuracy(same, same)) == 0
    patches = torch.ones(2, 6, 4)
    assert float(correspondence_accuracy(patches, patches, torch.arange(6).repeat(2, 1))) == 0


def test_correspondence_equals_asking_patch_by_patch() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 4, 9, 3, generator=generator)
    right = torch.randint(-1, 9, (4, 9), generator=generator)
    right[2] = -1  # an image whose views share nothing doesn't count
    shares = []
    for image in range(4):
        hits = [
            all(
                cosine(first[image, p].numpy(), second[image, t].numpy())
                > cosine(first[image, p].numpy(), second[image, other].numpy())
                for other in range(9)
                if other != t
            )
            for p, t in enumerate(right[image].tolist())
            if t >= 0
        ]
        if hits:
            shares.append(np.mean(hits))
    assert len(shares) == 3 and np.mean(shares) > 0
    assert float(correspondence_accuracy(first, second, right)) == pytest.approx(np.mean(shares))


def test_position_share_equals_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    place, noise = rng.normal(size=(1, 7, 3)) * 2, rng.normal(size=(40, 7, 3))
    x = place + noise
    grand = x.mean((0, 1))
    between = within = total = 0.0
    for p in range(7):
        mean = x[:, p].mean(0)
        between += 40 * ((mean - grand) ** 2).sum()
        within += ((x[:, p] - mean) ** 2).sum()
        total += ((x[:, p] - grand) ** 2).sum()
    expected = (between - 6 * within / (7 * 39)) / total
    assert float(position_share(torch.from_numpy(x))) == pytest.approx(expected)
    assert 0.6 < expected < 1
    assert float(position_share(torch.from_numpy(noise))) < 0.02
    assert float(position_share(torch.ones(3, 4, 2))) == 0


def test_high_norms_are_counted_against_the_median() -> None:
    tokens = torch.ones(2, 10, 4)
    tokens[0, 3] *= 3.5
    tokens[1, 4] *= 2.5
    norms = np.linalg.norm(tokens.numpy(), axis=-1).ravel()
    assert float(high_norm_share(tokens)) == pytest.approx(np.mean(norms > 3 * np.median(norms))) == 0.05


def test_crops_know_which_patch_of_the_whole_they_show() -> None:
    """Where a crop patch shows what the whole's patch shows, the pixels agree on average; elsewhere they don't."""
    pair = view_pair(open_source("photos-tiles"), 56, 12)
    right = pair.right_patches((7, 7))

    def means(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2)).flatten(1)

    whole, crop = means(pair.whole), means(pair.crop)
    asked = right >= 0
    assert bool(asked.all())  # the crop lies within the whole
    same = torch.stack(
        [torch.corrcoef(torch.stack([c, w[r]]))[0, 1] for c, w, r in zip(crop, whole, right, strict=True)]
    )
    assert float(same.nanmedian()) > 0.7


def test_numbers_that_are_none_give_nan_and_no_error() -> None:
    broken = Features(torch.full((4, 3), torch.nan), torch.zeros(4, 4, 3), (2, 2), torch.zeros(4, 5, 3))
    figures = label_free_figures(broken, broken, torch.zeros(4, 4, dtype=torch.long))
    assert all(math.isnan(value) for value in figures.values())


# ------------------------------------------------------------------------------------------ score and diagnosis


def test_the_best_step_is_the_earliest_highest() -> None:
    assert best_step([(0, 1.0), (5, 3.0), (9, 3.0), (12, float("nan"))]) == 5
    assert best_step([(0, float("nan"))]) is None
    assert score({"retrieval": 0.0, "correspondence": 90.0, "rank_share": 50.0}) == 0


def test_a_run_may_end_when_nothing_was_gained_for_a_quarter_of_it() -> None:
    rising = [(step, step / 10) for step in range(0, 101, 10)]
    flat = [(step, min(step, 40) / 10) for step in range(0, 101, 10)]
    assert not any(stands_still(rising[:n], 100) for n in range(1, 12))
    ends = next(n for n in range(1, 12) if stands_still(flat[:n], 100))
    assert flat[ends - 1][0] == 70


def test_collapse_is_named_once_and_only_after_patience() -> None:
    monitor = CollapseMonitor()
    uniform = {"image.target_entropy": 0.999, "image.marginal_entropy": 0.999}
    said = [monitor.look(uniform, share=0.5) for _ in range(5)]
    assert [len(s) for s in said] == [0, 0, 1, 0, 0]
    assert said[2][0].kind == "uniform" and "sinkhorn" in said[2][0].text
    constant = {"patch.target_entropy": 0.01, "patch.marginal_entropy": 0.01}
    assert [monitor.look(constant, share=0.5) for _ in range(3)][2][0].kind == "constant"
    healthy = CollapseMonitor()
    assert not any(
        healthy.look({"image.target_entropy": 0.3, "image.marginal_entropy": 0.9}, share=0.5)
        for _ in range(9)
    )


def falling(rank_end: float, target: float) -> list[dict[str, float]]:
    """Records of a run whose marginal entropy rests at 0.866 of ln K while its rank goes from 14.5 to `rank_end`."""
    return [
        {
            "step": 100 * n, "loss": 6.0, "effective_rank": 14.5 + (rank_end - 14.5) * min(1.0, n / 10),
            "image.target_entropy": target, "image.marginal_entropy": 0.866,
        }
        for n in range(1, 21)
    ]  # fmt: skip


def test_equal_targets_for_all_images_are_named_as_collapse() -> None:
    found = diagnose(falling(2.0, 0.866), 2000)
    assert found.status == "failed"
    assert "every image gets the same target" in found.sentence and "86.6%" in found.sentence
    assert "objectives.image" in found.findings[0].change
    assert diagnose(falling(12.0, 0.866), 2000).status == "unknown"
    assert diagnose(falling(2.0, 0.4), 2000).status == "unknown"


def examined(*scores: float) -> list[dict[str, float]]:
    return [
        {"step": 10 * n, "verdict.score": s, "verdict.retrieval": s, "verdict.correspondence": s}
        for n, s in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("records", "status", "words"),
    [
        (examined(10, 30, 40, 45), "healthy", "45 find their image"),
        (examined(10, 9, 10, 10.4), "warning", "Nothing was learnt"),
        (examined(10, 40, 38, 30), "warning", "highest at step 10"),
        ([{"step": 5, "loss": float("nan")}], "failed", "diverged"),
        ([{"step": 5, "loss": None}], "failed", "diverged"),
        ([], "unknown", "nothing can be said"),
        ([{"step": 10, "verdict.score": 40.0}, *examined(10, 30)], "healthy", "30 find their image"),
    ],
)
def test_runs_are_told_in_one_sentence(
    records: list[dict[str, float | None]], status: str, words: str
) -> None:
    found = diagnose(records, 30)
    assert found.status == status and words in found.sentence


# -------------------------------------------------------------------------------------------------------- in a run


def test_examinations_cost_a_two_hundredth_of_the_steps() -> None:
    every = period(VerdictConfig(), examination=3e9, step=7e9, steps=1000)
    assert 0.0045 < 3e9 / (every * 7e9) <= 0.005
    assert period(VerdictConfig(), examination=1.0, step=7e9, steps=100_000) == 2500
    assert period(VerdictConfig(every=7), examination=3e9, step=7e9, steps=1000) == 7


def test_an_examination_counts_the_products_of_its_forward_passes() -> None:
    config = BackboneConfig(size="micro", embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32)
    model = VisionTransformer(config).eval()
    encoder = Encoder("x", model, 32, 8, 32)
    tokens, width = 17, 32
    block = tokens * 12 * width * width + 2 * tokens * tokens * width
    image = 2 * (16 * 3 * 8 * 8 * width + 2 * block)
    assert Examination(open_source("digits"), None, side=32, images=10).flops(encoder) == 2 * 10 * image


def training(tmp_path: Path, name: str, **verdict: object) -> RunConfig:
    config = small_config(out=str(tmp_path / name), verdict=VerdictConfig(images=32, **verdict))
    settings = {"batch_size": 32, "steps": 6, "log_every": 2}
    probe = config.probe.model_copy(update={"enabled": False})
    speed = config.speed.model_copy(update={"workers": 0, "precision": "fp32", "device": "cpu"})
    return config.model_copy(
        update={"training": config.training.model_copy(update=settings), "probe": probe, "speed": speed}
    )


def test_a_run_records_figures_keeps_its_best_and_stays_bit_for_bit(tmp_path: Path) -> None:
    states = []
    for name, enabled in (("with", True), ("without", False)):
        out = pretrain(training(tmp_path, name, every=3, enabled=enabled))
        states.append(torch.load(out / "checkpoints" / "last.pt", weights_only=True)["student"])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    records = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    found = {r["step"]: r for r in records if "verdict.score" in r}
    assert list(found) == [0, 3, 6]
    assert "verdict.overfitting" in found[0] and "verdict.overfitting" in found[6]  # digits have a test part
    best = best_step([(step, r["verdict.score"]) for step, r in found.items()])
    written = json.loads((tmp_path / "with" / "export" / "best" / "config.json").read_text())
    assert written["glocal"]["extra"]["step"] == best
    assert load(tmp_path / "with" / "export" / "best").embed_dim == 32
    assert not (tmp_path / "without" / "export" / "best").exists()


def test_a_run_ends_by_itself_when_its_score_stands_still(tmp_path: Path) -> None:
    config = training(tmp_path, "still", every=1)
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update={"stop": "auto", "steps": 40}),
            "optimiser": config.optimiser.model_copy(update={"learning_rate": 1e-12}),
        }
    )
    out = pretrain(config)
    last = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    assert 20 <= last["step"] < 30


def test_diverging_weights_end_in_a_friendly_message(tmp_path: Path) -> None:
    from glocal.errors import TrainingError

    config = training(tmp_path, "diverging")
    config = config.model_copy(
        update={
            "optimiser": config.optimiser.model_copy(
                update={"learning_rate": 1e30, "scaling": "none", "warmup_epochs": 0.0, "clip": None}
            )
        }
    )
    with pytest.raises(TrainingError, match="was no number in 5 or more steps in a row"):
        pretrain(config)
