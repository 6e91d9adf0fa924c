"""Patch correspondence without labels: is the most similar patch of another view the one that shows the same place?

Our own measure. Two crops of an image, mirrored or not, have known geometry, so every patch of the first whose centre
the second view contains has one right answer there. Local features are good when cosine finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from glocal.data.changed import ChangedSource
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError, ModelError
from glocal.evaluation.base import DataLike, ProtocolConfig, open_split
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.extraction.feature_stream import Skipped
from glocal.extraction.patch_stream import iterate_patches
from glocal.extraction.progress import progress_bar
from glocal.extraction.random_crops import crop_sides
from glocal.extraction.work import Work
from glocal.matching.geometric import teacher_index
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform
from glocal.views.photometric import Operation, apply_pipeline
from glocal.views.randomness import fold_in_array, hash_seed, uniform_array

Grid = tuple[int, int]


class ViewPairs(NamedTuple):
    """Two views an image, as fractions of its height and width: (top, left, height, width), and their mirroring."""

    box: Float[np.ndarray, "images 2 4"]
    flip: Bool[np.ndarray, "images 2"]


class Verdicts(NamedTuple):
    """For each patch of the first view that has a right answer: found exactly, found within one cell."""

    exact: Bool[Tensor, " matched"]
    near: Bool[Tensor, " matched"]


class Correspondence(ProtocolConfig):
    """Share of patches whose most similar patch in another view of the image is the geometrically right one.

    Patches without a right answer don't count; images are averaged, each with the mean over its patches. The figure
    depends on resolution and crops, so compare models of one patch size at one `size`.
    """

    protocol: ClassVar[str] = "correspondence"
    version: ClassVar[int] = 2

    images: Annotated[int, Field(ge=1)] | None = 1000
    """How many images, drawn by the seed; null: all."""
    size: int | None = None
    """Pixels of a view's side; null: the model's own."""
    area: tuple[float, float] = (0.3, 1.0)
    """Smallest and largest share of the image that a view shows."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a view, relative to the image's own."""
    flip: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Probability of mirroring a view, each on its own."""
    photometric: tuple[Operation, ...] = ()
    """Change of the second view's colours; empty: none."""
    layer: Annotated[int, Field(le=-1)] = -1
    """Layer of the patches, -1 the last; after the final norm."""
    seed: int = 0
    """Decides images, views and photometric changes, each image's by itself."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Measure on the test split, or on whatever there is without one."""
        source = open_split(data, "test", "val", "images", "all", "train")
        size = (
            self.size
            if self.size is not None
            else encoder.image_size // encoder.patch_size * encoder.patch_size
        )
        skipped = Skipped()
        numbers, notes, samples = self._measure(encoder, source, size, work, skipped)
        return self.result(
            encoder,
            {"images": source},
            numbers,
            notes=[*notes, *skipped.notes()],
            resolution=size,
            norm="final norm, patches of length 1",
            samples=samples,
        )

    def draw(self, places: NDArray[np.int64]) -> ViewPairs:
        """Draw the two views of the images at these places."""
        return draw_view_pairs(self.seed, places, self.area, self.aspect, self.flip)

    def _measure(
        self, encoder: Encoder, source: ImageSource, size: int, work: Work, skipped: Skipped
    ) -> tuple[dict[str, float], list[str], dict[str, Samples]]:
        patch_size = encoder.patch_size
        if size % patch_size:
            raise ConfigError(f"size={size} is no multiple of the patch of {patch_size} px.")
        places = _choose(len(source), self.images, self.seed)
        grid = (size // patch_size, size // patch_size)
        views = (_ViewSource(source, self, view, size, patch_size) for view in (0, 1))
        first, second = (_patches(self, encoder, view, places, work, skipped) for view in views)
        truth = right_patches(self.draw(places), grid)
        by_place = dict(zip(places.tolist(), truth, strict=True))
        exact, near, matched = [], [], 0
        alone = 0
        with progress_bar(f"{source.name}: correspondence", len(places), work.progress) as advance:
            for (indices, a), (same, b) in zip(first, second, strict=True):
                if not np.array_equal(indices, same):
                    raise DataError(
                        f"{source.name}: an image could be read once and then not; is it being written?"
                    )
                for index, one, other in zip(indices.tolist(), a, b, strict=True):
                    verdicts = judge(one, other, by_place[index].to(one.device), grid)
                    if len(verdicts.exact) == 0:
                        alone += 1
                        continue
                    exact.append(float(verdicts.exact.double().mean()))
                    near.append(float(verdicts.near.double().mean()))
                    matched += len(verdicts.exact)
                advance(len(indices))
        if not exact:
            raise DataError(
                f"{source.name}: no readable image has views that overlap; raise area={self.area}."
            )
        notes = [f"{alone} images whose views share no patch centre don't count."] if alone else []
        numbers = {"chance": 100 / (grid[0] * grid[1]), "images": len(exact), "patches": matched}
        shares = {"accuracy": exact, "accuracy_within_one": near}
        samples = {name: Samples(100 * np.array(values)[:, None]) for name, values in shares.items()}
        return numbers, notes, samples


def draw_view_pairs(
    seed: int, indices: NDArray[np.int64], area: tuple[float, float], aspect: tuple[float, float], flip: float
) -> ViewPairs:
    """Draw two views for every image, each a pure function of (seed, index): share uniform, aspect log-uniform.

    Raises:
        ConfigError: unless 0 < area <= 1 and 0 < aspect, each rising.

    >>> draw_view_pairs(0, np.arange(5), (0.3, 1.0), (0.75, 1.33), 0.5).box.shape
    (5, 2, 4)
    """
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
        raise ConfigError(
            f"area={area}, aspect={aspect}; both must rise from above 0, and area to at most 1."
        )
    seeds = fold_in_array(np.full(1, seed % 2**64, np.uint64), indices.astype(np.uint64))
    u = uniform_array(seeds, 10).reshape(len(indices), 2, 5)
    sides = np.minimum(np.stack(crop_sides(u[..., :2], area, aspect), axis=-1), 1.0)
    return ViewPairs(np.concatenate([u[..., 2:4] * (1 - sides), sides], axis=-1), u[..., 4] < flip)


def right_patches(pairs: ViewPairs, grid: Grid) -> Int64[Tensor, "images patches"]:
    """For each patch of the first views the patch of the second that contains its centre, -1 without one."""
    box, flip = torch.from_numpy(pairs.box), torch.from_numpy(pairs.flip)
    # The rule's "teacher" is the side that is looked into, here the second view.
    return teacher_index(box[:, 1], flip[:, 1], grid, box[:, 0], flip[:, 0], grid, rule="center").patch


def judge(
    first: Float[Tensor, "patches dim"],
    second: Float[Tensor, "patches dim"],
    right: Int64[Tensor, " patches"],
    grid: Grid,
) -> Verdicts:
    """Compare the nearest patch by cosine with the right one, for patches of the first view that have one.

    One image at a time: products of other shapes round otherwise, and a figure must not depend on the batch.

    Raises:
        ModelError: for features that aren't finite.
    """
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise ModelError("The model gives patch features that aren't finite; check its weights.")
    asked = right >= 0
    cosine = F.normalize(first[asked], dim=-1) @ F.normalize(second, dim=-1).T
    matches, right = cosine.argmax(dim=1), right[asked]
    rows = (matches // grid[1] - right // grid[1]).abs()
    columns = (matches % grid[1] - right % grid[1]).abs()
    return Verdicts(matches == right, (rows <= 1) & (columns <= 1))


class _ViewSource(ChangedSource):
    """One view of every image, rendered from its box; boxes are fractions, so they are known before decoding."""

    change = "views"

    def __init__(
        self, inner: ImageSource, config: Correspondence, view: int, size: int, patch_size: int
    ) -> None:
        super().__init__(inner, view, size, patch_size, config)
        self._config, self._view, self._size, self._patch_size = config, view, size, patch_size

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        image = self.inner.read(index)
        drawn = self._config.draw(np.array([index]))
        top, left, height, width = drawn.box[0, self._view] * np.tile([image.height, image.width], 2)
        edges = (left, top, min(left + width, image.width), min(top + height, image.height))
        view = image.resize((self._size, self._size), Image.Resampling.BICUBIC, box=edges)
        if drawn.flip[0, self._view]:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._recoloured(view, index) if self._view == 1 and self._config.photometric else view

    def _recoloured(self, view: Image.Image, index: int) -> Image.Image:
        pixels = torch.from_numpy(np.array(view)).permute(2, 0, 1)[None].float() / 255
        seed = torch.tensor([hash_seed(self._config.seed, index)])
        changed = apply_pipeline(pixels, self._config.photometric, seed, self._patch_size)
        return Image.fromarray(
            (changed[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        )


def _patches(
    config: Correspondence,
    encoder: Encoder,
    view: ImageSource,
    places: NDArray[np.int64],
    work: Work,
    skipped: Skipped,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Places of images and the patches of a view of them, batch by batch."""
    transform = FeatureTransform(resize="squash", size=config.size)
    for batch in iterate_patches(encoder, view, transform, config.layer, work, skipped, places):
        if len(batch.indices):
            yield batch.indices, batch.patches


def _choose(size: int, count: int | None, seed: int) -> NDArray[np.int64]:
    """Draw images by the seed, in the source's order."""
    if size == 0:
        raise DataError("The source holds no images. Check the path.")
    if count is None or count >= size:
        return np.arange(size)
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])
