#!/usr/bin/env bash
# Everything that must hold, from a clean checkout. It prints the time of each part at its end.
#   --fast   style, types, layers, the documentation and tests/unit: no verl, no Ray
#   (none)   the above, tests/contract, tests/engine and tests/stack: training runs on the real stack
#   --full   the above and tests/drills: kills, clusters, long runs (hours)
# Further words go to pytest. VENV names the environment, as for setup.sh.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
# Where this is set, every process compiles the package and the tests again.
unset PYTHONDONTWRITEBYTECODE
folders=(unit contract engine stack)
case "${1:-}" in
  --fast) folders=(unit); shift ;;
  --full) folders+=(drills); shift ;;
esac
times=()
part() { # part NAME COMMAND...: run a part and keep its time
  local name=$1 start=$SECONDS
  shift
  "$@"
  times+=("$(printf '%4d s  %s' $((SECONDS - start)) "$name")")
}
show_times() { [ ${#times[@]} = 0 ] || printf '%s\n' "parts and their times:" "${times[@]}"; }
trap show_times EXIT

part setup scripts/setup.sh
bin=$(realpath "${VENV:-.venv}")/bin
static() { "$bin"/ruff check . && "$bin"/ruff format --check . && "$bin"/mypy && "$bin"/lint-imports; }
part "style, types, layers" static
# Python finds this checkout first, whose modules the reference pages describe. The variable turns off an advertisement
# of the theme.
documentation() { NO_MKDOCS_2_WARNING=1 "$bin"/python -m mkdocs build --quiet --strict; }
part documentation documentation
# Words that begin with tests/ name tests. Then no other file is collected, and a folder without such tests (pytest's 5)
# is no failure.
named=no ran=no
for word in "$@"; do [[ $word != tests/* ]] || named=yes; done
tests() {
  local folder=$1 paths=("tests/$1") workers=()
  shift
  [ $named = no ] || paths=()
  # A run on the stack has all cores: a Ray that is not up in 30 s gives up, and two at once may take longer.
  case $folder in
    unit) workers=(--numprocesses logical --maxprocesses 4 --dist loadfile) ;;
    # Tests that share what starts slowly stay together.
    contract) workers=(--numprocesses 2 --dist loadgroup) ;;
  esac
  if "$bin"/python -m pytest -m "$folder" "${workers[@]}" "${paths[@]}" "$@"; then ran=yes; else [ $? = 5 ]; fi
}
for folder in "${folders[@]}"; do part "$folder" tests "$folder" "$@"; done
[ $ran = yes ] || { echo "test.sh: there are no such tests" >&2; exit 5; }
