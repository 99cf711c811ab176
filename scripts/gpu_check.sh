#!/usr/bin/env bash
# Check this project on a machine with an NVIDIA GPU. Each part writes one JSON file and prints one line.
#   scripts/gpu_check.sh              all parts
#   scripts/gpu_check.sh --engine     without vLLM: losses and advantages, gradients on verl's FSDP2 engine, time and
#                                     memory of an update, and the embedded task that the training runs need
#   scripts/gpu_check.sh --training   the embedded task with vLLM: verl's own mode and our algorithms side by side
#   scripts/gpu_check.sh PART...      single parts: tensors gradients updates advantages task training
# Environment:
#   RESULTS=benchmarks/results/gpu    the folder of the JSON files
#   LIMIT=SECONDS                     the time limit of every part, instead of its own
#   VENV=.venv                        the environment; without that folder python3 is used as it is
#   VERL_GSD_CPU=1                    a small drill on the CPU
# Exit status: 0 if every part passed, 1 if one failed. A part that fails or runs out of time does not stop the others.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

engine=(tensors gradients updates advantages task)
case "${1:-}" in
  --engine) shift; set -- "${engine[@]}" "$@" ;;
  --training) shift; set -- training "$@" ;;
  "") set -- "${engine[@]}" training ;;
  --*) echo "gpu_check: $1: no such option. Use --engine, --training, or names of parts." >&2; exit 2 ;;
esac

python=$(realpath --no-symlinks --canonicalize-missing "${VENV:-$root/.venv}")/bin/python
[ -x "$python" ] || python=python3
results=$(realpath -m "${RESULTS:-$root/benchmarks/results/gpu}")
cd "$root" # otherwise python -m would also search the current folder, which may hold files of other people
mkdir -p "$results"
export PYTHONPATH="$root:$root/benchmarks:$root/tests/support${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 TOKENIZERS_PARALLELISM=false
# A part starts dozens of processes that import torch, verl and vLLM. The first one writes the byte code for the others.
unset PYTHONDONTWRITEBYTECODE

# Seconds. A GPU machine needs a fraction; a first import from a cold disk may take a minute.
limit_of() {
  if [ -n "${LIMIT:-}" ]; then echo "$LIMIT"; return; fi
  if [ "${VERL_GSD_CPU:-}" = 1 ]; then
    case $1 in training) echo 7200 ;; *) echo 2400 ;; esac
  else
    case $1 in tensors) echo 90 ;; gradients) echo 150 ;; updates) echo 240 ;; advantages) echo 90 ;; task) echo 240 ;; *) echo 420 ;; esac
  fi
}

logs=$(mktemp -d)
pid=
# timeout puts a part into a process group of its own, which Ctrl-C does not reach, and passes SIGTERM on to it.
trap 'rm -rf "$logs"' EXIT
trap 'trap - INT TERM; [ -z "$pid" ] || { kill "$pid" 2>/dev/null; wait "$pid"; }; exit 130' INT TERM

failed=0
for part in "$@"; do
  limit=$(limit_of "$part") start=$SECONDS status=0
  echo "gpu_check: $part starts, at most $limit s"
  rm -f "$results/$part.json"
  # A training part needs its time after SIGTERM to end Ray's and vLLM's processes.
  timeout -k 45 "$limit" "$python" -m gpu_check "$part" "$results/$part.json" >"$logs/$part.log" 2>&1 </dev/null &
  pid=$!
  wait "$pid" || status=$?
  pid=
  "$python" -m gpu_check.record "$results/$part.json" --status "$status" --limit "$limit" \
    --seconds $((SECONDS - start)) --log "$logs/$part.log" || failed=1
done
exit "$failed"
