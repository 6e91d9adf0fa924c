"""Answers of a search, and groups of duplicates, as one HTML file: pictures with their matched patches marked."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw

from glocal.curation.duplicates import Duplicates
from glocal.lookup.answers import EVIDENCE, Answers, MatchedPatch, read_row
from glocal.lookup.index import Index
from glocal.lookup.query import Box, patch_box
from glocal.report.canvas import fit, hue
from glocal.report.embedded import picture_uri

SIDE = 224
_STYLE = (
    "body{font:15px/1.4 system-ui,sans-serif;margin:2em;color:#1e1e1e;background:#fff}"
    "section{display:flex;gap:12px;align-items:flex-start;margin:0 0 22px;padding-top:14px;border-top:1px solid #ddd;flex-wrap:wrap}"
    "figure{margin:0;max-width:240px}figcaption{overflow-wrap:anywhere;font-size:13px}img{display:block;max-width:240px}"
)


def search_page(index: Index, answers: Answers, images: Sequence[str]) -> str:
    """One page: the query above, then every answer beside the view of the query that it matches, evidence drawn.

    Equal numbers mark patches that choose each other. Names stand in it escaped.
    """
    query = answers.query
    shown = (
        [_marked(query.pictures[0], [query.box])] if query.box else [fit(p, SIDE) for p in query.pictures[:8]]
    )
    names = images if len(images) == len(shown) else [*images[:1]] + [""] * (len(shown) - 1)
    sections = [_section(zip(shown, names, strict=True))]
    for number, answer in enumerate(answers.answers, 1):
        picture = read_row(index, answer.row)
        text = f"{number}. {answer.key} · score {answer.score:.3f}, cosine {answer.cosine:.3f}"
        asked, given = _evidence(query.pictures[answer.view], picture, answer.matches)
        sections.append(_section([(asked, f"{len(answer.matches)} matched patches"), (given, text)]))
    return page(f"Search in {index.path.name}", f"{len(index)} images searched.", sections)


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """A page of sections; title and lead are escaped here, sections are markup already."""
    head, first = html.escape(title), html.escape(lead)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{head}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{head}</h1><p>{first}</p>{''.join(sections)}</body></html>\n"
    )


def _section(figures: Iterable[tuple[Image.Image | None, str]]) -> str:
    """Pictures beside each other, each with an escaped text below."""
    parts = []
    for picture, text in figures:
        shown = (
            f'<img src="{picture_uri(picture)}" alt="">' if picture is not None else "<em>not readable</em>"
        )
        parts.append(f"<figure>{shown}<figcaption>{html.escape(text)}</figcaption></figure>")
    return f"<section>{''.join(parts)}</section>"


def _evidence(
    asked: Image.Image, given: Image.Image | None, matches: Sequence[MatchedPatch]
) -> tuple[Image.Image, Image.Image | None]:
    """Both pictures with their matched patches numbered alike."""
    return (
        _marked(asked, [match.query for match in matches]),
        None if given is None else _marked(given, [match.answer for match in matches]),
    )


def _marked(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    shown = fit(picture, SIDE).copy()
    draw = ImageDraw.Draw(shown)
    for number, (left, top, right, bottom) in enumerate(boxes):
        colour = hue(number, len(boxes))
        corners = (left * shown.width, top * shown.height, right * shown.width - 1, bottom * shown.height - 1)
        draw.rectangle(
            (*corners[:2], max(corners[0], corners[2]), max(corners[1], corners[3])), outline=colour, width=2
        )
        if len(boxes) > 1:
            centre = ((corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2)
            draw.text(
                centre, str(number + 1), fill=(255, 255, 255), anchor="mm", stroke_width=2, stroke_fill=colour
            )
    return shown


def duplicates_page(copies: Duplicates, most: int = 100) -> str:
    """One page: the most certain pair of each group, the patches that agree marked alike, and all names of the group."""
    shown = [(group, next(p for p in copies.pairs if p.first in group)) for group in copies.groups[:most]]
    grid, sections = copies.index.about.grid, []
    for group, pair in shown:
        matches = [
            MatchedPatch(patch_box(one, grid), patch_box(other, grid), 0.0)
            for one, other in pair.patches[:EVIDENCE]
        ]
        figures = [
            (None if picture is None else _marked(picture, boxes), copies.index.key(row))
            for row, boxes in (
                (pair.first, [match.query for match in matches]),
                (pair.second, [match.answer for match in matches]),
            )
            for picture in [read_row(copies.index, row)]
        ]
        others = [copies.index.key(row) for row in group if row not in (pair.first, pair.second)]
        text = f"score {pair.score:.3f}, {len(pair.patches)} patches agree on one placement"
        rest = f"<p>{html.escape(text)}{html.escape('; also ' + ', '.join(others) if others else '')}</p>"
        sections.append(_section(figures) + rest)
    lead = (
        f"{len(copies.groups)} groups of copies among {len(copies.index)} images; the first {len(shown)} are shown. "
        f"Score above {copies.threshold:.3f}, which {copies.rate:.2%} of images without a copy are expected to reach."
    )
    return page("Duplicates", lead, sections)
