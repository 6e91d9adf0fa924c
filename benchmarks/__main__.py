"""Every promised ratio on this machine, in one table: `make bench`.

    python -m benchmarks [tiny] [NAME ...] [records=FILE]

Each benchmark runs in a process of its own. Medians and spread are printed beside the last record of the same hardware and
added to `benchmarks/records.jsonl`; a ratio more than a tenth above its last one ends in exit status 1, as does a benchmark
that fails. A bar that is missed is marked and fails nothing: docs/benchmarks.md says what limits it.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.ratios import machine

NAMES = ("data", "photometric", "matching", "step", "evaluation", "adapt")
RECORDS = Path(__file__).parent / "records.jsonl"
WORSE = 1.1
"""Times the last record's median from which on a ratio is a regression."""
Ratios = Mapping[str, Mapping[str, Any]]


def main(words: Sequence[str]) -> int:
    """Run what is named, or all; print, compare and record."""
    size = "tiny" if "tiny" in words else "full"
    records = Path(next((word[8:] for word in words if word.startswith("records=")), RECORDS))
    names = [name for name in NAMES if name in words] or list(NAMES)
    measured: dict[str, Mapping[str, Any]] = {}
    failed = []
    for name in names:
        print(f"benchmarks.bench_{name} ...", file=sys.stderr, flush=True)
        found = run(name, size)
        measured |= found or {}
        failed += [] if found else [name]
    before = last_record(records, machine(), size)
    show(measured, before)
    worse = regressions(measured, before)
    with records.open("a", encoding="utf-8") as file:
        date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        file.write(json.dumps({"date": date, "machine": machine(), "size": size, "ratios": measured}) + "\n")
    for line in worse:
        print(f"worse: {line}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if worse or failed else 0


def run(name: str, size: str) -> Ratios | None:
    """The ratios that one benchmark measures in a process of its own; null when it fails."""
    code = (
        f"import json; from benchmarks.bench_{name} import ratios;"
        f"print(json.dumps({{r.name: r.to_json() for r in ratios({size!r})}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    found: Ratios | None = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    return found


def last_record(path: Path, of: str, size: str) -> Ratios:
    """The last median of every ratio on this hardware, whichever runs measured them."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept: dict[str, Mapping[str, Any]] = {}
    for record in map(json.loads, lines):
        if record["machine"] == of and record["size"] == size:
            kept |= record["ratios"]
    return kept


def regressions(measured: Ratios, before: Ratios) -> list[str]:
    """A sentence for each ratio that is more than a tenth above its last record."""
    return [
        f"{name}: {entry['median']:.3f}, {entry['median'] / before[name]['median'] - 1:.0%} above the last record"
        for name, entry in measured.items()
        if name in before and entry["median"] > WORSE * before[name]["median"]
    ]


def show(measured: Ratios, before: Ratios) -> None:
    """Print the table."""
    table = Table("ratio, lower is better", "median", "spread", "bar", "last record")
    for name, entry in measured.items():
        last, bar = before.get(name), entry["bar"]
        missed = "" if bar is None else f"{bar:.2f}{' missed' if entry['median'] > bar else ''}"
        table.add_row(
            name, f"{entry['median']:.3f}", f"{entry['low']:.3f} to {entry['high']:.3f}", missed,
            "" if last is None else f"{last['median']:.3f}",
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(machine(), highlight=False)
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
