"""Decoding: every kind of file becomes upright 8-bit RGB, or one error that names it."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from glocal.data import decode_image, decode_mask
from glocal.errors import UnreadableImageError

GRADIENT = np.add.outer(np.arange(24) * 4, np.arange(40) * 3).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture() -> Image.Image:
    return Image.fromarray(np.stack([GRADIENT, GRADIENT[::-1], 255 - GRADIENT], axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    decoded = decode_image(encoded(picture(), kind))
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture()))


def test_path_and_bytes_agree(tmp_path: Path) -> None:
    data = encoded(picture(), "JPEG", quality=90)
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(
        np.asarray(decode_image(tmp_path / "a.jpg")), np.asarray(decode_image(data))
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    pixels = np.asarray(decode_image(encoded(picture(), kind, exif=exif, **options))).astype(int)
    stored = np.asarray(picture()).astype(int)
    # EXIF 2.3, tag 0x0112: which side of the stored array is the top and which the left of the scene.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored[::-1].transpose(1, 0, 2),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: stored[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert pixels.shape == upright.shape
    assert np.abs(pixels - upright).mean() < (4 if kind == "JPEG" else 0.01)


def test_grayscale_is_repeated() -> None:
    np.testing.assert_array_equal(
        np.asarray(decode_image(encoded(Image.fromarray(GRADIENT)))),
        np.repeat(GRADIENT[..., None], 3, axis=-1),
    )


def test_bilevel_becomes_black_and_white() -> None:
    values = np.asarray(decode_image(encoded(Image.fromarray(GRADIENT > 90))))
    np.testing.assert_array_equal(values[..., 1], np.where(GRADIENT > 90, 255, 0))


def test_sixteen_bits_are_divided_by_257_in_every_image() -> None:
    wide = (GRADIENT.astype(np.uint16) * 257) // 4
    decoded = np.asarray(decode_image(encoded(Image.fromarray(wide))))
    np.testing.assert_array_equal(decoded[..., 0], np.round(wide / 257).astype(np.uint8))


def test_float_images() -> None:
    unit = GRADIENT.astype(np.float32) / 255
    np.testing.assert_array_equal(
        np.asarray(decode_image(encoded(Image.fromarray(unit), "TIFF")))[..., 2], GRADIENT
    )
    signed = np.asarray(decode_image(encoded(Image.fromarray(unit * 8 - 3), "TIFF")))
    assert (signed.min(), signed.max()) == (0, 255)
    broken = unit.copy()
    broken[0, 0] = np.nan
    assert np.asarray(decode_image(encoded(Image.fromarray(broken), "TIFF")))[0, 0, 0] == 0


def test_palette_is_looked_up() -> None:
    image = Image.fromarray((GRADIENT // 86).astype(np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
    colours = np.asarray(decode_image(encoded(image)))
    np.testing.assert_array_equal(colours, np.eye(3, dtype=np.uint8)[GRADIENT // 86] * 255)


def test_cmyk_jpeg_keeps_its_colours() -> None:
    data = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(decode_image(data)).astype(int) - np.asarray(picture())).mean() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = picture().convert(mode)
    alpha = np.zeros((24, 40), np.uint8)
    alpha[:, :20] = 255
    image.putalpha(Image.fromarray(alpha))
    decoded = np.asarray(decode_image(encoded(image)))
    assert (decoded[:, 20:] == 255).all()
    np.testing.assert_array_equal(
        decoded[:, :20], np.asarray(picture().convert(mode[:-1]).convert("RGB"))[:, :20]
    )


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour_is_laid_over_white(mode: str) -> None:
    black = Image.new(mode, (4, 4))
    black.putpixel((0, 0), (9, 9, 9) if mode == "RGB" else {"P": 1, "L": 9}[mode])
    if mode == "P":
        black.putpalette([0, 0, 0, 9, 9, 9])
    decoded = np.asarray(decode_image(encoded(black, transparency=(0, 0, 0) if mode == "RGB" else 0)))
    assert decoded[0, 0].tolist() == [9, 9, 9]
    assert decoded[1, 1].tolist() == [255, 255, 255]


@given(width=st.integers(8, 700), height=st.integers(8, 700), at_least=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_draft_never_goes_below_what_was_asked(width: int, height: int, at_least: int) -> None:
    data = encoded(Image.new("RGB", (width, height), (90, 20, 200)), "JPEG")
    shorter = min(decode_image(data, at_least=at_least).size)
    assert shorter >= min(at_least, width, height)
    # It shrinks by 2, 4 or 8 whenever the next power of two allows.
    assert shorter <= 2 * at_least or shorter <= -(-min(width, height) // 8)


def test_draft_keeps_png_whole() -> None:
    assert decode_image(encoded(picture()), at_least=4).size == (40, 24)


BAD = {
    "zero bytes": (b"", "zero bytes"),
    "text": (b"<html>404 not found</html>" * 20, "no image format"),
    "header only": (encoded(picture())[:20], "."),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_image_is_named(what: str, tmp_path: Path) -> None:
    data, reason = BAD[what]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=f"bad.png: .*{reason}"):
        decode_image(path)
    with pytest.raises(UnreadableImageError, match=f"row 7: .*{reason}"):
        decode_image(data, name="row 7")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_unreadable(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(UnreadableImageError):
        decode_image(data[: len(data) // 2])


@given(
    position=st.integers(0, 10_000),
    value=st.integers(0, 255),
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF"]),
)
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_an_image_or_the_one_error(position: int, value: int, kind: str) -> None:
    data = bytearray(encoded(picture(), kind))
    data[position % len(data)] = value
    with contextlib.suppress(UnreadableImageError):
        assert decode_image(bytes(data)).mode == "RGB"


def test_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="does not exist"):
        decode_image(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImageError, match="directory"):
        decode_image(tmp_path)


def test_absurd_size_is_refused_before_memory_is_taken() -> None:
    header = bytearray(encoded(Image.new("L", (1, 1)), "BMP"))
    header[18:26] = (60_000).to_bytes(4, "little") + (60_000).to_bytes(4, "little")
    with pytest.raises(UnreadableImageError, match="pixels"):
        decode_image(bytes(header))


def test_masks_are_the_stored_numbers() -> None:
    classes = (GRADIENT // 20).astype(np.uint8)
    gray = decode_mask(encoded(Image.fromarray(classes)))
    np.testing.assert_array_equal(gray, classes)
    assert gray.dtype == np.uint8
    indexed = Image.fromarray(classes).convert("P")
    indexed.putdata(classes.reshape(-1).tolist())
    indexed.putpalette([7, 200, 30] * 256)
    np.testing.assert_array_equal(decode_mask(encoded(indexed)), classes)
    wide = classes.astype(np.uint16) * 300
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(wide))), wide)


def test_colour_masks_are_refused() -> None:
    with pytest.raises(UnreadableImageError, match=r"one channel.*RGB"):
        decode_mask(encoded(picture()))


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """Half a megabyte that stands for 177 megapixels; Pillow itself refuses from 179 on."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 13_304, 13_304, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    for decode in (decode_image, decode_mask):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(
                UnreadableImageError, match=r"13304 x 13304 pixels, of which at most 134,217,728"
            ):
                decode(bomb)
