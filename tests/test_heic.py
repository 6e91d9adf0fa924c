"""HEIC photographs, where pillow-heif is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glocal.data import open_source


def test_a_heic_photograph_is_read(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="no pillow-heif here: pip install 'glocal[heic]'")
    rows = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(rows[:, None], rows[None, :48], np.uint8(90)), axis=-1)
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "IMG_0001.HEIC", quality=95)
    source = open_source(tmp_path)
    image = source.read(0)
    assert source.key(0) == "IMG_0001.HEIC" and image.mode == "RGB" and image.size == (48, 64)
    assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 4
