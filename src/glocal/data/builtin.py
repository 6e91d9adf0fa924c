"""Data sets that need no network: the digits of scikit-learn, the photographs of its wheel and scikit-image's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from glocal.data.arrays import ArraySource
from glocal.data.decoding import decode_image
from glocal.data.named_set import NamedSet
from glocal.data.source import ImageSource, check_index, hold_out, short_hash
from glocal.data.splits import ALL
from glocal.errors import DataError

DIGITS_TEST = 360
"""Images of `digits` held out as its test split, of 1,797; the choice is fixed."""
TILE_SIDE = 84

# Name, package and file of each photograph. They lie inside the wheels; nothing is fetched.
_PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "hubble_deep_field": ("skimage", "data/hubble_deep_field.jpg"),
    "ihc": ("skimage", "data/ihc.png"),
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "brick": ("skimage", "data/brick.png"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "camera": ("skimage", "data/camera.png"),
    "coins": ("skimage", "data/coins.png"),
    "moon": ("skimage", "data/moon.png"),
    "text": ("skimage", "data/text.png"),
    "page": ("skimage", "data/page.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
PHOTO_NAMES = tuple(_PHOTOS)
"""The bundled photographs, in their order."""


def open_digits(split: str | None = None) -> ImageSource:
    """Open scikit-learn's handwritten digits: 1,797 images of 8x8 pixels, ten classes, gray values 0..16 times 255/16.

    The set comes without splits; ours are fixed: 360 images drawn once are `test`, the others `train`.

    Raises:
        DataError: for the split `val`.

    >>> len(open_digits("test"))
    360
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in range(10)]
    whole = ArraySource("digits", pixels, bunch.target.astype(np.int64), names)
    if split == ALL:
        return whole
    train, test = hold_out(whole, DIGITS_TEST, seed=0)
    train.name, test.name = "digits/train", "digits/test"
    if split not in (None, "train", "test"):
        raise DataError(f"digits has no split '{split}'. Allowed: train, test, all.")
    return test if split == "test" else train


class PhotoSource(ImageSource):
    """The photographs bundled in the wheels of scikit-image and scikit-learn, whole, without labels.

    >>> [PhotoSource().key(i) for i in range(2)]
    ['astronaut', 'chelsea']
    """

    name = "photos"

    def __init__(self) -> None:
        """Find the files.

        Raises:
            DataError: when scikit-image is not installed or lacks one of them.
        """
        roots = {package: _package_folder(package) for package in ("skimage", "sklearn")}
        self._files = [str(roots[package] / file) for package, file in _PHOTOS.values()]
        missing = [file for file in self._files if not Path(file).is_file()]
        if missing:
            raise DataError(
                f"The installed packages lack {len(missing)} of the {len(_PHOTOS)} photographs, for example "
                f"'{missing[0]}'. Install the versions that are tested: pip install 'glocal[photos]'."
            )

    def __len__(self) -> int:
        """How many photographs there are."""
        return len(self._files)

    def key(self, index: int) -> str:
        """Return the photograph's name."""
        return PHOTO_NAMES[check_index(index, len(self), self.name)]

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one photograph (see `ImageSource.read`)."""
        return decode_image(self._files[check_index(index, len(self), self.name)], at_least)

    def fingerprint(self) -> str:
        """Names and sizes of the files."""
        return short_hash(
            *(f"{Path(file).name} {Path(file).stat().st_size}".encode() for file in self._files)
        )


class TileSource(ImageSource):
    """Square tiles cut from the images of a source on a grid; the label says which image, the key also which tile.

    Grids start at the upper left corner; what is left over at the right and at the bottom belongs to no tile. Decoded
    images are kept, in each process: meant for a handful of them.

    >>> TileSource(PhotoSource(), side=84).key(0)
    'astronaut/0,0'
    """

    def __init__(self, source: ImageSource, side: int = TILE_SIDE, stride: int | None = None) -> None:
        """Lay the grids; `stride` between tiles is `side` by default, so that no two share a pixel.

        Raises:
            DataError: when side or stride is below 1, or no image has room for a tile.
        """
        stride = side if stride is None else stride
        if side < 1 or stride < 1:
            raise DataError(
                f"Tiles need a side and a stride of at least 1 pixel, got side={side}, stride={stride}."
            )
        self._decoded = {i: source.read(i) for i in range(len(source))}
        sizes = [self._decoded[i].size for i in range(len(source))]
        places = [
            (i, left, top)
            for i, (width, height) in enumerate(sizes)
            for top in range(0, height - side + 1, stride)
            for left in range(0, width - side + 1, stride)
        ]
        if not places:
            raise DataError(
                f"No image of {source.name} has room for a tile of {side} px; sizes: {sizes[:5]}."
            )
        self.name = f"{source.name}-tiles"
        self.class_names = [source.key(i) for i in range(len(source))]
        self._places = np.array(places, dtype=np.int32)
        self.labels = self._places[:, 0].astype(np.int64)
        self._source, self._side, self._stride = source, side, stride

    def __len__(self) -> int:
        """How many tiles there are."""
        return len(self._places)

    def key(self, index: int) -> str:
        """Return the image's key and the tile's left and top edge in pixels."""
        image, left, top = self._places[check_index(index, len(self), self.name)]
        return f"{self._source.key(int(image))}/{left},{top}"

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Cut one tile; tiles are always of full size, whatever `at_least` says."""
        image, left, top = (int(n) for n in self._places[check_index(index, len(self), self.name)])
        if image not in self._decoded:
            self._decoded[image] = self._source.read(image)
        return self._decoded[image].crop((left, top, left + self._side, top + self._side))

    def fingerprint(self) -> str:
        """Depends on the images, the side and the stride."""
        return short_hash(self._source.fingerprint().encode(), f"{self._side} {self._stride}".encode())

    def __getstate__(self) -> dict[str, object]:
        """Everything but the decoded images."""
        return {**self.__dict__, "_decoded": {}}


def _package_folder(package: str) -> Path:
    """Find an installed package without importing it (scikit-learn takes a second)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"The bundled photographs need {package}, which is not installed. Run: pip install 'glocal[photos]'."
        )
    return Path(next(iter(spec.submodule_search_locations)))


DIGITS = NamedSet("digits", open_digits, splits=("train", "test"))
PHOTOS = NamedSet("photos", PhotoSource)
TILES = NamedSet("photos-tiles", lambda: TileSource(PhotoSource()))
