"""Every promised ratio, measured on this machine: `make bench`. Each line runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys

COMMANDS = [
    ["benchmarks.bench_data"],
    ["benchmarks.bench_photometric"],
    ["benchmarks.bench_matching"],
    ["benchmarks.bench_step", "--size", "tiny", "small", "--batch", "4"],
    ["benchmarks.bench_selfpatch"],
    ["benchmarks.bench_evaluation"],
]


def main() -> int:
    """Run all; a benchmark that fails does not stop the others, but the exit status says so."""
    failed = []
    for command in COMMANDS:
        print(f"\n===== python -m {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
            failed.append(command[0])
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
