#!/usr/bin/env bash
# Write the lock files in scripts/locks again: exact versions of every package, with the hashes of their files.
#   cpu.txt        the extra [cpu] on Python 3.11, x86-64: what the tests run on
#   gpu.txt        the extra [gpu] on Python 3.12, x86-64
#   image-gpu.txt  the part of gpu.txt that verl's image lacks
#   build.txt      what builds this package (hatchling, editables), and uv
# Run it after a change of pyproject.toml, then run the tests in an environment made with LOCKED=1 scripts/setup.sh.
#   UPGRADE=1      newest versions that pyproject.toml allows; by default the locked versions are kept where they fit
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
uv=${VENV:-.venv}/bin/uv
locks=scripts/locks
upgrade=()
if [ -n "${UPGRADE:-}" ]; then upgrade=(--upgrade); fi

compile() { # OUTPUT, then what uv pip compile takes
  echo "lock: $1" >&2
  "$uv" pip compile --quiet --generate-hashes --no-annotate --no-header "${upgrade[@]}" --output-file "$locks/$1" "${@:2}"
  sed -i '1i # Written by scripts/lock.sh. Do not edit.' "$locks/$1"
}
gpu=(--python-version 3.12 --python-platform x86_64-manylinux_2_28)
cpu=(--python-version 3.11 --python-platform x86_64-manylinux_2_28)

# torch for the CPU comes from wheels that pip is pointed to, otherwise from PyTorch's own index.
backend=(--torch-backend cpu)
if [ -n "${PIP_FIND_LINKS:-}" ]; then backend=(--find-links "$PIP_FIND_LINKS"); fi
compile cpu.txt pyproject.toml --extra cpu --overrides scripts/cpu-overrides.txt "${cpu[@]}" "${backend[@]}"
compile gpu.txt pyproject.toml --extra gpu "${gpu[@]}"

# verl's image has the rest of gpu.txt in its own versions. verl itself is not in it.
printf '%s\n' verl TransferQueue altair latex2sympy2-extended math-verify narwhals tenacity typer \
  vl-convert-python wrapt | compile image-gpu.txt --no-deps --constraints "$locks/gpu.txt" "${gpu[@]}" -
printf '%s\n' 'hatchling>=1.26,<2' editables uv | compile build.txt --constraints "$locks/cpu.txt" --constraints "$locks/gpu.txt" "${cpu[@]}" -
