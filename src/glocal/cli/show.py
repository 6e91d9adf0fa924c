"""glocal show matches|views IMAGE [recipe=pw-self] [preset=...] [seed=0] [out=FILE.png] [a.b=c ...]."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from glocal.cli.settings import split_settings
from glocal.errors import ConfigError

OWN = ("recipe", "preset", "seed", "out", "rule", "index", "images")


def run(what: str, image: str, words: Sequence[str]) -> None:
    """Draw one image (or, for a data set, an image of it or a contact sheet) to a PNG."""
    if what not in ("matches", "views"):
        raise ConfigError(f"glocal show {what}: it must be matches or views.")
    from glocal.data import open_source
    from glocal.recipes import configure
    from glocal.report.views import contact_sheet, draw_matches, draw_views

    own, overrides = split_settings(words, OWN)
    source = open_source(image)
    config = configure(
        own.get("recipe", "pw-self"), data=image, out="unused", preset=own.get("preset"), overrides=overrides
    )
    seed, index, out = int(own.get("seed", "0")), int(own.get("index", "0")), Path(own.get("out", f"{what}.png"))
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
