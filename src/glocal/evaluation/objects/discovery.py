"""Object discovery without labels: one box an image from the last block's keys, by LOST or TokenCut, scored by CorLoc.

LOST: Simeoni et al. 2021, "Localizing objects with self-supervised Transformers and no labels", section 3.
TokenCut: Wang et al. 2022, "Self-supervised Transformers for unsupervised object discovery using normalized cut".
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.sparse.linalg
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from glocal.data.source import ImageSource
from glocal.errors import DataError, ModelError, UnreadableImageError
from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.intervals import Samples
from glocal.evaluation.results import Result
from glocal.evaluation.segmentation.masks import TEST, SegmentationData, open_segmentation
from glocal.evaluation.segmentation.paired_folders import PairedFolders, open_voc_boxes
from glocal.extraction.feature_stream import Skipped, check_finite, computed_by
from glocal.extraction.journal import Journal
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder

if TYPE_CHECKING:
    from typing_extensions import Self

LANCZOS_FROM = 64
"""Patches from which on TokenCut's eigenvector is found by iteration."""

Region = Bool[np.ndarray, "rows columns"]


def lost(keys: Float[Tensor, "patches dim"], grid: tuple[int, int], expansion: int = 100) -> Region:
    """Find one object: the patch that resembles fewest others, grown by those that resemble it.

    Args:
        keys: raw keys of the last block, row-major on `grid`, no class token.
        grid: rows and columns.
        expansion: among so many patches of lowest degree, those positively correlated with the seed join it.

    Returns:
        The connected region (4 neighbours) that holds the seed. Ties in degree go to the first patch.
    """
    similarity = (keys @ keys.T).cpu().numpy()
    order = np.argsort((similarity > 0).sum(1), kind="stable")
    seed = int(order[0])
    candidates = order[:expansion]
    similar = candidates[similarity[seed, candidates] > 0]
    correlation = similarity[similar].sum(0) if len(similar) else similarity[seed]
    return component((correlation > 0).reshape(grid), seed)


def tokencut(keys: Float[Tensor, "patches dim"], grid: tuple[int, int], threshold: float = 0.2) -> Region:
    """Find one object: the normalised cut of the graph of patches whose keys have a cosine above `threshold`.

    The second smallest generalised eigenvector of (D - W) x = l D x is split at its mean; the object is the side of its
    largest absolute entry, of which the connected region that holds this entry is returned. A single patch is its own
    region. Weights are 1 above the threshold and 1e-5 below.
    """
    if len(keys) < 2:
        return np.ones(grid, bool)
    unit = F.normalize(keys.double(), dim=1)
    weight = np.where((unit @ unit.T).cpu().numpy() > threshold, 1.0, 1e-5)
    root = 1 / np.sqrt(weight.sum(1))
    weight *= root[:, None]
    weight *= root
    vector = _second_eigenvector(weight) * root
    seed = int(np.abs(vector).argmax())
    above = vector > vector.mean()
    return component((above if above[seed] else ~above).reshape(grid), seed)


def _second_eigenvector(adjacency: Float[np.ndarray, "patches patches"]) -> Float[np.ndarray, " patches"]:
    """Of the second largest eigenvalue: that of the second smallest of the symmetric Laplacian, 1 - adjacency.

    By Lanczos iteration, whose cost is some tens of products: 0.15 s for 4,275 patches, where all of LAPACK's takes 6.
    """
    count = len(adjacency)
    if count >= LANCZOS_FROM:
        start = 1 + np.arange(count) / count  # fixed, so that runs repeat
        with contextlib.suppress(scipy.sparse.linalg.ArpackNoConvergence):
            values, vectors = scipy.sparse.linalg.eigsh(adjacency, k=2, which="LA", v0=start)
            chosen: np.ndarray = vectors[:, int(np.argmin(values))]
            return chosen
    _, vectors = scipy.linalg.eigh(adjacency, subset_by_index=[count - 2, count - 2])
    only: np.ndarray = vectors[:, 0]
    return only


def component(mask: Region, seed: int) -> Region:
    """The 4-connected region of `mask` that holds the patch `seed` (flat place), which is always part of it."""
    held = mask.copy()
    held.flat[seed] = True
    labels, _ = scipy.ndimage.label(held)
    region: np.ndarray = labels == labels.flat[seed]
    return region


