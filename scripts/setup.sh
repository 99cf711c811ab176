#!/usr/bin/env bash
# Make a virtual environment with everything that this machine needs, or reuse it. The second time takes seconds.
#   EXTRAS=cpu,dev | gpu,dev   extras of this package to install; by default gpu,dev where nvidia-smi lists a GPU.
#                              dev includes docs, the tools that build the documentation.
#   VENV=.venv                 the environment's folder
#   PYTHON=python3.11          the interpreter to build on; by default the first of python3.11, python3.12, python3.10
#   LOCKED=1                   the exact versions in scripts/locks, and only files with the hashes there. [cpu] is locked
#                              for Python 3.11 and [gpu] for 3.12, on x86-64. The tools of dev and docs are not locked.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath --canonicalize-missing "${VENV:-$root/.venv}")
cd "$root" # otherwise python -m would also search the current folder, which may hold files of other people

has_gpu() { nvidia-smi --list-gpus 2>/dev/null | grep '^GPU ' >/dev/null; }
if [ -n "${EXTRAS:-}" ]; then extras=$EXTRAS; elif has_gpu; then extras=gpu,dev; else extras=cpu,dev; fi
engine_of() { case ",$1," in *,gpu,*) echo gpu ;; *,cpu,*) echo cpu ;; *) echo none ;; esac; }
engine=$(engine_of "$extras")
case $extras in
  *cpu*gpu* | *gpu*cpu*) echo "setup: EXTRAS=$extras: cpu and gpu bring two builds of vLLM. Set one of them." >&2; exit 1 ;;
esac

for extra in ${extras//,/ }; do
  case $extra in
    cpu | gpu | docs | dev) ;;
    *) echo "setup: EXTRAS=$extras: there is no extra $extra. Use cpu, gpu, docs and dev." >&2; exit 1 ;;
  esac
done

# The two builds of vLLM write into one folder, so that neither can be installed over the other.
read -r before kind _ 2>/dev/null <"$venv/.stamp" || true
before=${before:-} kind=${kind:-}
if [ -n "$before" ] && [ "$(engine_of "$before")" != none ] && [ "$(engine_of "$before")" != "$engine" ]; then
  echo "setup: $venv was made with EXTRAS=$before, and now EXTRAS=$extras." >&2
  echo "setup: Set VENV=$venv-$engine for a second environment, EXTRAS=$before to keep this one, or remove the folder." >&2
  exit 1
fi

if [ -n "${LOCKED:-}" ] && [ "$engine" = none ]; then
  echo "setup: LOCKED=1 and EXTRAS=$extras: only the extras cpu and gpu are locked. Add one of them." >&2; exit 1
fi
# The packages that are installed already would keep whatever the lock files do not replace.
if [ -n "${LOCKED:-}" ] && [ -n "$before" ] && [ "$kind" != locked ]; then
  echo "setup: $venv was made without LOCKED=1, or by an older version of this script, so that it can have other" >&2
  echo "setup: packages. Set VENV=$venv-locked for a second environment, or remove the folder." >&2
  exit 1
fi

if [ ! -x "$venv/bin/python" ]; then
  if [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
    echo "setup: VENV=$venv has files and no environment in it. Set VENV to a new folder." >&2; exit 1
  fi
  case ${LOCKED:+$engine} in
    cpu) pythons=python3.11 ;;
    gpu) pythons=python3.12 ;;
    *) pythons="python3.11 python3.12 python3.10" ;;
  esac
  for python in ${PYTHON:-$pythons}; do
    # A name that a version manager offers may lead nowhere: run it.
    if "$python" -c '' 2>/dev/null; then break; fi
    python=
  done
  [ -n "$python" ] || { echo "setup: there is no ${PYTHON:-$pythons} here. Install one, or set PYTHON=..." >&2; exit 1; }
  "$python" -m venv "$venv"
fi
install_uv() {
  local options=(--quiet --disable-pip-version-check)
  if [ -z "${LOCKED:-}" ]; then "$venv/bin/python" -m pip install "${options[@]}" uv; return; fi
  # Of the lock file, the line of uv and the lines of its hashes, which a backslash continues.
  "$venv/bin/python" -m pip install "${options[@]}" --no-deps --require-hashes --requirement \
    <(sed -n '/^uv==/,/[^\]$/p' "$root/scripts/locks/build.txt")
}

# What the environment was made from: the same stamp means nothing to do.
sources=("$root/pyproject.toml" "$root/scripts/cpu-overrides.txt")
if [ -n "${LOCKED:-}" ]; then sources+=("$root/scripts/locks/build.txt" "$root/scripts/locks/$engine.txt"); fi
stamp="$extras ${LOCKED:+locked }$(cat "${sources[@]}" | cksum)"
if [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ]; then
  echo "setup: installing EXTRAS=$extras into $venv (a minute, more where packages are not cached)" >&2
  echo "$extras ${LOCKED:+locked }(incomplete)" >"$venv/.stamp"
  [ -x "$venv/bin/uv" ] || install_uv
  # Byte code now, as pip does: a run starts a dozen processes that import torch and verl, and where the environment
  # says PYTHONDONTWRITEBYTECODE every one of them would compile the sources again (two minutes per run on two cores).
  uv_install() { (cd "$root" && VIRTUAL_ENV="$venv" "$venv/bin/uv" pip install --quiet --compile-bytecode "$@"); }
  # A folder or page of wheels that pip is pointed to. pip separates several by white space, uv by commas.
  links=${PIP_FIND_LINKS:-$("$venv/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
  if [ -n "$links" ]; then UV_FIND_LINKS=$(echo "$links" | xargs | tr ' ' ','); export UV_FIND_LINKS; fi
  # The CPU build of torch: from those wheels if they have it, otherwise from PyTorch's own CPU index
  # (https://download.pytorch.org/whl/cpu), which --torch-backend uses for torch alone. On a machine with GPUs: torch,
  # vLLM and transformers in the versions that verl's extra vllm pins, with CUDA.
  install() {
    if [ "$engine" = gpu ]; then uv_install "$@"
    elif [ -z "$links" ] || ! uv_install "$@"; then uv_install --torch-backend cpu "$@"; fi
  }
  overrides=()
  if [ "$engine" != gpu ]; then overrides=(--overrides "$root/scripts/cpu-overrides.txt"); fi
  if [ -n "${LOCKED:-}" ]; then
    # Without dependencies, because the lists are complete, and without build isolation, which would fetch hatchling
    # without its hash.
    locks=$root/scripts/locks
    install --no-deps --require-hashes --requirement "$locks/build.txt" --requirement "$locks/$engine.txt"
    uv_install --no-deps --no-build-isolation -e .
  fi
  # After the locked packages, this adds the tools of dev and docs: what is installed satisfies every other requirement.
  case "${LOCKED:-}/,$extras," in
    /* | */*,dev,* | */*,docs,*) install "${overrides[@]}" -e ".[$extras]" ;;
  esac
  echo "$stamp" >"$venv/.stamp"
  echo "setup: done. To check the environment, run: $venv/bin/verl-gsd doctor" >&2
fi
