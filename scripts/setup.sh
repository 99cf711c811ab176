#!/usr/bin/env bash
# Make .venv with everything a CPU needs, or reuse it; takes seconds the second time.
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
  echo "setup: installing into $root/.venv (a minute, more where packages are not cached)" >&2
  # From the project's folder: pyproject.toml's [tool.uv] keeps torchvision and its companions out.
  # Byte code now, as pip does: a run starts a dozen processes that import torch and verl, and where the environment
  # says PYTHONDONTWRITEBYTECODE every one of them would compile the sources again (two minutes a run on two cores).
  install() { (cd "$root" && VIRTUAL_ENV="$root/.venv" .venv/bin/uv pip install --quiet --compile-bytecode "$@" -e ".[$extras]"); }
  # The CPU build of torch: from the folder or page of wheels that pip is pointed to, if there is one and it has it;
  # otherwise from PyTorch's own CPU index (https://download.pytorch.org/whl/cpu), which --torch-backend uses for torch.
  links=${PIP_FIND_LINKS:-$("$root/.venv/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
  [ -z "$links" ] || export UV_FIND_LINKS="$(echo $links | tr ' ' ',')" # pip separates by white space, uv by commas
  if [ -z "$links" ] || ! install; then
    install --torch-backend cpu
  fi
  echo "$stamp" >"$root/.venv/.stamp"
fi
