"""What a run's records say, in plain words: is it learning, what is wrong, what to change. Reads figures, never weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from glocal.verdict.collapse import CollapseMonitor
from glocal.verdict.score import best_step

Severity = Literal["failed", "warning", "note"]
Record = Mapping[str, Any]

LEARNT = 1.05
"""The best score over that of the untouched model, from which on something was learnt."""
PAST_BEST = 3.0
OVERFITTING = 10.0
WAITING = 0.3
ARTEFACTS = 0.01
POSITION = 0.5


class Finding(NamedTuple):
    """One thing that is wrong, and what to change."""

    severity: Severity
    what: str
    change: str
    says_all: bool = False
    """Whether this is the sentence of the run, although it has not failed."""


class Diagnosis(NamedTuple):
    """A run in one sentence, and everything that is wrong, the worst first."""

    sentence: str
    findings: list[Finding]
    best: int | None
    """The step of the highest score."""

    @property
    def status(self) -> Literal["failed", "warning", "healthy", "unknown"]:
        """The worst finding's severity; healthy with a score and none; unknown without any figure."""
        severities = [finding.severity for finding in self.findings]
        if "failed" in severities:
            return "failed"
        if "warning" in severities:
            return "warning"
        return "healthy" if self.best is not None else "unknown"


def diagnose(records: Sequence[Record], planned: int) -> Diagnosis:
    """Read the records of `metrics.jsonl` of a run that was planned for `planned` steps."""
    scores = [(r["step"], r["verdict.score"]) for r in _examined(records)]
    best = best_step(scores)
    findings = [*_diverged(records), *_collapsed(records, planned), *_learning(scores, planned)]
    if not any(finding.severity == "failed" for finding in findings):
        findings += [*_past_best(scores), *_figures(records), *_waiting(records)]
    order = ("failed", "warning", "note")
    findings.sort(key=lambda finding: order.index(finding.severity))
    return Diagnosis(_sentence(records, scores, findings, best, planned), findings, best)


def _diverged(records: Sequence[Record]) -> list[Finding]:
    for record in records:
        for name in ("loss", "verdict.score", "effective_rank"):
            value = record.get(name, 0.0)
            if value is None or not math.isfinite(value):  # records keep no number as null
                return [
                    Finding(
                        "failed",
                        f"Weights diverged: {name} is no number at step {record['step']}.",
                        "Halve optimiser.learning_rate, make optimiser.clip smaller, or set speed.precision=fp32.",
                    )
                ]
    return []


def _collapsed(records: Sequence[Record], planned: int) -> list[Finding]:
    monitor = CollapseMonitor()
    collapses = [c for r in records for c in monitor.look(r, share=r["step"] / max(1, planned))]
    return [Finding("failed", *_cut(collapse.text)) for collapse in collapses]


def _cut(text: str) -> tuple[str, str]:
    """What happened, and from the imperative on what to change."""
    for verb in (". Lower ", ". Set "):
        what, separator, rest = text.partition(verb)
        if separator:
            return what + ".", separator.removeprefix(". ") + rest
    return text, ""


def _learning(scores: Sequence[tuple[int, float]], planned: int) -> list[Finding]:
    """A run that is over and whose score never rose above that of the model it started from."""
    if len(scores) < 2 or scores[0][0] != 0 or scores[-1][0] < planned:
        return []
    start, highest = scores[0][1], max(value for _, value in scores)
    if highest >= LEARNT * start:
        return []
    return [
        Finding(
            "warning",
            f"Nothing was learnt that shows without labels: the best score is {highest:.1f}, before training it was {start:.1f}.",
            "Train longer. If this was the full length, change optimiser.learning_rate tenfold (down, if the loss jumps), and "
            "look at pictures/views.png: do two views of an image still show the same thing?",
            says_all=True,
        )
    ]


