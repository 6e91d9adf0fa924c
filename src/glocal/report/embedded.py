"""How pictures, numbers and names get into one HTML file: as data that the page's script reads, never as markup."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int8, UInt8
from PIL import Image

QUALITY = 82


class Sheet(NamedTuple):
    """Equal square cells in rows, as one picture; cell `i` lies in column `i % columns`."""

    picture: str
    cell: int
    columns: int

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        return {"picture": self.picture, "cell": self.cell, "columns": self.columns}


def picture_uri(picture: Image.Image, quality: int = QUALITY) -> str:
    """A photograph as a data address (WebP)."""
    return _uri(picture, "webp", quality=quality, method=4)


def map_uri(values: UInt8[np.ndarray, "rows columns channels"]) -> str:
    """A small map, a pixel a patch, as a lossless data address (PNG). RGB or RGBA."""
    return _uri(Image.fromarray(values), "png", optimize=True)


def sheet(pictures: Sequence[Image.Image], cell: int, quality: int = QUALITY) -> Sheet:
    """Put square pictures on one sheet, each scaled to `cell` pixels."""
    columns = max(1, math.ceil(math.sqrt(len(pictures))))
    rows = max(1, math.ceil(len(pictures) / columns))
    whole = Image.new("RGB", (columns * cell, rows * cell), (128, 128, 128))
    for number, picture in enumerate(pictures):
        scaled = picture.resize((cell, cell), Image.Resampling.LANCZOS)
        whole.paste(scaled, (number % columns * cell, number // columns * cell))
    return Sheet(picture_uri(whole, quality), cell, columns)


def bytes_text(values: Int8[np.ndarray, "*shape"]) -> str:
    """Signed bytes in C order as base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def script_json(data: Mapping[str, Any]) -> str:
    r"""JSON that can stand inside a script element, whatever texts it holds: `</script>` in a file name stays a text.

    Numbers that aren't finite become null.

    >>> script_json({"name": "</script>"})
    '{"name": "\\u003c/script\\u003e"}'
    """
    text = json.dumps(_finite(data), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def rounded(values: Float[np.ndarray, "*shape"], digits: int = 4) -> list[Any]:
    """Nested lists of numbers, short enough for a page."""
    listed: list[Any] = np.round(values.astype(np.float64), digits).tolist()
    return listed


def _uri(picture: Image.Image, kind: str, **settings: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
