#!/usr/bin/env bash
# All rows that wait for an accelerator, at most eight minutes, most important first; what is
# measured is in benchmarks/results/DEVICE.json at once. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch shares the card
exec timeout --signal=INT 480 "${PYTHON:-python}" -m benchmarks.on_gpu --minutes 7.5 "$@"
