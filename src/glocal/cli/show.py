"""glocal show matches|views IMAGE [recipe=pw-self] [preset=...] [seed=0] [out=FILE.png] [a.b=c ...]."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from glocal.cli.screen import say, screen
from glocal.cli.settings import Index, Seed, split_words
from glocal.config import Config
from glocal.errors import ConfigError, DataError
from glocal.outside import given_path, new_file

if TYPE_CHECKING:
    from glocal.data import ImageSource

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class ShowSettings(Config):
    """What `glocal show` takes beside the settings of a run."""

    recipe: str = "pw-self"
    """Whose views to draw."""
    preset: str | None = None
    """One of the recipe's; null: chosen from the images."""
    seed: Seed = 0
    """Of the views."""
    out: str | None = None
    """The picture to write; null: matches.png or views.png here."""
    rule: Literal["paper", "center"] = "center"
    """How patches are matched."""
    index: Index = 0
    """Which image of a data set."""
    images: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Draw a contact sheet of so many images instead."""


def run(what: str, image: str, words: Sequence[str]) -> None:
    """Draw one image (or, for a data set, an image of it or a contact sheet) to a PNG."""
    if what not in ("matches", "views"):
        raise ConfigError(f"glocal show {what}: it must be matches or views.")
    own, overrides = split_words(ShowSettings, words)
    out = new_file(own.out or f"{what}.png", "out", _PICTURES)
    from glocal.recipes import choose_preset, configure
    from glocal.report.views import contact_sheet, draw_matches, draw_views

    source = _open(image)
    preset = own.preset or choose_preset(own.recipe, source)
    config = configure(own.recipe, data=image, out="unused", preset=preset, overrides=overrides)
    if own.index >= len(source):
        raise ConfigError(f"index={own.index}: {image} has images 0 to {len(source) - 1}.")
    if own.images is not None:
        picture = contact_sheet(source, config, own.images, own.seed)
    elif what == "views":
        picture = draw_views(source, own.index, config, own.seed)
    else:
        picture = draw_matches(source, own.index, config, own.seed, own.rule)
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    say(screen(), f"wrote {out} ({picture.width}x{picture.height})")


def _open(image: str) -> ImageSource:
    """One image file, or anything that `data=` takes."""
    from glocal.data import IMAGE_SUFFIXES, FileSource, open_source

    path = given_path(image, "image", DataError)
    if path.is_file() and path.suffix[1:].lower() in IMAGE_SUFFIXES:
        return FileSource(path.name, path.parent, [os.fsencode(path.name)])
    return open_source(image)
