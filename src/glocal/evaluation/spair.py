"""SPair-71k (Min et al. 2019): move keypoints from one image to another of the same category by nearest patches."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from glocal.data.changed import ChangedSource
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.errors import DataError, name_some
from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.extraction.feature_stream import Skipped
from glocal.extraction.patch_stream import iterate_patches
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform

ALPHAS = (0.1, 0.05, 0.01)
_SPLITS = {"train": "trn", "val": "val", "test": "test"}


@dataclass(frozen=True)
class Pair:
    """One annotated pair.

    Points are (x, y) in pixels of the full images and correspond by position; sizes are (width, height).
    """

    category: str
    source: str
    target: str
    source_points: Float[np.ndarray, "points 2"]
    target_points: Float[np.ndarray, "points 2"]
    target_box: tuple[float, float, float, float]
    source_size: tuple[int, int]
    target_size: tuple[int, int]


class KeypointTransfer(ProtocolConfig):
    """PCK on SPair-71k: a source keypoint's patch goes to the centre of the most similar target patch.

    A point is right when its error is below alpha times the longer side of the target's box (alpha 0.1, 0.05, 0.01).
    Per category: right points over all points. `pck` weighs categories by their pairs, `pck_mean` does not, and
    `pck_per_image` is the mean over pairs of each pair's share, which some papers give instead.

    Images are put centred on a black square. Points are moved as in published code, x * scale,
    without the half pixel between centres and corners. Departure from the reference's default of 20 pairs a category: all.
    """

    protocol: ClassVar[str] = "spair"
    version: ClassVar[int] = 1

    split: Literal["train", "val", "test"] = "test"
    """Of the pairs."""
    size: int | None = None
    """Pixels of the square's side; null: the model's own. Published: 840 (patch 14)."""
    layer: Annotated[int, Field(le=-1)] = -1
    """Layer of the patches, -1 the last; after the final norm."""
    pairs_per_category: Annotated[int, Field(ge=1)] | None = None
    """How many pairs of each category, drawn by the seed; null: all."""
    seed: int = 0
    """Decides which pairs, when not all are taken."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Measure on the folder that holds `JPEGImages/` and `PairAnnotation/`."""
        if isinstance(data, Mapping):
            raise DataError(
                "SPair-71k is opened from its folder, which holds annotations too; give data=PATH."
            )
        root = Path(data)
        pairs, notes = read_pairs(root, self.split)
        images = open_source(root / "JPEGImages")
        pairs, missing = _with_images(pairs, images)
        kept = _draw(pairs, self.pairs_per_category, self.seed)
        transform = FeatureTransform(resize="squash", size=self.size, crop_fraction=1.0).resolve(encoder)
        assert transform.size is not None
        padded, skipped = SquareSource(images, transform.size), Skipped()
        places = _places(images)
        rows: list[dict[str, Any]] = []
        every: list[NDArray[np.float64]] = []
        with progress_bar(
            "keypoint transfer", sum(map(len, kept.values())), work.progress, unit="pairs"
        ) as advance:
            for category, chosen in kept.items():
                features = self._features(encoder, padded, chosen, places, transform, work, skipped)
                errors = [
                    _errors(pair, features[a], features[b], transform.size)
                    for pair in chosen
                    if (a := places[category, pair.source]) in features
                    and (b := places[category, pair.target]) in features
                ]
                advance(len(chosen))
                if errors:
                    every += errors
                    rows.append({"category": category, "pairs": len(errors), **score(errors)})
        if not rows:
            raise DataError(f"{root}: no pair of split {self.split} has two readable images.")
        shares = {a: np.array([100 * (errors < a).mean() for errors in every]) for a in ALPHAS}
        return self.result(
            encoder,
            {"images": images},
            summarise(rows),
            rows=rows,
            notes=[*notes, *missing, *skipped.notes()],
            resolution=transform.size,
            norm="final norm, patches of length 1",
            samples={f"pck_per_image_{a}": Samples(values[:, None]) for a, values in shares.items()},
        )

    def _features(
        self,
        encoder: Encoder,
        padded: ImageSource,
        pairs: Sequence[Pair],
        places: Mapping[tuple[str, str], int],
        transform: FeatureTransform,
        work: Work,
        skipped: Skipped,
    ) -> dict[int, tuple[Tensor, tuple[int, int]]]:
        """Patches of length 1 of one category's images, and their grid; each image is seen once."""
        wanted = np.array(
            sorted({places[p.category, name] for p in pairs for name in (p.source, p.target)}), np.int64
        )
        features: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        for batch in iterate_patches(encoder, padded, transform, self.layer, work, skipped, wanted):
            for index, patches in zip(batch.indices.tolist(), batch.patches, strict=True):
                features[index] = F.normalize(patches, dim=-1), batch.grid
        return features


