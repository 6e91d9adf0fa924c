"""glocal search INDEX IMAGE... [box=x0,y0,x1,y1] [patch=row,column] [out=FILE.html|FILE.json] [key=value ...]."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from glocal.atomic_files import write_atomically
from glocal.cli.screen import plain_table, say, screen
from glocal.cli.settings import read_words
from glocal.config import Config
from glocal.errors import ConfigError, DataError
from glocal.outside import given_path, new_file


class SearchSettings(Config):
    """What `glocal search` takes beside the index and the images to look for."""

    box: str | None = None
    """x0,y0,x1,y1 in pixels of the image: look for what it shows in all images. Needs an index with patches=true."""
    patch: str | None = None
    """row,column on the model's grid, from 0: look for one patch. Needs an index with patches=true."""
    count: Annotated[int, Field(ge=1, le=10_000)] = 10
    """How many answers."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 100
    """How many of the nearest are compared patch by patch."""
    views: Literal["whole", "copies"] = "whole"
    """copies: look for parts of the image and for it turned, too, to find what it was made from."""
    rerank: bool = True
    """Order by matched patches and class embeddings; false: by class embeddings alone."""
    engine: Literal["auto", "exact", "faiss"] = "auto"
    """faiss needs the extra; auto takes it from 100,000 vectors on."""
    out: str | None = None
    """A .json or .html file; the page is one file with the matched patches drawn. Null: the table is printed only."""
    device: str = "auto"
    """Where the model looks at the query."""


def run(index: str, words: Sequence[str]) -> None:
    """Search, print a table, write a page or JSON."""
    images = [word for word in words if "=" not in word]
    settings = read_words(SearchSettings, [word for word in words if "=" in word])
    if not images:
        raise ConfigError("Nothing to look for: glocal search INDEX IMAGE [IMAGE ...].")
    for image in images:
        if not given_path(image, "image").is_file():
            raise DataError(f"'{image}' is no file. Give the image to look for.")
    out = None if settings.out is None else new_file(settings.out, "out", (".json", ".html"))
    box, patch = _numbers(settings.box, "box", 4), _numbers(settings.patch, "patch", 2)
    corners = None if box is None else (box[0], box[1], box[2], box[3])
    from glocal.lookup.answers import search
    from glocal.lookup.index import Index

    opened = Index(index)
    result = search(
        opened, images, box=corners, patch=None if patch is None else (int(patch[0]), int(patch[1])),
        **settings.model_dump(exclude={"box", "patch", "out"}),
    )  # fmt: skip
    rows = (
        [str(n), f"{a.score:.3f}", f"{a.cosine:.3f}", str(len(a.matches)), a.key]
        for n, a in enumerate(result.answers, 1)
    )
    screen().print(plain_table("", "score", "cosine", "matches", "image", rows=rows))
    if out is None:
        return
    if out.suffix.lower() == ".json":
        text = json.dumps(
            {"index": index, "images": images, "answers": [a.to_json() for a in result.answers]}, indent=1
        )
    else:
        from glocal.report.search_page import search_page

        text = search_page(opened, result, images)
    write_atomically(out, lambda file: file.write(text.encode()))
    say(screen(), f"wrote {out}")


def _numbers(text: str | None, key: str, count: int) -> tuple[float, ...] | None:
    """Numbers with commas between them.

    Raises:
        ConfigError: for anything else.
    """
    if text is None:
        return None
    try:
        numbers = tuple(float(word) for word in text.strip("[]() ").split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(abs(number) < 1e9 for number in numbers):
        example = "box=10,20,110,90" if key == "box" else "patch=3,7"
        raise ConfigError(
            f"{key}={text}: give {count} numbers with commas between them, for example {example}."
        )
    return numbers
