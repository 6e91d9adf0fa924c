"""glocal duplicates MODEL data=... out=FOLDER [rate=0.001] [key=value ...]."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from glocal.atomic_files import write_atomically
from glocal.cli.screen import say, screen
from glocal.cli.settings import CollectionSettings, read_words
from glocal.outside import new_folder


class DuplicatesSettings(CollectionSettings):
    """What `glocal duplicates` takes beside the model."""

    out: str
    """A folder for duplicates.json, duplicates.html and the index, which is brought up to date the next time."""
    rate: Annotated[float, Field(gt=0, lt=0.2)] = 0.001
    """False-match rate: share of images without a copy that may be given one. The collection's own scores set the
    threshold for it."""
    candidates: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many of an image's nearest are looked at, by class embedding, by thumbnail and by each quarter of it."""
    engine: Literal["auto", "exact", "faiss"] = "auto"
    """How neighbours are found; auto: faiss from 100,000 images on, where it is installed."""


def run(model: str, words: Sequence[str]) -> None:
    """Find copies, write groups and evidence, say what was found."""
    settings = read_words(DuplicatesSettings, words)
    out = new_folder(settings.out, "out")
    from glocal.curation.duplicates import duplicates
    from glocal.report.search_page import duplicates_page

    copies = duplicates(model, settings.data, out, **settings.model_dump(exclude={"data", "out"}))
    text = json.dumps(copies.to_json(), indent=1)
    write_atomically(out / "duplicates.json", lambda file: file.write(text.encode()))
    page = duplicates_page(copies)
    write_atomically(out / "duplicates.html", lambda file: file.write(page.encode()))
    say(
        screen(),
        f"{len(copies.groups)} groups of copies among {len(copies.index)} images, {len(copies.surplus())} images too many.",
        f"Score above {copies.threshold:.3f}, which {copies.rate:.2%} of images without a copy are expected to reach.",
        f"{out / 'duplicates.json'} has the groups, {out / 'duplicates.html'} the evidence.",
    )
