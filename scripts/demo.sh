#!/usr/bin/env bash
# From a fresh clone to a policy that learned: installs into .venv, then 40 GRPO steps on verl, Ray and vLLM, on a CPU.
# Words given here go on to verl-gsd train, e.g.: ./scripts/demo.sh algo=dapo trainer.total_training_steps=80
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/setup.sh"
cd "$root"
exec .venv/bin/verl-gsd train algo=grpo task=arithmetic hardware=cpu "$@"
