"""DAVIS-2017 semi-supervised video object segmentation by label propagation, multi-object, scored by J and F.

The first frame's mask is given, the rest follows by the features alone. The definition is that of DINO's evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from glocal.errors import ConfigError, DataError
from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.intervals import Samples
from glocal.evaluation.objects.davis_data import DavisVideos
from glocal.evaluation.objects.davis_metrics import SequenceScore, score_dataset, score_sequence
from glocal.evaluation.objects.label_propagation import Propagation, follow, sharpen
from glocal.evaluation.results import Result
from glocal.evaluation.segmentation.dense_features import resize_mask
from glocal.extraction.feature_stream import computed_by
from glocal.extraction.journal import Journal
from glocal.extraction.patch_stream import patches_of_pixels
from glocal.extraction.progress import progress_bar
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder

if TYPE_CHECKING:
    from typing_extensions import Self

Labels = UInt8[np.ndarray, "h w"]


def frame_size(width: int, height: int, short_side: int, patch_size: int) -> tuple[int, int]:
    """Width and height a frame is resized to: short side given, long side floored to a multiple of 64 pixels.

    Where 64 is no multiple of the patch, both sides are floored to whole patches (the reference would fail).

    >>> frame_size(854, 480, 480, 16)
    (832, 480)
    >>> frame_size(854, 480, 480, 14)
    (854, 476)
    """
    step = 64 if 64 % patch_size == 0 else patch_size
    short = max(patch_size, short_side // patch_size * patch_size)
    ratio = max(width, height) / min(width, height)
    # Floating point must not turn an exact 960 into 959.99 and lose a step.
    long = max(short, math.floor(short_side * ratio + 1e-6) // step * step)
    return (long, short) if width >= height else (short, long)


class Davis(ProtocolConfig):
    """Label propagation on DAVIS 2017, 480p.

    Departures from the reference: frames are resized with an antialiased filter; the model's own mean and deviation are
    used; a patch that doesn't divide 64 floors both sides to whole patches.
    """

    protocol: ClassVar[str] = "davis"

    split: str = "val"
    """List under ImageSets/2017."""
    sequences: list[str] | None = None
    """Only these; null: all of the split."""
    short_side: int = 480
    """Pixels of the shorter side. Resolution decides the number: never compare across it."""
    previous: int = 7
    """Frames before the target that serve as sources, besides the first."""
    radius: int = 12
    """Furthest source in patches, in rows and in columns."""
    best: int = 5
    """Sources kept per target patch."""
    temperature: float = 0.1
    """Of exp(cosine / temperature)."""
    layer: int = -1
    """Block whose patches are used, counted from the end, after the final norm."""
    save: str | None = None
    """Folder for predicted label maps (indexed PNG) and one overlay GIF a sequence; null: nothing is written."""

    @classmethod
    def quick(cls, encoder: Encoder) -> Self:
        """The published 30 patches on the short side, whatever the patch: 480 pixels only at patches of 16."""
        return cls(short_side=min(480, 30 * encoder.patch_size))

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Follow the objects of every sequence and score them. Needs no training and no labels but the first mask."""
        if isinstance(data, Mapping):
            raise DataError("davis needs the path of a DAVIS 2017 folder or tar, not image sources.")
        if min(self.radius, self.previous) < 0 or self.best < 1 or self.temperature <= 0:
            raise ConfigError(
                "radius and previous must be 0 or more, best 1 or more and temperature above 0."
            )
        videos = DavisVideos(data, self.split)
        names = self._chosen(videos)
        scores: list[SequenceScore] = []
        journal = self._journal(encoder, videos, work)
        total = sum(len(videos.frames(name)) for name in names)
        with progress_bar(
            f"{videos.name}: label propagation", total, work.progress, unit="frames"
        ) as advance:
            for name in names:
                kept = journal.get(name)
                if kept is not None:
                    region, boundary = map(np.array, kept["scores"])
                    scores.append(SequenceScore(name, region, boundary, kept["notes"]))
                    advance(len(videos.frames(name)))
                    continue
                truth = videos.read_masks(name)
                predicted = []
                for labels in self.predict(encoder, videos, name, truth[0]):
                    predicted.append(labels)
                    advance(1)
                if self.save is not None:
                    save_sequence(Path(self.save), videos, name, predicted)
                scores.append(score_sequence(name, truth, predicted))
                of = scores[-1]
                journal.add(name, {"scores": [of.region.tolist(), of.boundary.tolist()], "notes": of.notes})
        numbers = {key: 100 * value for key, value in score_dataset(scores).items()}
        rows = [_row(score) for score in scores]
        region = 100 * np.concatenate([score.region.mean(1) for score in scores])
        boundary = 100 * np.concatenate([score.boundary.mean(1) for score in scores])
        by_object = {"J&F": (region + boundary) / 2, "J_mean": region, "F_mean": boundary}
        return self.result(
            encoder,
            {"videos": videos},
            numbers,
            rows=rows,
            notes=[note for score in scores for note in score.notes],
            resolution=f"short side {self.short_side}",
            features="patches, unit length",
            norm=True,
            sequences=names,
            samples={name: Samples(values[:, None]) for name, values in by_object.items()},
        )

    def _journal(self, encoder: Encoder, videos: DavisVideos, work: Work) -> Journal:
        """Scores of finished sequences. None are read back where predictions are to be written."""
        settings = self.model_dump(mode="json", exclude={"save", "sequences"})
        deciding = [self.protocol, self.version, *computed_by(encoder), videos.state(), settings]
        return Journal(work.cache if self.save is None else None, deciding)

    def _chosen(self, videos: DavisVideos) -> list[str]:
        unknown = [name for name in self.sequences or [] if name not in videos.sequences]
        if unknown:
            raise DataError(
                f"{videos.name} has no sequence {', '.join(unknown)}; it has {', '.join(videos.sequences)}."
            )
        return self.sequences if self.sequences is not None else videos.sequences

    def predict(
        self, encoder: Encoder, videos: DavisVideos, sequence: str, first_mask: Labels
    ) -> Iterator[Labels]:
        """Yield the label map of every frame at its own size, the given one first.

        Raises:
            ModelError: when the model gives no patch tokens.
            DataError: when the first mask shows no object or has another size than its frame.
        """
        given = np.where(first_mask == 255, 0, first_mask)
        frames = videos.frames(sequence)
        size = videos.read_frame(frames[0]).size
        if given.max() == 0:
            raise DataError(f"Sequence {sequence}: the first mask shows no object (values 1 and up).")
        if given.shape != (size[1], size[0]):
            raise DataError(
                f"Sequence {sequence}: the first mask is {given.shape[1]}x{given.shape[0]}, its frame "
                f"{size[0]}x{size[1]}. Export masks at the size of the frames."
            )
        width, height = frame_size(*size, self.short_side, encoder.patch_size)
        grid = height // encoder.patch_size, width // encoder.patch_size
        device = encoder.device
        small = torch.from_numpy(resize_mask(given, grid)).long().to(device)
        one_hot = torch.nn.functional.one_hot(small, int(given.max()) + 1).float()
        settings = Propagation(self.previous, self.radius, self.best, self.temperature)
        yield given
        features = (self._features(encoder, videos.read_frame(name), (width, height)) for name in frames)
        for soft in follow(features, one_hot, settings):
            labels = sharpen(soft, encoder.patch_size).to(torch.uint8).cpu().numpy()
            yield resize_mask(labels, (size[1], size[0]))

    def _features(
        self, encoder: Encoder, frame: Image.Image, size: tuple[int, int]
    ) -> Float[Tensor, "rows columns dim"]:
        resized = np.array(frame.resize(size, Image.Resampling.BILINEAR))
        pixels = encoder.normalise(torch.from_numpy(resized).permute(2, 0, 1)[None].to(encoder.device))
        patches, grid = patches_of_pixels(encoder, pixels, self.layer)
        return patches[0].reshape(*grid, -1)