def _past_best(scores: Sequence[tuple[int, float]]) -> list[Finding]:
    best = best_step(scores)
    if best is None or dict(scores)[best] < scores[-1][1] + PAST_BEST:
        return []
    return [
        Finding(
            "warning",
            f"The score was highest at step {best} ({dict(scores)[best]:.1f}) and fell to {scores[-1][1]:.1f}.",
            "Take export/best, and train shorter (training.stop=auto) or with a smaller optimiser.learning_rate.",
        )
    ]


def _figures(records: Sequence[Record]) -> list[Finding]:
    findings = []
    gap, norms, position = (
        latest(records, f"verdict.{n}") for n in ("overfitting", "high_norm_share", "position_share")
    )
    if gap is not None and gap > OVERFITTING:
        findings.append(
            Finding(
                "warning",
                f"Training images are found {gap:.0f} points more often than held-out ones: the model learns them by heart.",
                "Train shorter, use more images, or stronger views (a smaller views.global.area).",
            )
        )
    if norms is not None and norms > ARTEFACTS:
        findings.append(
            Finding(
                "note",
                f"{norms:.1%} of the patches have a norm above three medians: artefacts that maps of patches will show.",
                "Set backbone.registers=4 in the next run.",
            )
        )
    if position is not None and position > POSITION:
        findings.append(
            Finding(
                "note",
                f"{position:.0%} of the patch embeddings' variance is position: patches say where they are, not what they show.",
                "Add or strengthen a patch term (recipe pw-self), or crop more strongly.",
            )
        )
    return findings


def _waiting(records: Sequence[Record]) -> list[Finding]:
    shares = [r["waiting_share"] for r in records if r.get("waiting_share") is not None][1:]
    share = sum(shares) / len(shares) if shares else 0.0
    if share < WAITING:
        return []
    return [
        Finding(
            "note",
            f"{share:.0%} of the time was spent waiting for images.",
            "Raise speed.workers, lower speed.decode_at_least, or store the images smaller.",
        )
    ]


def _sentence(
    records: Sequence[Record],
    scores: Sequence[tuple[int, float]],
    findings: Sequence[Finding],
    best: int | None,
    planned: int,
) -> str:
    if findings and (findings[0].severity == "failed" or findings[0].says_all):
        return findings[0].what
    if best is None:
        return "There are no label-free figures of this run, so nothing can be said of what it learnt."
    examined = _examined(records)
    at_best, first = next(r for r in examined if r["step"] == best), examined[0]
    retrieval, place = at_best["verdict.retrieval"], at_best["verdict.correspondence"]
    done = max(r["step"] for r in records)
    going_on = "" if done >= planned else f"; the run is at {done:,} of {planned:,}"
    where = f"at step {best:,}{going_on}"
    if best == 0:
        told = (
            "it has just begun"
            if done == 0
            else f"after {done:,} of {planned:,} steps no score is above the untouched model's"
        )
        return f"Nothing can be said yet: {told}."
    ago = ["", ""]
    if first["step"] == 0:
        ago = [f" ({first[f'verdict.{n}']:.0f} before training)" for n in ("retrieval", "correspondence")]
    end = " " + findings[0].what if findings and findings[0].severity == "warning" else ""
    return (
        f"It is learning: of 100 distorted crops {retrieval:.0f} find their image{ago[0]}, and of 100 patches {place:.0f} find "
        f"their place{ago[1]}, {where}.{end}"
    )


def _examined(records: Sequence[Record]) -> list[Record]:
    """Records with the score and both figures that it is told by; a file changed by hand may hold one without others."""
    names = ("score", "retrieval", "correspondence")
    return [r for r in records if all(r.get(f"verdict.{name}") is not None for name in names)]


def latest(records: Sequence[Record], name: str) -> float | None:
    """The last value recorded under a name; null when there is none."""
    value = next((r[name] for r in reversed(records) if r.get(name) is not None), None)
    return None if value is None else float(value)
