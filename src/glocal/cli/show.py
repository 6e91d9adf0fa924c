"""glocal show matches|views IMAGE [recipe=pw-self] [preset=...] [seed=0] [out=FILE.png] [a.b=c ...]."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from glocal.cli.settings import split_settings
from glocal.errors import ConfigError

if TYPE_CHECKING:
    from glocal.data import ImageSource

OWN = ("recipe", "preset", "seed", "out", "rule", "index", "images")


def run(what: str, image: str, words: Sequence[str]) -> None:
    """Draw one image (or, for a data set, an image of it or a contact sheet) to a PNG."""
    if what not in ("matches", "views"):
        raise ConfigError(f"glocal show {what}: it must be matches or views.")
    from glocal.recipes import choose_preset, configure
    from glocal.report.views import contact_sheet, draw_matches, draw_views

    own, overrides = split_settings(words, OWN)
    source = _open(image)
    recipe = own.get("recipe", "pw-self")
    preset = own.get("preset") or choose_preset(recipe, source)
    config = configure(recipe, data=image, out="unused", preset=preset, overrides=overrides)
    seed, index, out = (
        int(own.get("seed", "0")),
        int(own.get("index", "0")),
        Path(own.get("out", f"{what}.png")),
    )
    if not 0 <= index < len(source):
        raise ConfigError(f"index={index}: {image} has images 0 to {len(source) - 1}.")
    if "images" in own:
        picture = contact_sheet(source, config, int(own["images"]), seed)
    elif what == "views":
        picture = draw_views(source, index, config, seed)
    else:
        picture = draw_matches(source, index, config, seed, own.get("rule", "center"))  # type: ignore[arg-type]
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    Console().print(f"wrote {out} ({picture.width}x{picture.height})", highlight=False)


def _open(image: str) -> ImageSource:
    """One image file, or anything that `data=` takes."""
    from glocal.data import IMAGE_SUFFIXES, FileSource, open_source

    path = Path(image)
    if path.is_file() and path.suffix[1:].lower() in IMAGE_SUFFIXES:
        return FileSource(path.name, path.parent, [os.fsencode(path.name)])
    return open_source(image)
