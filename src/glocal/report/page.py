"""`glocal report`: one HTML file that shows a run and what it learnt. No network, no build step, opens from disk."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glocal.atomic_files import write_atomically
from glocal.data import ImageSource, open_source
from glocal.errors import DataError, GlocalError
from glocal.models.backbone import Backbone
from glocal.models.encoder import Encoder
from glocal.models.loading import load
from glocal.outside import given_path
from glocal.report.collection import collect
from glocal.report.embedded import script_json
from glocal.report.evaluation_tables import evaluation_tables
from glocal.report.model_looks import NamedEncoder, choose_samples, embed_images, look
from glocal.report.run_story import RunStory, read_story
from glocal.report.seen_views import seen_images
from glocal.training.config import RunConfig
from glocal.training.network import build_distillation

LARGEST = 15 * 2**20
"""Bytes of a page at most."""
SCRIPTS = ("page.js", "charts.js", "viewer.js", "looks.js", "map.js", "views.js", "start.js")


class Shown(NamedTuple):
    """How much a page shows."""

    images: int = 400
    """Images of the collection: map, neighbours, clusters."""
    samples: int = 12
    """Images in the patch viewer and under the model's lenses."""
    samples_from: str | None = None
    """Data of these, taken evenly; null: chosen from the collection, each followed by the image nearest to it."""
    size: int | None = None
    """Pixels at which models look at the samples; null: chosen from model and images."""


def write_report(
    run: str | Path,
    models: Sequence[str] = (),
    data: str | None = None,
    out: str | Path | None = None,
    shown: Shown = Shown(),
    extra: Mapping[str, Any] | None = None,
    live: int | None = None,
) -> Path:
    """Write the page of a run, or of any model that `glocal.load` reads; return its path.

    Args:
        run: a run folder, or a model.
        models: further models to stand beside it. A run's own untouched model stands there when none is named.
        data: images to show; null: those of the run.
        out: the file; null: `report.html` in the run folder, or in the working folder for a mere model.
        shown: how much.
        extra: more for the page: `table` (columns, rows, title), as the demo gives.
        live: seconds after which an open page loads itself anew; null: never.

    Raises:
        GlocalError: when run, models or data can't be opened.
        DataError: when the page would exceed 15 MiB.

    >>> write_report("runs/a", data="photos")  # doctest: +SKIP
    """
    folder = given_path(run, "run", DataError)
    story = read_story(folder) if (folder / "config.yaml").is_file() else None
    if story is None and data is None:
        raise DataError(f"{run} is no run folder, so data= must say which images to show.")
    source = open_source(data or story.config.data)  # type: ignore[union-attr]
    encoders = gather_models(str(run), models, story)
    content = page_data(story, encoders, source, shown)
    content["seen"] = _seen(story, source, data) if story is not None else []
    content["evaluation"] = evaluation_tables(
        {e.name: Path(s) for e, s in zip(encoders, [run, *models], strict=False)}
    )
    content |= {"title": _title(folder, story), "live": live, **(extra or {})}
    path = Path(out) if out is not None else (folder if story is not None else Path()) / "report.html"
    page = render_page(content)
    if len(page.encode()) > LARGEST:
        raise DataError(
            f"The page would have {len(page) / 2**20:.1f} MiB; at most 15 are allowed. Show fewer: images=200 samples=8."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def page_data(
    story: RunStory | None, encoders: Sequence[NamedEncoder], source: ImageSource, shown: Shown
) -> dict[str, Any]:
    """Everything on the page that models and images decide. Leaves all random generators as they were."""
    content: dict[str, Any] = {} if story is None else story.to_json()
    if not encoders:
        return {**content, "models": [], "samples": [], "collection": None}
    collection = collect(source, shown.images)
    with torch.random.fork_rng(devices=[]):
        embeddings = [embed_images(model.encoder, collection) for model in encoders]
        queries = choose_samples(embeddings[0], shown.samples)
        named = shown.samples_from
        samples = collection.pick(queries) if named is None else collect(open_source(named), shown.samples)
        looks = [
            look(m, collection, queries, samples, e, shown.size)
            for m, e in zip(encoders, embeddings, strict=True)
        ]
    return {
        **content,
        "models": looks,
        "queries": queries,
        "samples": samples.large(),
        "collection": collection.to_json(),
    }


def render_page(content: Mapping[str, Any]) -> str:
    """Fill the page. Names, classes and metadata stand in it as JSON, or escaped."""
    folder = files("glocal.report").joinpath("page_files")
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(str(content["title"])),
        "REFRESH": f'<meta http-equiv="refresh" content="{int(content["live"])}">'
        if content.get("live")
        else "",
        "STYLE": folder.joinpath("page.css").read_text(encoding="utf-8"),
        "SENTENCE": html.escape(content.get("verdict", {}).get("sentence", "")),
        "SCRIPT": "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS),
        "WRITTEN": datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
    }
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    # Last, so that nothing in the data is taken for a place to fill.
    return page.replace("<!--DATA-->", script_json(content))


def gather_models(run: str, models: Sequence[str], story: RunStory | None) -> list[NamedEncoder]:
    """The run's best model by its score first; then those named, or the run's model before training. Empty while a run has no weights."""
    best = Path(run).expanduser() / "export" / "best"
    try:
        first = [NamedEncoder(Path(run).name or run, load(best if best.is_dir() else run))]
    except GlocalError:
        if story is None:
            raise
        first = []
    named = [NamedEncoder(Path(spec).name or spec, load(spec)) for spec in models]
    if story is not None and first and not named:
        named = [NamedEncoder("before training", untouched_encoder(story.config, first[0].encoder))]
    return first + named


def untouched_encoder(config: RunConfig, like: Encoder) -> Encoder:
    """The model that a run started from: its `init`, or its random weights."""
    if config.init is not None:
        return load(config.init)
    backbone: Backbone = build_distillation(config).teacher.backbone
    return Encoder(
        "before training", backbone, backbone.embed_dim, like.patch_size, like.image_size, like.mean, like.std
    )


def _seen(story: RunStory, source: ImageSource, data: str | None) -> list[dict[str, Any]]:
    """Views of the run's own images, where they can still be opened."""
    try:
        return seen_images(source if data is None else open_source(story.config.data), story.config)
    except GlocalError:
        return []


def _title(folder: Path, story: RunStory | None) -> str:
    return (
        folder.name
        if story is None
        else f"{folder.name}: {story.config.recipe} on {Path(story.config.data).name}"
    )
