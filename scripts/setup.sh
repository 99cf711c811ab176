#!/usr/bin/env bash
# Make .venv with everything a CPU needs, or reuse it. Source it or run it; takes seconds the second time.
#   PYTHON=python3.11       the interpreter to build on
#   EXTRAS=cpu,dev          extras of this package to install
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extras=${EXTRAS:-cpu,dev}

if [ ! -x "$root/.venv/bin/python" ]; then
  python=${PYTHON:-python3.11}
  command -v "$python" >/dev/null || { echo "setup: no $python here. Install Python 3.11 or name another: PYTHON=python3.12" >&2; exit 1; }
  "$python" -m venv "$root/.venv"
fi
[ -x "$root/.venv/bin/uv" ] || "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check uv

# What the environment was made from: the same stamp means nothing to do.
stamp="$extras $(cksum <"$root/pyproject.toml")"
if [ "$(cat "$root/.venv/.stamp" 2>/dev/null)" != "$stamp" ]; then
  # Where a folder or page of wheels is offered, the CPU build of torch comes from there; elsewhere from PyTorch's own CPU
  # index (https://download.pytorch.org/whl/cpu), which --torch-backend uses for torch alone.
  links=${PIP_FIND_LINKS:-$("$root/.venv/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
  if [ -n "$links" ]; then
    source_of_torch=()
    export UV_FIND_LINKS=$links
  else
    source_of_torch=(--torch-backend cpu)
  fi
  # From the project's folder: pyproject.toml's [tool.uv] keeps torchvision and its companions out.
  (cd "$root" && VIRTUAL_ENV="$root/.venv" .venv/bin/uv pip install --quiet "${source_of_torch[@]}" -e ".[$extras]")
  echo "$stamp" >"$root/.venv/.stamp"
fi
