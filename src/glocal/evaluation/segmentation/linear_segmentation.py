"""Linear segmentation: one linear layer on frozen patches, in two forms whose numbers must not be mixed.

`linear-seg` follows DINOv3's evaluation (batch norm and 1x1 convolution, AdamW, full-resolution scoring);
`linear-seg-100` follows Leopart and NeCo (1x1 convolution on a 100x100 map, SGD, scored at 100x100).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.errors import ConfigError
from glocal.evaluation.base import DataLike
from glocal.evaluation.results import Result
from glocal.evaluation.segmentation.dense_features import (
    QUICK_GRID,
    DenseConfig,
    DenseImage,
    PatchReader,
    Scoring,
    best_class,
    resize_mask,
    upsample,
)
from glocal.evaluation.segmentation.masks import SegmentationData, open_train_and_test
from glocal.evaluation.segmentation.metrics import IGNORED
from glocal.evaluation.segmentation.sliding import sliding_logits
from glocal.extraction.progress import progress_bar
from glocal.extraction.random_crops import RandomCrops
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.schedules import warmup_cosine
from glocal.views.randomness import hash_seed

if TYPE_CHECKING:
    from typing_extensions import Self


class Batch(NamedTuple):
    """Frozen features as maps, and masks at the size that the loss is taken at."""

    maps: Float[Tensor, "batch dim rows columns"]
    masks: UInt8[Tensor, "batch h w"]


class LinearHead(nn.Module):
    """Dropout of whole channels, batch norm, 1x1 convolution drawn with deviation 0.01 and no bias at the start."""

    def __init__(self, dim: int, classes: int, dropout: float, batch_norm: bool, seed: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.BatchNorm2d(dim) if batch_norm else None
        self.linear = nn.Conv2d(dim, classes, 1)
        generator = torch.Generator().manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            self.linear.weight.copy_(0.01 * torch.randn(self.linear.weight.shape, generator=generator))
            nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]

    def forward(
        self, maps: Float[Tensor, "batch dim rows columns"]
    ) -> Float[Tensor, "batch classes rows columns"]:
        """Class logits of every patch."""
        if self.training and self.dropout > 0:
            # Drawn from a generator of its own on the CPU: the same on every device, training's stream untouched.
            kept = torch.rand(maps.shape[:2], generator=self.generator) >= self.dropout
            maps = maps * (kept.to(maps.device) / (1 - self.dropout))[:, :, None, None]
        logits: Tensor = self.linear(self.norm(maps) if self.norm is not None else maps)
        return logits


class _Linear(DenseConfig):
    """What both forms share: a stream of training batches, a head, scoring."""

    augment: bool = True
    """Random crops and flips, features computed anew at every step. False computes every feature once, on the squashed
    image: minutes become seconds, and the number is another one (settings in the result tell)."""
    batch: int = 16
    """Images a training step."""
    seed: int = 0
    """Decides the order of images, the crops and the start of the head."""

    def _batches(
        self,
        reader: PatchReader,
        train: SegmentationData,
        area: tuple[float, float],
        aspect: tuple[float, float],
        mask_side: int,
    ) -> Iterator[Batch]:
        """Yield shuffled training batches without end; only the last of an epoch may be smaller."""
        # In half precision: ViT-S at 448 px takes 0.6 MB an image.
        kept = (
            None
            if self.augment
            else [(m.half().cpu(), mask) for m, mask in _pairs(reader.images(train), mask_side)]
        )
        quiet = replace(reader, work=replace(reader.work, batch_size=self.batch, progress=False))
        pairs: Iterator[tuple[Tensor, Tensor]]
        for epoch in itertools.count():
            order = np.random.default_rng([self.seed, epoch]).permutation(
                len(train) if kept is None else len(kept)
            )
            if kept is not None:
                pairs = (kept[place] for place in order)
            else:
                source = RandomCrops(train.checked().source, hash_seed(self.seed, 3), epoch, area, aspect)
                seen = replace(train, source=source)
                pairs = _pairs(quiet.images(seen, order), mask_side)
            while group := list(itertools.islice(pairs, self.batch)):
                # Batch statistics of a single image mean little: a lone leftover is dropped.
                if len(group) > 1 or self.batch == 1 or len(order) == 1:
                    device = reader.encoder.device
                    maps, masks = (torch.stack(parts).to(device) for parts in zip(*group, strict=True))
                    yield Batch(maps.float(), masks)

    def _train(
        self,
        head: LinearHead,
        batches: Iterator[Batch],
        steps: int,
        optimiser: torch.optim.Optimizer,
        rate: Callable[[int], float],
        work: Work,
    ) -> None:
        """Fit the head; logits are brought to the masks' size, which equals enlarging features, only cheaper."""
        head.train()
        base = optimiser.param_groups[0]["lr"]
        with progress_bar("linear head", steps, work.progress, unit="steps") as advance:
            for step in range(steps):
                maps, masks = next(batches)
                for group in optimiser.param_groups:
                    group["lr"] = base * rate(step)
                logits = head(maps)
                if logits.shape[2:] != masks.shape[1:]:
                    logits = F.interpolate(logits, size=masks.shape[1:], mode="bilinear", align_corners=False)
                loss = F.cross_entropy(logits, masks.long(), ignore_index=IGNORED)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                advance(1)
        head.eval()


