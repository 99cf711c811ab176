#!/usr/bin/env bash
# From a fresh clone to a policy that learned: installs into .venv, then 40 GRPO steps on verl, Ray and vLLM, on one GPU
# where the machine has NVIDIA GPUs, and on the CPU elsewhere. EXTRAS=cpu,dev or gpu,dev overrides (see setup.sh).
# Further words go to verl-gsd train, for example: ./scripts/demo.sh algo=dapo trainer.total_training_steps=80
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/setup.sh"
venv=$(realpath "${VENV:-$root/.venv}")
case ",$(cut -d' ' -f1 "$venv/.stamp")," in
  *,gpu,*) hardware=(hardware=gpu trainer.n_gpus_per_node=1) ;;
  *) hardware=(hardware=cpu) ;;
esac
cd "$root"
exec "$venv/bin/verl-gsd" train algo=grpo task=arithmetic "${hardware[@]}" "$@"
