"""Copies planted among 10,000 images: how many `glocal duplicates` finds, and how many others it takes for copies.

python -m benchmarks.study_planted_copies MODEL DATA [rate=0.001] [seed=0] [out=FOLDER]

Eleven edits, 50 copies each, of images drawn at random. Found: the copy stands in a group with its original. Falsely matched:
share of the images without a planted copy that stand in any pair; real copies in DATA count as false here. With out= the
embeddings stay there, and a run that was interrupted does not make them again.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from glocal.curation.duplicates import duplicates
from glocal.data.open import open_source
from glocal.data.source import ImageSource
from glocal.models.loading import load

COPIES = 50
Edit = Callable[[Image.Image, np.random.Generator], Image.Image]


class Planted(ImageSource):
    """A source's images, then edited copies of some."""

    def __init__(self, source: ImageSource, copies: list[Image.Image]) -> None:
        self.name, self._source, self._copies = f"{source.name} with copies", source, copies

    def __len__(self) -> int:
        return len(self._source) + len(self._copies)

    def key(self, index: int) -> str:
        """A number."""
        return str(index)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """An image, or a copy."""
        inside = index < len(self._source)
        return self._source.read(index) if inside else self._copies[index - len(self._source)]

    def fingerprint(self) -> str:
        """Of the source and the number of copies."""
        return f"{self._source.fingerprint()} {len(self._copies)}"


def jpeg(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Quality 15."""
    stream = io.BytesIO()
    image.save(stream, "jpeg", quality=15)
    return Image.open(stream).convert("RGB")


def half(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Half the side and back."""
    return image.resize((image.width // 2, image.height // 2)).resize(image.size)


def colour(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by 0.6 to 1.4."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(draw.uniform(0.6, 1.4)))
    return image


def crop(share: float) -> Edit:
    """A part of this area, enlarged again."""

    def cut(image: Image.Image, draw: np.random.Generator) -> Image.Image:
        side = share**0.5
        left, top = draw.random(2) * (1 - side) * image.size
        box = (int(left), int(top), int(left + side * image.width), int(top + side * image.height))
        return image.crop(box).resize(image.size)

    return cut


def overlay(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """A white bar over an eighth and a red disc."""
    image, (w, h) = image.copy(), image.size
    pen = ImageDraw.Draw(image)
    pen.rectangle((w * 0.1, h * 0.7, w * 0.9, h * 0.85), fill=(255, 255, 255))
    pen.ellipse((w * 0.1, h * 0.1, w * 0.3, h * 0.3), fill=(200, 30, 30))
    return image


EDITS: dict[str, Edit] = {
    "jpeg 15": jpeg,
    "half size": half,
    "blur": lambda image, draw: image.filter(ImageFilter.GaussianBlur(image.width / 40)),
    "mirrored": lambda image, draw: ImageOps.mirror(image),
    "colour": colour,
    "mirrored, colour": lambda image, draw: colour(ImageOps.mirror(image), draw),
    "crop 80 %": crop(0.8),
    "crop 50 %": crop(0.5),
    "bar and disc": overlay,
    "turned 8 degrees": lambda image, draw: image.rotate(
        float(draw.uniform(-8, 8)), Image.Resampling.BICUBIC
    ),
    "grey": lambda image, draw: image.convert("L").convert("RGB"),
}


def main() -> None:
    """Plant, look, count, print."""
    options = dict(word.split("=") for word in sys.argv[3:])
    source = open_source(sys.argv[2])
    source = source.subset(np.arange(min(10_000, len(source))))
    draw = np.random.default_rng(int(options.get("seed", 0)))
    originals = draw.choice(len(source), COPIES * len(EDITS), replace=False)
    names = np.repeat(list(EDITS), COPIES)
    copies = [EDITS[name](source.read(int(i)), draw) for name, i in zip(names, originals, strict=True)]
    started = time.process_time()
    found = duplicates(
        load(sys.argv[1]),
        Planted(source, copies),
        options.get("out") or tempfile.mkdtemp(),
        rate=float(options.get("rate", 0.001)),
        progress=False,
    )
    group = {row: number for number, rows in enumerate(found.groups) for row in rows}
    first = len(source)
    hit = np.array([group.get(first + n, -1) == group.get(int(o), -2) for n, o in enumerate(originals)])
    paired = {row for pair in found.pairs for row in (pair.first, pair.second)}
    clean = set(range(first)) - set(originals.tolist())
    print(
        f"threshold {found.threshold:.3f}; found {hit.mean():.1%}; falsely matched {len(clean & paired) / len(clean):.2%} "
        f"of {len(clean)} (asked {found.rate:.2%}); {time.process_time() - started:.0f} CPU s"
    )
    print(", ".join(f"{name} {hit[names == name].mean():.0%}" for name in EDITS))


if __name__ == "__main__":
    main()
