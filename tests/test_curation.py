"""Copies and clusters: placements and thresholds against loops, planted copies, the commands."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import MemorySource, pixel_encoder, small_encoder
from PIL import Image
from typer.testing import CliRunner

from glocal.cli import app
from glocal.curation.clusters import balance_weights, curate
from glocal.curation.duplicates import Pair, calibrated_threshold, duplicates, groups_of
from glocal.errors import ConfigError, DataError
from glocal.matching.placement import LEAST, REACH, SCALES, place_patches
from glocal.report.search_page import duplicates_page


def unit(*shape: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def slow_score(first: np.ndarray, second: np.ndarray, rows: int, columns: int) -> float:
    """One pair, patch by patch."""
    count = rows * columns
    cosine = first @ second.T
    pairs = [(i, int(cosine[i].argmax())) for i in range(count)]
    pairs = [(i, j) for i, j in pairs if int(cosine[:, j].argmax()) == i and cosine[i, j] > 0]
    best = 0.0
    for mirrored, scale in itertools.product((False, True), SCALES):
        place = {
            i: ((columns - 1 - i % columns) if mirrored else i % columns, i // columns) for i in range(count)
        }
        moved = [[(j % columns, j // columns)[a] - scale * place[i][a] for i, j in pairs] for a in (0, 1)]
        if not pairs:
            continue
        shift = [sorted(values)[(len(values) - 1) // 2] for values in moved]
        total = sum(
            cosine[i, j]
            for n, (i, j) in enumerate(pairs)
            if all(abs(moved[a][n] - shift[a]) <= REACH * max(1.0, scale) + 1e-4 for a in (0, 1))
        )
        there = [[scale * place[i][a] + shift[a] for a in (0, 1)] for i in range(count)]
        visible = sum(-0.5 < x < columns - 0.5 and -0.5 < y < rows - 0.5 for x, y in there)
        best = max(best, total / max(visible * min(1.0, scale**2), LEAST * count))
    return min(best, 1.0)


@pytest.mark.parametrize("grid", [(3, 3), (4, 5)])
def test_placements_against_a_loop(grid: tuple[int, int]) -> None:
    count = grid[0] * grid[1]
    first, second = unit(12, count, 3, seed=0), unit(12, count, 3, seed=1)
    second[6:] = first[6:] * 0.8 + second[6:] * 0.2
    second = torch.nn.functional.normalize(second, dim=-1)
    placed = place_patches(first, second, grid)
    for pair in range(12):
        expected = slow_score(first[pair].double().numpy(), second[pair].double().numpy(), *grid)
        assert float(placed.score[pair]) == pytest.approx(expected, abs=1e-4)


def test_a_mirrored_shifted_or_cropped_grid_is_placed() -> None:
    whole = unit(8, 8, 32, seed=0)
    cases = {
        "mirrored": whole.flip(1),
        "shifted": torch.cat([unit(2, 8, 32, seed=1), whole[:6]]),
        "cropped": whole[2:6, 2:6].repeat_interleave(2, 0).repeat_interleave(2, 1),
    }
    patches = torch.stack([case.reshape(64, 32) for case in cases.values()])
    placed = place_patches(whole.reshape(1, 64, 32).expand(3, -1, -1), patches, (8, 8))
    assert placed.score[0] > 0.99 and placed.score[1] > 0.95 and placed.score[2] > 0.6
    assert placed.second[0][placed.agrees[0]].tolist()[:3] == [7, 6, 5]
    scattered = whole.reshape(64, 32)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert place_patches(whole.reshape(1, 64, 32), scattered[None], (8, 8)).score[0] < 0.5


@pytest.mark.parametrize("copies", [0.0, 0.05, 0.14])
def test_the_threshold_keeps_the_rate_whatever_share_are_copies(copies: float) -> None:
    draw = np.random.default_rng(0)
    null = draw.gumbel(0.4, 0.04, 40_000)
    best = np.concatenate([null, draw.uniform(0.9, 1.0, int(copies / (1 - copies) * len(null)))])
    for rate in (0.01, 0.001):
        assert 0.3 * rate < (null > calibrated_threshold(best, rate)).mean() < 1.5 * rate


def textures(images: int, side: int = 32) -> np.ndarray:
    """Smooth random pictures that differ everywhere."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 255, (images, 8, 8, 3)).astype(np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(s).resize((side, side), Image.Resampling.BICUBIC)) for s in small]
    )


