"""glocal show PICTURE IMAGE|DATA [model=RUN] [out=FILE.png] [key=value ...]: one picture as a file.

views and matches show what training sees, by recipe; attention, pca, neighbours, correspondences and map show what a
model makes of images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from glocal.cli.screen import say, screen
from glocal.cli.settings import Index, Seed, split_words
from glocal.config import Config
from glocal.errors import ConfigError, DataError, nearest_name
from glocal.outside import given_path, new_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from glocal.data import ImageSource

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class ShowSettings(Config):
    """What `glocal show` takes beside the settings of a run."""

    recipe: str = "pw-self"
    """Whose views to draw."""
    preset: str | None = None
    """One of the recipe's; null: the nearest to the images."""
    seed: Seed = 0
    """Of the views."""
    out: str | None = None
    """The picture to write; null: matches.png or views.png here."""
    rule: Literal["paper", "center"] = "center"
    """How patches are matched."""
    index: Index = 0
    """Which image of a data set."""
    images: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many images of a data set; views and matches draw a contact sheet of so many."""
    model: str | None = None
    """What `glocal.load` reads; needed for pictures of a model."""
    other: str | None = None
    """A second image, for correspondences and neighbours of one image: it is put beside the first."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Pixels at which the model looks at patches; null: chosen from model and images."""


SEEN = ("views", "matches")


def run(what: str, image: str, words: Sequence[str]) -> None:
    """Draw one picture to a file."""
    options, overrides = split_words(ShowSettings, words)
    out = new_file(options.out or f"{what}.png", "out", _PICTURES)
    picture = (
        _draw_seen(what, image, options, overrides)
        if what in SEEN
        else _draw_model(what, image, options, overrides)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(out)
    say(screen(), f"wrote {out} ({picture.width}x{picture.height})")


def _draw_seen(what: str, image: str, options: ShowSettings, overrides: Sequence[str]) -> Image:
    """What training sees of an image, or of several on a contact sheet."""
    from glocal.recipes import choose_preset, configure
    from glocal.report.views import contact_sheet, draw_matches, draw_views

    source = _open(image)
    preset = options.preset or choose_preset(options.recipe, source)
    config = configure(options.recipe, data=image, out="unused", preset=preset, overrides=overrides)
    if options.index >= len(source):
        raise ConfigError(f"index={options.index}: {image} has images 0 to {len(source) - 1}.")
    if options.images is not None:
        return contact_sheet(source, config, options.images, options.seed)
    if what == "views":
        return draw_views(source, options.index, config, options.seed)
    return draw_matches(source, options.index, config, options.seed, options.rule)


def _draw_model(what: str, image: str, options: ShowSettings, overrides: Sequence[str]) -> Image:
    """What a model makes of an image, a pair or a collection."""
    from glocal.models.loading import load
    from glocal.report.collection import collect
    from glocal.report.model_pictures import MODEL_PICTURES, SHOWN_IMAGES

    if what not in MODEL_PICTURES:
        names = (*SEEN, *MODEL_PICTURES)
        raise ConfigError(
            f"glocal show {what}: there is no such picture.{nearest_name(what, names)} Allowed: {', '.join(names)}."
        )
    if overrides:
        raise ConfigError(f"{overrides[0]}: views and matches take settings of a run; {what} does not.")
    if options.model is None:
        raise ConfigError(f"glocal show {what} shows what a model makes of images: add model=RUN.")
    images = collect(_open(image), options.images or SHOWN_IMAGES[what])
    if options.other is not None:
        images = images.pick([0]).beside(collect(_open(options.other), SHOWN_IMAGES[what] - 1))
    return MODEL_PICTURES[what](load(options.model), images, options.size)


def _open(image: str) -> ImageSource:
    """One image file, or anything that `data=` takes."""
    from glocal.data import IMAGE_SUFFIXES, FileSource, open_source

    path = given_path(image, "image", DataError)
    if path.is_file() and path.suffix[1:].lower() in IMAGE_SUFFIXES:
        return FileSource(path.name, path.parent, [os.fsencode(path.name)])
    return open_source(image)