def _pairs(images: Iterable[DenseImage], mask_side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features as maps (dim rows columns) and masks at the size that the loss is taken at."""
    for image in images:
        mask = torch.from_numpy(resize_mask(image.mask, (mask_side, mask_side)))
        yield image.patches.T.reshape(-1, *image.grid), mask


class LinearSegmentation(_Linear):
    """DINOv3's form: batch norm and a linear layer on the last normed patches, scored at the masks' own size.

    With `augment`, training crops cover `1 / scale` of the image's side and testing slides a window where an image is
    larger than it; without, both see the squashed image. The reference trains 40,000 steps on 512 px crops.

    Departures from the reference: a crop never reaches beyond the image, so the smallest scales are cut off on images
    no larger than the crop; the aspect ratio of crops is the image's own.
    """

    protocol: ClassVar[str] = "linear-seg"

    size: int | None = 512
    """Side in pixels of crops, of windows, or of the squashed image; null: the model's own."""
    stride: int | None = None
    """Step of the test window; null: two thirds of `size` (341 for 512)."""
    test: Literal["slide", "squash"] = "slide"
    """How test images are seen with `augment`: shorter side at `size` and a sliding window, or squashed."""
    scales: tuple[float, float] = (0.5, 2.0)
    """Range of the enlargement before cropping."""
    steps: int = 40_000
    """Training steps; results at fewer are to be compared with each other only."""
    warmup: int = 1500
    """Steps of linear warm-up, at most a tenth of all."""
    rate: float = 1e-3
    """Peak learning rate (AdamW), cosine down to 0."""
    weight_decay: float = 1e-3
    """AdamW's."""
    dropout: float = 0.1
    """Share of channels dropped."""
    mask_side: int | None = None
    """Side of the masks in the loss; null: `size`. Smaller is faster."""

    @classmethod
    def quick(cls, encoder: Encoder) -> Self:
        """Frozen features of the squashed image on a grid of 14x14 patches, 1000 steps, loss at 56x56."""
        return cls(augment=False, size=QUICK_GRID * encoder.patch_size, steps=1000, mask_side=56)

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Train the head on train, score it on the test split."""
        if min(self.steps, self.batch) < 1 or not 0 < self.scales[0] <= self.scales[1]:
            raise ConfigError("steps and batch must be 1 or more and scales two rising numbers above 0.")
        train, test = open_train_and_test(data, self.ignore, self.num_classes)
        reader = self.reader(encoder, work)
        head = LinearHead(encoder.embed_dim, train.num_classes, self.dropout, True, self.seed)
        head.to(encoder.device)
        area = (min(1.0, self.scales[1] ** -2), min(1.0, self.scales[0] ** -2))
        batches = self._batches(reader, train, area, (1.0, 1.0), self.mask_side or reader.side)
        optimiser = torch.optim.AdamW(head.parameters(), lr=self.rate, weight_decay=self.weight_decay)
        warmup = min(self.warmup, self.steps // 10)
        self._train(head, batches, self.steps, optimiser, warmup_cosine(warmup, self.steps), work)
        slide = self.augment and self.test == "slide"
        scoring = Scoring(test)
        for mask, logits in self._logits(reader, test, head, slide):
            scoring.add(mask, best_class(logits))
        seen = f"shorter side {reader.side}, sliding window" if slide else f"{reader.side} squash"
        told = f"{seen}, scored at the masks' size"
        return self.scored(reader, train, scoring, resolution=told, warmup=warmup, features="patches")

    def _logits(
        self, reader: PatchReader, test: SegmentationData, head: LinearHead, slide: bool
    ) -> Iterator[tuple[UInt8[np.ndarray, "h w"], Float[Tensor, "classes h w"]]]:
        """Yield every test mask with the logits brought to its size."""
        if not slide:
            for image in reader.images(test, title="scoring"):
                logits = _head_on(head, image.patches, image.grid)
                yield image.mask, upsample(logits, image.grid, image.mask.shape)
            return

        def predict(patches: Tensor, grid: tuple[int, int]) -> Tensor:
            return _head_on(head, patches, grid)

        yield from sliding_logits(reader, test, self.stride or reader.side * 2 // 3, predict)


class LinearSegmentation100(_Linear):
    """Leopart's and NeCo's form: features enlarged to 100x100, a linear layer, SGD; scored at 100x100.

    A linear layer commutes with interpolation, so logits are enlarged in place of features: the same numbers for a
    fraction of the memory and time.

    Departure from the reference: crops are drawn per image and epoch from a hash, not from a running generator.
    """

    protocol: ClassVar[str] = "linear-seg-100"

    size: int | None = 448
    """Side in pixels that images or crops are squashed to; null: the model's own."""
    batch: int = 60
    """Images a training step (Leopart 60, NeCo 128)."""
    epochs: int = 25
    """Passes over train; the learning rate falls to a tenth after four fifths of them."""
    rate: float = 0.01
    """Of SGD with momentum 0.9."""
    weight_decay: float = 1e-4
    """SGD's."""
    output: int = 100
    """Side of the map that the loss is taken and the score counted at."""

    @classmethod
    def quick(cls, encoder: Encoder) -> Self:
        """Frozen features of the squashed image on a grid of 14x14 patches: every image passes the model once."""
        return cls(augment=False, size=QUICK_GRID * encoder.patch_size)

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Train the head on train, score it on the test split."""
        if min(self.epochs, self.batch, self.output) < 1:
            raise ConfigError("epochs, batch and output must be 1 or more.")
        train, test = open_train_and_test(data, self.ignore, self.num_classes)
        reader = self.reader(encoder, work)
        head = LinearHead(encoder.embed_dim, train.num_classes, 0.0, False, self.seed).to(encoder.device)
        batches = self._batches(reader, train, (0.8, 1.0), (3 / 4, 4 / 3), self.output)
        parameters = head.parameters()
        optimiser = torch.optim.SGD(parameters, lr=self.rate, momentum=0.9, weight_decay=self.weight_decay)
        a_pass = max(1, math.ceil(len(train) / self.batch))
        falls = a_pass * (self.epochs * 4 // 5)
        steps = a_pass * self.epochs
        self._train(head, batches, steps, optimiser, lambda s: 1.0 if s < falls else 0.1, work)
        side, scoring = (self.output, self.output), Scoring(test)
        for image in reader.images(test, title="scoring"):
            # The layer is linear and interpolation sums to 1, so enlarging logits equals enlarging features.
            logits = upsample(_head_on(head, image.patches, image.grid), image.grid, side)
            scoring.add(resize_mask(image.mask, side), best_class(logits))
        told = f"{reader.side} squash, scored at {self.output}x{self.output}"
        return self.scored(reader, train, scoring, resolution=told, features="patches")


def _head_on(
    head: LinearHead, patches: Float[Tensor, "patches dim"], grid: tuple[int, int]
) -> Float[Tensor, "patches classes"]:
    with torch.no_grad():
        logits: Tensor = head(patches.T.reshape(1, -1, *grid))[0].flatten(1).T
    return logits
