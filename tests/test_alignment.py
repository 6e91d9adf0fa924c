"""Pictures are laid on each other: known maps are found again, and the correlation is that of a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from glocal.matching.alignment import AROUND, FAINT, align_pictures
from glocal.matching.placement import LEAST, REACH, place_patches

SIDE = 32


def scenes(count: int, seed: int) -> torch.Tensor:
    """Smooth grey pictures at four times the side, of structure at several scales."""
    draw = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(count, 1, cells, cells, generator=draw), size=4 * SIDE, mode="bicubic")
        for cells in (4, 8, 16)
    ]
    return (85 * torch.stack(layers).sum(dim=0)).clamp(0, 255)


def seen(pictures: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """What another picture shows, where places of the first are at `where` of it; at the small side."""
    whole = torch.cat([where, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(where), -1, -1)], dim=1)
    back = torch.linalg.inv(whole)[:, :2]
    grid = F.affine_grid(back, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, grid, align_corners=False, padding_mode="zeros")
    return F.avg_pool2d(moved, 4)[:, 0]


def slow_correlation(first: np.ndarray, second: np.ndarray, where: np.ndarray) -> float:
    """Pixel by pixel."""

    def evened(picture: np.ndarray) -> np.ndarray:
        reach, result = SIDE // AROUND, np.zeros_like(picture)
        window = [range(max(0, i - reach), min(SIDE, i + reach + 1)) for i in range(SIDE)]
        centred = np.array([[picture[y, x] - picture[np.ix_(window[y], window[x])].mean() for x in range(SIDE)] for y in range(SIDE)])  # fmt: skip
        for y in range(SIDE):
            for x in range(SIDE):
                spread = (centred[np.ix_(window[y], window[x])] ** 2).mean()
                result[y, x] = centred[y, x] / np.sqrt(spread + FAINT**2)
        return result

    one, other, pairs = evened(first), evened(second), []
    for y in range(SIDE):
        for x in range(SIDE):
            u, v = where @ [(2 * x + 1) / SIDE - 1, (2 * y + 1) / SIDE - 1, 1.0]
            if abs(u) > 1 or abs(v) > 1:
                continue
            i, j = (np.clip(((w + 1) * SIDE - 1) / 2, 0, SIDE - 1) for w in (u, v))
            left, top = min(int(i), SIDE - 2), min(int(j), SIDE - 2)
            a, b = i - left, j - top
            around = other[top : top + 2, left : left + 2]
            pairs.append((one[y, x], float(np.array([1 - b, b]) @ around @ np.array([1 - a, a]))))
    values = np.array(pairs)
    return float(np.corrcoef(values.T)[0, 1] * min(1.0, len(pairs) / SIDE**2 / LEAST))


MAPS = torch.tensor(
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],  # mirrored
        [[1.4, 0.0, 0.2], [0.0, 1.4, -0.15]],  # cropped
        [[0.75, 0.0, 0.1], [0.0, 0.75, 0.2]],  # set into something else
        [[0.99, -0.12, 0.0], [0.12, 0.99, 0.0]],  # turned by seven degrees
    ]
)


def test_known_maps_are_found_from_a_rough_beginning() -> None:
    pictures = scenes(len(MAPS), seed=0)
    first, second = seen(pictures, MAPS[:1].expand(len(MAPS), -1, -1)), seen(pictures, MAPS)
    second = 0.6 * second + 50  # brightness and contrast don't count
    begin = MAPS.clone()
    begin[:, 0, 1], begin[:, 1, 0] = 0.0, 0.0
    begin[:, :, 2] += torch.tensor([0.06, -0.05])
    found = align_pictures(first, second, begin)
    assert found.correlation.min() > 0.75, found.correlation
    assert (found.where - MAPS).abs().max() < 0.05
    others = align_pictures(first, second.roll(1, 0), begin)
    assert others.correlation.max() < 0.6, others.correlation


@pytest.mark.parametrize("number", range(len(MAPS)))
def test_the_correlation_is_that_of_a_loop(number: int) -> None:
    pictures = scenes(2, seed=1)
    first, second = F.avg_pool2d(pictures[:1], 4)[:, 0], F.avg_pool2d(pictures[1:], 4)[:, 0]
    found = align_pictures(first, second, MAPS[number : number + 1])
    slow = slow_correlation(
        first[0].double().numpy(), second[0].double().numpy(), found.where[0].double().numpy()
    )
    assert float(found.correlation) == pytest.approx(slow, abs=1e-4)


def test_flat_pictures_agree_on_nothing() -> None:
    flat = torch.full((1, SIDE, SIDE), 128.0)
    found = align_pictures(flat, flat, MAPS[:1])
    assert float(found.correlation) == 0 and torch.isfinite(found.where).all()


def test_the_map_of_a_placement_takes_agreeing_patches_to_each_other() -> None:
    whole = F.normalize(torch.randn(8, 8, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    cut = whole[2:6, 2:6].repeat_interleave(2, 0).repeat_interleave(2, 1)
    patches = torch.stack([whole.flip(1), cut]).reshape(2, 64, 32)
    placed = place_patches(whole.reshape(1, 64, 32).expand(2, -1, -1), patches, (8, 8))
    assert placed.where[0, 0, 0] < 0 < 1.4 < placed.where[1, 0, 0]
    for pair in range(2):
        agree = placed.agrees[pair].nonzero()[:, 0]
        places = [torch.stack([2 * (n % 8) + 1, 2 * (n // 8) + 1]) / 8 - 1 for n in (agree, placed.second[pair, agree])]  # fmt: skip
        moved = placed.where[pair] @ torch.cat([places[0], torch.ones(1, len(agree))])
        far = (moved - places[1]).abs().max() * 4  # in patches
        assert len(agree) >= 14 and far <= REACH * max(1.0, float(placed.where[pair, 1, 1])) + 1e-4
