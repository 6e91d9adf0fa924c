"""Encoded files to 8-bit RGB images, and to masks. Everything that is wrong with a file becomes one error."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError, features

from glocal.errors import UnreadableImageError


def _further_suffixes() -> tuple[str, ...]:
    """Endings of formats that only some installations read: AVIF by Pillow from 11.3 on, HEIC by pillow-heif."""
    suffixes: tuple[str, ...] = ("avif",) if features.check("avif") else ()
    if importlib.util.find_spec("pillow_heif") is not None:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        suffixes += ("heic", "heif")
    return suffixes


IMAGE_SUFFIXES = (
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "png",
    "webp",
    "bmp",
    "gif",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "jp2",
    *_further_suffixes(),
)
"""File name endings that count as images, in any case."""

MOST_PIXELS = 2**27
"""Pixels of an image that is decoded, after JPEG's own reduction: 11,585 x 11,585, 400 MB as RGB. A small file may claim
far more: a grey PNG of 177 megapixels took 40 s and 2.6 GB at every reading."""

# EXIF orientation to the operation that undoes it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACKGROUND = (255, 255, 255)


def decode_image(
    data: bytes | str | Path, at_least: int | None = None, name: str | None = None
) -> Image.Image:
    """Decode an encoded image (bytes, or the path of a file) to 8-bit RGB, upright.

    What is not RGB already: grayscale is repeated; palettes are looked up; transparency is laid over white, because
    the colours under transparent pixels are arbitrary; 16-bit values are divided by 257, the same for every image;
    floating point images in 0..1 are multiplied by 255, others with a wider range are stretched to it; of animations
    and multi-page files the first frame counts. EXIF orientation is applied. Colour profiles are ignored.

    Args:
        data: the bytes of a file, or its path.
        at_least: allow JPEG to be decoded at 1/2, 1/4 or 1/8 of its size while the shorter side stays at least this.
        name: what to call the image in errors; default the path.

    Raises:
        UnreadableImageError: when the file is missing, empty, truncated, no image, or has too many pixels
            (`MOST_PIXELS`).

    >>> decode_image("cat.jpg", at_least=256).mode
    'RGB'
    """
    try:
        with Image.open(_readable(data)) as image:
            if at_least is not None and at_least > 0:
                image.draft(None, (at_least, at_least))
            _check_pixels(image)
            image.load()
            orientation = _orientation(image)
            rgb = to_rgb(image)
            return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    except MemoryError:
        # Pillow refuses absurd sizes before it allocates, so this is a shortage, not the image's fault.
        raise
    except Exception as error:
        raise _unreadable(data, name, error) from error


def decode_mask(data: bytes | str | Path, name: str | None = None) -> Integer[np.ndarray, "height width"]:
    """Decode a mask: the stored numbers themselves (palette indices, gray values), uint8 or, when wider, int32.

    Raises:
        UnreadableImageError: when the file can't be decoded or has several channels.
    """
    try:
        with Image.open(_readable(data)) as image:
            _check_pixels(image)
            image.load()
            if len(image.getbands()) != 1:
                raise ValueError(f"a mask has one channel of class numbers, this one has mode {image.mode}")
            values = np.array(image)
    except MemoryError:
        raise
    except Exception as error:
        raise _unreadable(data, name, error) from error
    return values.astype(np.uint8 if values.dtype.itemsize == 1 else np.int32)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB (see `decode_image`); one that is RGB already is returned as it is.

    Departs from Pillow's `convert("RGB")` for transparency (which that drops) and 16-bit or floating point values
    (which that clips at 255).
    """
    if image.mode == "RGB":
        if "transparency" not in image.info:
            return image
        image = image.convert("RGBA")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("L", "P", "1") and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        if image.mode in ("La", "PA"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        layer = image.convert("RGBA")
        below = Image.new("RGB", layer.size, _BACKGROUND)
        below.paste(layer, mask=layer.getchannel("A"))
        return below
    return image.convert("RGB")


def _to_eight_bits(values: Integer[np.ndarray, "h w"] | Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Bring integer or float gray values to 0..255."""
    wide = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(wide.min()), float(wide.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        wide = wide * 255
    elif (values.dtype.kind != "f" and values.dtype.itemsize == 2) or (low >= 0 and 255 < high <= 65535):
        wide = wide / 257
    elif low < 0 or high > 255:
        wide = (wide - low) * (255 / max(high - low, 1e-12))
    return np.round(wide).astype(np.uint8)


def _check_pixels(image: Image.Image) -> None:
    """Raise ValueError for an image over the budget; nothing but its header has been read."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, of which at most {MOST_PIXELS:,} are decoded; cut it into tiles"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none; a damaged EXIF block is no reason to drop a good image."""
    if image.format == "JPEG" and "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _readable(data: bytes | str | Path) -> io.BytesIO | str | Path:
    if isinstance(data, bytes):
        if not data:
            raise ValueError("zero bytes long")
        return io.BytesIO(data)
    return data


def _unreadable(data: bytes | str | Path, name: str | None, error: Exception) -> UnreadableImageError:
    """Say which image and why in one line."""
    if name is None:
        name = f"an image of {len(data)} bytes" if isinstance(data, bytes) else str(data)
    if isinstance(error, FileNotFoundError):
        reason = "the file does not exist"
    elif isinstance(error, UnidentifiedImageError):
        reason = "no image format that Pillow knows"
        if not isinstance(data, bytes) and Path(data).stat().st_size == 0:
            reason = "zero bytes long"
    else:
        reason = str(error) or type(error).__name__
    return UnreadableImageError(f"{name}: {reason}")
