"""The ladder's table and plots, made from its records and from nothing else."""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence
from pathlib import Path

from glocal.ladder.rows import ROWS
from glocal.ladder.study import Record

FIGURES = ("knn", "linear", "correspondence", "camvid", "copies")
_HEAD = {"knn": "k-NN", "linear": "linear", "correspondence": "correspondence", "camvid": "CamVid mIoU",
         "copies": "copies R@1"}  # fmt: skip


def write_page(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write `ladder.md` and one SVG for each ground and scale that has runs; return the files."""
    sections, files = [], []
    runs = [r for r in records if r["kind"] == "run"]
    for ground, scale in sorted({(r["ground"], r["scale"]) for r in runs}):
        here = [r for r in runs if (r["ground"], r["scale"]) == (ground, scale)]
        here += [r for r in records if r["kind"] == "control" and r["ground"] == ground]
        sections += [f"## {ground}, {_budget(here)}", "", *_table(here), ""]
        picture = folder / f"ladder-{ground}-{scale}.svg"
        picture.write_text(_plot(here, f"{ground}: {_budget(here)}"))
        sections += [f"![{ground} at {scale}]({picture.name})", ""]
        files.append(picture)
    page = folder / "ladder.md"
    page.write_text("\n".join([_INTRODUCTION, *sections, *_tuning(records)]).rstrip() + "\n")
    return [page, *files]


_INTRODUCTION = """# The ladder: every recipe at equal compute

The rows of a table are trained with the same FLOPs (forward, backward, teacher, heads and optimiser counted) and measured
once on the test images. Rows that stand in a tuning table below had their learning rates picked by the same three short
runs on held-out training images; the others ran at their recipe's. Mean and, behind ±, half the range over seeds. Rows
that are missing have not been run; a row of one seed decides nothing within two points. Networks compute in bfloat16 in
training and in measuring (the three runs at 1.5e+14 were measured in float32: 0.05 points apart). `glocal ladder
train=false` makes this page anew from its records; `glocal reproduce ROW` holds a run of your own against it.
"""


def _table(records: Sequence[Record]) -> list[str]:
    figures = [f for f in FIGURES if any(f in r["figures"] for r in records)]
    lines = [
        f"| row | seeds | {' | '.join(_HEAD[f] for f in figures)} | images | minutes |",
        "|" + "---|" * (len(figures) + 4),
    ]
    for row in _rows(records):
        mine = [r for r in records if r["row"] == row]
        cells = [_cell([r["figures"][f] for r in mine if f in r["figures"]]) for f in figures]
        images = [r["images"] for r in mine if r.get("images")]
        minutes = [r["seconds"] / 60 for r in mine if r.get("seconds")]
        seen = f"{statistics.fmean(images):,.0f}" if images else "–"
        took = f"{statistics.fmean(minutes):.1f}" if minutes else "–"
        lines.append(f"| {row} | {len(mine)} | {' | '.join(cells)} | {seen} | {took} |")
    return lines


def _rows(records: Sequence[Record]) -> list[str]:
    """Rows that have records: the ladder's in its order, controls last."""
    present = dict.fromkeys(r["row"] for r in records)
    return [row for row in ROWS if row in present] + [row for row in present if row not in ROWS]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _budget(records: Sequence[Record]) -> str:
    flops = [r["flops"] for r in records if r.get("flops")]
    return f"{statistics.fmean(flops):.2g} FLOPs a run" if flops else "no training"


def _tuning(records: Sequence[Record]) -> list[str]:
    tuned = [r for r in records if r["kind"] == "tuning"]
    if not tuned:
        return []
    lines = [
        "## Tuning",
        "",
        "Factor of the learning rates; k-NN (correspondence without labels) on held-out images.",
        "",
    ]
    for ground, scale in sorted({(r["ground"], r["scale"]) for r in tuned}):
        here = [r for r in tuned if (r["ground"], r["scale"]) == (ground, scale)]
        rates = sorted({r["rate"] for r in here})
        lines += [
            f"| {ground}, {scale} | {' | '.join(f'x{rate:g}' for rate in rates)} |",
            "|" + "---|" * (len(rates) + 1),
        ]
        for row in _rows(here):
            scores = {
                r["rate"]: r["figures"].get("knn", r["figures"]["correspondence"])
                for r in here
                if r["row"] == row
            }
            lines.append(
                f"| {row} | {' | '.join(f'{scores[x]:.1f}' if x in scores else '–' for x in rates)} |"
            )
        lines.append("")
    return lines


def _plot(records: Sequence[Record], title: str) -> str:
    """One dot a seed, a column of axes a figure, rows by name: an SVG that needs no library."""
    rows = _rows(records)
    figures = [f for f in FIGURES if any(f in r["figures"] for r in records)]
    left, top, width, pitch = 190, 46, 190, 20
    height = top + pitch * len(rows) + 16
    shapes = [f'<text x="8" y="18" font-size="14">{html.escape(title)}</text>']
    for number, row in enumerate(rows):
        y = top + pitch * number + pitch / 2
        shapes.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{html.escape(row)}</text>')
        shapes.append(
            f'<line x1="{left}" x2="{left + len(figures) * width - 20}" y1="{y}" y2="{y}" stroke="#ddd"/>'
        )
    for column, figure in enumerate(figures):
        values = [r["figures"][figure] for r in records if figure in r["figures"]]
        low, high = min(values), max(values)
        scale = (width - 50) / max(high - low, 1e-9)
        first = left + column * width + 10
        shapes.append(f'<text x="{first}" y="{top - 8}">{_HEAD[figure]} {low:.0f} to {high:.0f}</text>')
        for record in records:
            if figure in record["figures"]:
                x = first + (record["figures"][figure] - low) * scale
                y = top + pitch * rows.index(record["row"]) + pitch / 2
                shapes.append(f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="#2563eb" fill-opacity=".7"/>')
    total = left + len(figures) * width
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" font-family="sans-serif" '
        f'font-size="11" role="img" aria-label="{html.escape(title)}"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(shapes)}</svg>\n"
    )