def region_box(region: Region, patch_size: int, size: tuple[int, int]) -> Float[np.ndarray, "corners=4"]:
    """Box around a region of patches: left, top, right, bottom (exclusive) in pixels, clipped to `size` (h, w)."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float) * patch_size
    clipped: np.ndarray = np.minimum(box, [size[1], size[0], size[1], size[0]])
    return clipped


def box_overlap(
    box: Float[np.ndarray, "corners=4"], others: Float[np.ndarray, "boxes 4"]
) -> Float[np.ndarray, " boxes"]:
    """Intersection over union of a box with each of `others`.

    >>> box_overlap(np.array([0, 0, 2, 2.0]), np.array([[0, 0, 2, 1.0]])).tolist()
    [0.5]
    """
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1)
    overlap: np.ndarray = shared / ((box[2:] - box[:2]).prod() + areas - shared)
    return overlap


def mask_boxes(
    mask: UInt8[np.ndarray, "h w"], objects: Sequence[int], smallest: int
) -> Float[np.ndarray, "boxes 4"]:
    """Boxes around the connected regions of each object class that cover at least `smallest` pixels.

    Touching objects of one class become one box: a class mask doesn't tell them apart.
    """
    boxes = []
    for number in objects:
        labels, count = scipy.ndimage.label(mask == number)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        for region, (rows, columns) in enumerate(scipy.ndimage.find_objects(labels), start=1):
            if areas[region] >= smallest:
                boxes.append([columns.start, rows.start, columns.stop, rows.stop])
    return np.array(boxes, float).reshape(-1, 4)


class Discovery(ProtocolConfig):
    """CorLoc: share of images whose one predicted box overlaps a true box by at least `overlap`.

    Images keep their size and are padded with zeros, after normalisation, to whole patches. True boxes come from VOC
    annotations (`ImageSets/Main/SPLIT.txt`), else from masks. Images without a true object are left out and counted.

    Departures from the references: ties go to the first patch; a seed outside the thresholded map forms its own region;
    where boxes come from class masks, touching objects of one class are one object, so such numbers compare only with
    each other.
    """

    protocol: ClassVar[str] = "discovery"

    methods: tuple[Literal["lost", "tokencut"], ...] = ("lost", "tokencut")
    """Which boxes are scored."""
    split: str | None = None
    """Split to score; null: VOC's trainval, else test or val."""
    longest_side: Annotated[int, Field(ge=16)] | None = None
    """Pixels; larger images are shrunk to it first. null: native size, as published. Memory grows with the
    square of the number of patches: 3 GB at 10,800."""
    overlap: float = 0.5
    """Least intersection over union of a hit."""
    expansion: int = 100
    """LOST: low-degree patches that may join the seed."""
    threshold: float = 0.2
    """TokenCut: cosine above which two patches are joined."""
    object_classes: list[int] | None = None
    """Class ids that count as objects where boxes come from masks; null: those of the layout."""
    smallest_object: int = 256
    """Pixels a region of a mask needs to count as an object."""
    ignore: list[int] | None = None
    """Mask values left out besides 255."""

    @classmethod
    def quick(cls, encoder: Encoder) -> Self:
        """At most 32 patches a side: with patches of 16 VOC's images keep their size."""
        return cls(longest_side=32 * encoder.patch_size)

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Predict one box an image and method, and compare it with the true boxes."""
        source, masks, objects = self._open(data)
        skipped, empty = Skipped(), 0
        rows: list[dict[str, Any]] = []
        settings = self.model_dump(mode="json", exclude={"overlap"})
        deciding = [
            self.protocol, self.version, *computed_by(encoder), source.state(), list(objects), settings
        ]  # fmt: skip
        journal = Journal(work.cache, deciding)
        with progress_bar(f"{source.name}: discovery", len(source), work.progress) as advance:
            for index in range(len(source)):
                advance(1)
                kept = journal.get(str(index))
                if kept is not None:
                    rows.append({"image": source.key(index), **kept})
                    continue
                try:
                    image = source.read(index)
                    true = self._boxes(source, masks, index, objects)
                except UnreadableImageError as error:
                    skipped.add(source, index, str(error))
                    continue
                if len(true) == 0:
                    empty += 1
                    continue
                scale = min(1.0, (self.longest_side or max(image.size)) / max(image.size))
                best = self._score(encoder, np.array(_shrunk(image, scale)), true * scale)
                journal.add(str(index), best)
                rows.append({"image": source.key(index), **best})
        if not rows:
            raise DataError(
                f"{source.name}: none of {len(source)} images has an object to find. Set object_classes (class ids) or "
                f"lower smallest_object. {' '.join(skipped.notes())}"
            )
        hits = {
            f"CorLoc_{m}": np.array([100.0 * (row[m] >= self.overlap) for row in rows]) for m in self.methods
        }
        notes = skipped.notes()
        side = "native" if self.longest_side is None else f"longest side at most {self.longest_side}"
        if empty:
            notes.append(f"{source.name}: {empty} image(s) without a true object, left out")
        return self.result(
            encoder,
            {"test": source},
            {"images": len(rows)},
            rows=rows,
            notes=notes,
            resolution=f"{side}, zero-padded to whole patches",
            features="keys of the last block",
            layer=-1,
            norm=False,
            samples={name: Samples(values[:, None]) for name, values in hits.items()},
            boxes="VOC annotations" if masks is None else f"regions of the masks' classes {list(objects)}",
        )

    def _open(self, data: DataLike) -> tuple[ImageSource, SegmentationData | None, Sequence[int]]:
        if not isinstance(data, Mapping):
            boxes = open_voc_boxes(Path(data), self.split or "trainval")
            if boxes is not None:
                return boxes, None, ()
        names = (self.split,) if self.split else TEST
        masks = open_segmentation(data, *names, ignore=self.ignore)
        objects = self.object_classes if self.object_classes is not None else masks.objects
        wrong = [number for number in objects if not 0 <= number < masks.num_classes]
        if wrong or not objects:
            raise DataError(
                f"object_classes={list(objects)}: {masks.source.name} has the classes 0 to {masks.num_classes - 1} "
                f"({', '.join(masks.class_names)}). Name those that are objects."
            )
        checked = masks.checked()
        return checked.source, checked, objects

    def _boxes(
        self, source: ImageSource, masks: SegmentationData | None, index: int, objects: Sequence[int]
    ) -> Float[np.ndarray, "boxes 4"]:
        if masks is not None:
            return mask_boxes(masks.mask(index), objects, self.smallest_object)
        assert isinstance(source, PairedFolders)
        return source.read_boxes(index)

    def _score(
        self, encoder: Encoder, image: UInt8[np.ndarray, "h w 3"], true: Float[np.ndarray, "boxes 4"]
    ) -> dict[str, float]:
        """Best overlap of each method's box with a true box."""
        size = image.shape[:2]
        keys, grid = padded_keys(encoder, image)
        best: dict[str, float] = {}
        for method in self.methods:
            region = (
                lost(keys, grid, self.expansion) if method == "lost" else tokencut(keys, grid, self.threshold)
            )
            best[method] = float(box_overlap(region_box(region, encoder.patch_size, size), true).max())
        return best


def _shrunk(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1.0:
        return image
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def padded_keys(
    encoder: Encoder, image: UInt8[np.ndarray, "h w 3"]
) -> tuple[Float[Tensor, "patches dim"], tuple[int, int]]:
    """Keys of an image at its own size, zero-padded right and below to whole patches, and their grid.

    Raises:
        ModelError: when the model gives no keys, or not one a cell of the grid.
    """
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(encoder.device)
    patch = encoder.patch_size
    below, right = (-side % patch for side in image.shape[:2])
    padded = F.pad(encoder.normalise(pixels), (0, right, 0, below))
    grid = padded.shape[2] // patch, padded.shape[3] // patch
    keys = encoder.last_keys(padded)[0].float()
    check_finite(encoder, keys, "keys of the last block")
    if len(keys) != grid[0] * grid[1]:
        raise ModelError(
            f"{encoder.name} gives {len(keys)} keys on a grid of {grid[0]}x{grid[1]}; object discovery needs one "
            "a patch. Use a plain Vision Transformer."
        )
    return keys, grid
