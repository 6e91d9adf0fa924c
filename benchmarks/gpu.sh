#!/usr/bin/env bash
# What is to be known of a machine with a CUDA device (torch 2.11 and later), in about 25 minutes: the GPU tests, the ratios of
# `make bench`, profiles of the step. Leaves files to commit: a folder benchmarks/gpu-DATE and a line in benchmarks/records.jsonl.
#
#     benchmarks/gpu.sh [OUT]                                    # PYTHON=.venv/bin/python to name another one
#     DEVICE=cpu SIZE=tiny benchmarks/gpu.sh OUT                 # the same code on a CPU in some minutes; its figures mean nothing
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
out=${1:-benchmarks/gpu-$(date -u +%F)}
size=${SIZE:-full}
export DEVICE=${DEVICE:-cuda} PYTHONPATH=src:.:${PYTHONPATH:-}
records=benchmarks/records.jsonl
[ "$size" = full ] || records=$out/records.jsonl
mkdir -p "$out"
failed=0

# part NAME MINUTES COMMAND...: one part, within its time, into OUT/NAME.txt; the others go on when it fails.
part() {
  local name=$1 minutes=$2
  shift 2
  echo "== $name (at most $minutes minutes)"
  if timeout "$((minutes * 60))" "$@" > "$out/$name.txt" 2>&1; then echo "   done"; else
    echo "   failed with $?: $out/$name.txt"
    failed=1
  fi
}

"$python" -c "from benchmarks.ratios import device, machine; import torch; torch.ones(1, device=device()); print(machine())" |
  tee "$out/machine.txt"
part tests 5 "$python" -m pytest -q -m gpu tests/test_gpu.py
part ratios 11 "$python" -m benchmarks "$size" "records=$records" data step evaluation matching adapt
part profiles 9 "$python" -m benchmarks.profile_step "$out" "$size"
echo "Commit $out and $records."
exit "$failed"