def _row(score: SequenceScore) -> dict[str, Any]:
    region, boundary = 100 * float(score.region.mean()), 100 * float(score.boundary.mean())
    row = {"sequence": score.name, "objects": len(score.region), "frames": score.region.shape[1]}
    return {**row, "J&F": (region + boundary) / 2, "J": region, "F": boundary}


def palette(colours: int = 256) -> UInt8[np.ndarray, "colours 3"]:
    """Colours of object numbers as PASCAL VOC and DAVIS draw them: the number's bits dealt to the high bits of RGB.

    >>> palette()[:3].tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    numbers = np.arange(colours)
    table = np.zeros((colours, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return table


def overlay(
    frame: UInt8[np.ndarray, "h w 3"], labels: Labels, strength: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """Tint every object of a frame with its colour; the background stays."""
    tinted = (1 - strength) * frame + strength * palette()[labels]
    result: np.ndarray = np.where((labels > 0)[..., None], np.round(tinted), frame).astype(np.uint8)
    return result


def save_sequence(folder: Path, videos: DavisVideos, sequence: str, labels: list[Labels]) -> None:
    """Write `SEQUENCE/00000.png` and so on, named as the frames are, and `SEQUENCE.gif` (half size, 10 frames/s)."""
    target = folder / sequence
    target.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, label in zip(videos.frames(sequence), labels, strict=True):
        indexed = Image.fromarray(label)
        indexed.putpalette(palette().tobytes())
        indexed.save(target / f"{Path(name).stem}.png")
        frame = videos.read_frame(name)
        drawn = Image.fromarray(overlay(np.asarray(frame), label))
        pictures.append(drawn.resize((drawn.width // 2, drawn.height // 2)))
    pictures[0].save(
        folder / f"{sequence}.gif", save_all=True, append_images=pictures[1:], duration=100, loop=0
    )
