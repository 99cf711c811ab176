#!/usr/bin/env bash
# Everything that must hold, from a clean checkout.
#   --fast   no Ray: style, types, layers, unit tests (under 2 minutes)
#   (none)   the above and training runs on the real stack
#   --full   the above and the long drills
# Further words go to pytest.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
case "${1:-}" in
  --fast) marks="not stack and not drill"; shift ;;
  --full) marks=""; shift ;;
  *) marks="not drill" ;;
esac
scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
exec .venv/bin/python -m pytest -m "$marks" "$@"