def test_planted_copies_are_found_with_their_evidence(tmp_path: Path) -> None:
    images = textures(60)
    copies = np.stack([images[3], images[50][:, ::-1], (images[55] * 0.8).astype(np.uint8), images[3]])
    source = MemorySource(np.concatenate([images, copies]), bad=(9,))
    found = duplicates(pixel_encoder(4), source, tmp_path / "d", progress=False)
    assert found.keys() == [["3.png", "60.png", "63.png"], ["50.png", "61.png"], ["55.png", "62.png"]]
    assert found.surplus() == ["60.png", "63.png", "61.png", "62.png"]
    assert found.pairs[0].score == pytest.approx(1, abs=0.01)
    mirrored = next(pair for pair in found.pairs if found.index.key(pair.second) == "61.png")
    straight = [one % 8 + other % 8 == 7 and one // 8 == other // 8 for one, other in mirrored.patches]
    assert len(straight) >= 8 and np.mean(straight) > 0.7
    page = duplicates_page(found)
    assert page.count("data:image/webp") == 6 and "also 6" in page
    source.reads = 0
    again = duplicates(pixel_encoder(4), source, tmp_path / "d", progress=False)
    assert again.keys() == found.keys() and source.reads == 63  # thumbnails; no image was embedded again
    with pytest.raises(ConfigError, match="a share above 0"):
        duplicates(pixel_encoder(4), source, tmp_path / "d", rate=0.5)


def test_groups_are_connected_images() -> None:
    pairs = [Pair(5, 2, 0.9), Pair(9, 8, 0.9), Pair(2, 7, 0.8), Pair(7, 5, 0.7)]
    assert groups_of(pairs) == [[2, 5, 7], [8, 9]] and groups_of([]) == []


def test_clusters_and_their_weights(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]])
    kind = np.repeat([0, 1, 2], [40, 8, 4])
    pixels = np.clip(colours[kind][:, None, None] + draw.normal(0, 8, (52, 32, 32, 3)), 0, 255).astype(
        np.uint8
    )
    source = MemorySource(pixels)
    found = curate(small_encoder(), source, tmp_path / "c", clusters=3, progress=False)
    assert found.sizes().tolist() == [40, 8, 4] and np.array_equal(found.numbers, kind)
    weights = balance_weights(tmp_path / "c", source)
    assert weights.sum() == pytest.approx(1)
    for number in range(3):
        assert weights[kind == number].sum() == pytest.approx(1 / 3)
    with pytest.raises(ConfigError, match="glocal curate"):
        balance_weights(tmp_path, source)
    with pytest.raises(DataError, match="20 of the 72 images"):
        balance_weights(tmp_path / "c", MemorySource(np.concatenate([pixels, pixels[:20]])))
    with pytest.raises(ConfigError, match="clusters=99"):
        curate(small_encoder(), source, tmp_path / "c", clusters=99, progress=False)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glocal.lookup.index.load_on", lambda *arguments: pixel_encoder(4))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(textures(40)):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    Image.fromarray(textures(40)[7]).save(folder / "copy <b>.png")
    runner = CliRunner()
    done = runner.invoke(app, ["duplicates", "model", f"data={folder}", f"out={tmp_path / 'd'}"])
    assert done.exit_code == 0 and "1 groups of copies among 41 images" in done.output, (
        done.output,
        done.exception,
    )
    assert json.loads((tmp_path / "d" / "duplicates.json").read_text())["groups"] == [
        ["07.png", "copy <b>.png"]
    ]
    page = (tmp_path / "d" / "duplicates.html").read_text()
    assert "copy &lt;b&gt;.png" in page and "<b>" not in page
    made = runner.invoke(app, ["curate", "model", f"data={folder}", f"out={tmp_path / 'c'}", "clusters=4"])
    assert made.exit_code == 0 and "41 images in 4 clusters" in made.output, made.output
