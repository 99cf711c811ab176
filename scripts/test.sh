#!/usr/bin/env bash
# Everything that must hold, from a clean checkout.
#   --fast   no Ray: style, types, layers, unit tests
#   (none)   the above and training runs on the real stack
#   --full   the above, every run killed and resumed, and the long drills
# Further words go to pytest. VENV names the environment, as for setup.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
runs="stack and not drill" killed=()
case "${1:-}" in
  --fast) runs=""; shift ;;
  --full) runs="stack or drill" killed=(--killed); shift ;;
esac
scripts/setup.sh
bin=$(realpath "${VENV:-.venv}")/bin
"$bin"/ruff check .
"$bin"/ruff format --check .
"$bin"/mypy
"$bin"/lint-imports
# Words may name tests of one kind alone: that there are none of the other (pytest's 5) is no failure.
ran=no
tests() { if "$bin"/python -m pytest "$@"; then ran=yes; else [ $? = 5 ]; fi; }
tests -m "not stack and not drill" --numprocesses logical --maxprocesses 4 "$@"
# A run on the stack has all cores to itself.
[ -z "$runs" ] || tests -m "$runs" "${killed[@]}" "$@"
[ $ran = yes ] || { echo "test.sh: there are no such tests" >&2; exit 5; }