class SquareSource(ChangedSource):
    """Images resized so that the longer side has `size` pixels, centred on a black square."""

    change = "square"

    def __init__(self, inner: ImageSource, size: int) -> None:
        super().__init__(inner, size)
        self._size = size

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Read, resize (antialiased bicubic) and pad."""
        image = self.inner.read(index)
        _, (left, top), (width, height) = square_placement(image.size, self._size)
        square = Image.new("RGB", (self._size, self._size))
        square.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        return square


def square_placement(
    size: tuple[int, int], side: int
) -> tuple[tuple[float, float], tuple[int, int], tuple[int, int]]:
    """Where an image of (width, height) lies on a square: scale (x, y), offset (left, top), resized (width, height).

    >>> square_placement((200, 100), 50)
    ((0.25, 0.25), (0, 12), (50, 25))
    """
    width, height = (max(1, round(edge * side / max(size))) for edge in size)
    return (width / size[0], height / size[1]), ((side - width) // 2, (side - height) // 2), (width, height)


def transfer(
    points: Float[np.ndarray, "points 2"],
    source: Float[Tensor, "patches dim"],
    target: Float[Tensor, "patches dim"],
    grid: tuple[int, int],
    side: int,
) -> Float[np.ndarray, "points 2"]:
    """Move points (x, y) on a square of `side` pixels to the centres of the most similar target patches."""
    rows, columns = grid
    cell = np.array([side / columns, side / rows])
    # A point on the far edge belongs to the last patch.
    column_row = np.clip(np.floor(points / cell), 0, [columns - 1, rows - 1]).astype(np.int64)
    index = torch.from_numpy(column_row[:, 1] * columns + column_row[:, 0]).to(source.device)
    matches = (source[index] @ target.T).argmax(dim=1).cpu().numpy()
    centres: NDArray[np.float64] = (np.stack([matches % columns, matches // columns], axis=1) + 0.5) * cell
    return centres


def score(errors: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """PCK in percent from errors as shares of the target box's longer side: one array a pair."""
    every = np.concatenate(list(errors))
    numbers: dict[str, float] = {"points": len(every)}
    for alpha in ALPHAS:
        numbers[f"pck_{alpha}"] = 100 * float((every < alpha).mean())
        numbers[f"pck_per_image_{alpha}"] = 100 * float(np.mean([(e < alpha).mean() for e in errors]))
    return numbers


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over categories, weighted by pairs and plain."""
    pairs = np.array([row["pairs"] for row in rows], np.float64)
    numbers: dict[str, float] = {}
    for alpha in ALPHAS:
        by_point = np.array([row[f"pck_{alpha}"] for row in rows])
        by_image = np.array([row[f"pck_per_image_{alpha}"] for row in rows])
        numbers[f"pck_{alpha}"] = float((by_point * pairs).sum() / pairs.sum())
        numbers[f"pck_mean_{alpha}"] = float(by_point.mean())
        numbers[f"pck_per_image_{alpha}"] = float((by_image * pairs).sum() / pairs.sum())
    numbers["pairs"], numbers["categories"] = float(pairs.sum()), len(rows)
    return numbers


def read_pairs(root: Path, split: str) -> tuple[list[Pair], list[str]]:
    """Read the annotation of every pair of a split, and notes on pairs without a usable keypoint.

    Raises:
        DataError: for a folder without annotations, or an annotation that lacks what is needed.
    """
    folder = root / "PairAnnotation" / _SPLITS[split]
    files = sorted(folder.glob("*.json"))
    if not files or not (root / "JPEGImages").is_dir():
        raise DataError(
            f"{root} lacks JPEGImages/ or {folder.relative_to(root)}/*.json; that's the SPair-71k layout."
        )
    pairs = [_read_pair(file) for file in files]
    kept = [pair for pair in pairs if len(pair.source_points)]
    lost = len(pairs) - len(kept)
    return kept, [f"{lost} pairs have no keypoint visible in both images."] if lost else []


def _read_pair(path: Path) -> Pair:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        both = [ab for ab in zip(plain["src_kps"], plain["trg_kps"], strict=True) if None not in ab]
        points = np.array(both, np.float64).reshape(-1, 2, 2)
        left, top, right, bottom = (float(edge) for edge in plain["trg_bndbox"])
        pair = Pair(
            str(plain["category"]),
            str(plain["src_imname"]),
            str(plain["trg_imname"]),
            points[:, 0],
            points[:, 1],
            (left, top, right, bottom),
            (int(plain["src_imsize"][0]), int(plain["src_imsize"][1])),
            (int(plain["trg_imsize"][0]), int(plain["trg_imsize"][1])),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path} is no pair annotation of SPair-71k: {type(error).__name__} {error}."
        ) from error
    if right <= left or bottom <= top:
        raise DataError(
            f"{path}: trg_bndbox {plain['trg_bndbox']} has no area; (left, top, right, bottom) is needed."
        )
    return pair


def _places(images: ImageSource) -> dict[tuple[str, str], int]:
    """Position of each image by (category, file name): several categories hold images of one name."""
    parts = [PurePosixPath(images.key(index).replace("\\", "/")).parts[-2:] for index in range(len(images))]
    return {(tail[0], tail[1]): index for index, tail in enumerate(parts) if len(tail) == 2}


def _with_images(pairs: Sequence[Pair], images: ImageSource) -> tuple[list[Pair], list[str]]:
    places = _places(images)
    lost = sorted(
        {
            f"{p.category}/{name}"
            for p in pairs
            for name in (p.source, p.target)
            if (p.category, name) not in places
        }
    )
    kept = [p for p in pairs if (p.category, p.source) in places and (p.category, p.target) in places]
    if not lost:
        return kept, []
    return kept, [
        f"{len(pairs) - len(kept)} pairs left out, {len(lost)} images are missing: {name_some(lost)}."
    ]


def _draw(pairs: Sequence[Pair], count: int | None, seed: int) -> dict[str, list[Pair]]:
    """Group by category, and draw `count` of each by the seed."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.category].append(pair)
    if count is not None:
        for category, members in groups.items():
            order = np.random.default_rng([seed, *category.encode()]).permutation(len(members))[:count]
            groups[category] = [members[i] for i in np.sort(order)]
    return dict(sorted(groups.items()))


def _errors(
    pair: Pair, source: tuple[Tensor, tuple[int, int]], target: tuple[Tensor, tuple[int, int]], side: int
) -> NDArray[np.float64]:
    """Errors of one pair's points on the square, as shares of the target box's longer side there."""
    from_scale, from_offset, _ = square_placement(pair.source_size, side)
    to_scale, to_offset, _ = square_placement(pair.target_size, side)
    asked = pair.source_points * from_scale + from_offset
    wanted = pair.target_points * to_scale + to_offset
    estimates = transfer(asked, source[0], target[0], source[1], side)
    left, top, right, bottom = pair.target_box
    longer = max((right - left) * to_scale[0], (bottom - top) * to_scale[1])
    distances: NDArray[np.float64] = np.linalg.norm(estimates - wanted, axis=1) / longer
    return distances
