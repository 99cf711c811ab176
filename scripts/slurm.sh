#!/usr/bin/env bash
# A run on Slurm: a Ray cluster over the nodes of one allocation, and on it the job that verl-gsd submit sends anywhere.
#   RUNS=/shared/runs sbatch --nodes=2 --gpus-per-node=8 scripts/slurm.sh recipe=gvpo/qwen2.5_math_7b hardware=multi_node
#   RUNS=/shared/runs sbatch ... scripts/slurm.sh --resume /shared/runs/RUN
# RUNS lies on storage that all nodes share; so does the environment that has verl-gsd on its PATH when this is submitted.
# If your group can write RUNS, add trust=/shared/runs to the words (docs/security.md).
#SBATCH --job-name=verl-gsd
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
set -euo pipefail
for word in "$@"; do
  case $word in
    --no-wait | --dry-run)
      echo "slurm.sh: $word would end this script at once, and the cluster with it. Leave it out, or run" \
        "verl-gsd submit $word without Slurm." >&2
      exit 2
      ;;
  esac
done
: "${RUNS:?a folder that all nodes share, for the run directories}"
gpus=${SLURM_GPUS_ON_NODE:?ask for accelerators: --gpus-per-node=N}
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
# The allocation's size, before the words of the line, which may say otherwise: to the hardware group, for a recipe may
# leave some of its GPUs to a reward model. A resume has the size of its run.
case " $* " in
  *" --resume"*) size=() ;;
  *" hardware="*) size=("hardware.nodes=$SLURM_JOB_NUM_NODES" "hardware.gpus_per_node=$gpus") ;;
  *) size=("trainer.nnodes=$SLURM_JOB_NUM_NODES" "trainer.n_gpus_per_node=$gpus") ;;
esac
case " $* " in *" hardware=cpu "*) size=("trainer.nnodes=$SLURM_JOB_NUM_NODES" "trainer.n_gpus_per_node=$gpus") ;; esac

# The cluster's token: this job's alone, in the environment, which srun hands to the nodes.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
export RAY_AUTH_TOKEN
unset RAY_ADDRESS
# Older releases of Ray ignore RAY_AUTH_MODE, and their cluster would run code for everyone who reaches it.
version=$(ray --version) # "ray, version 2.60.0"
if [[ $(printf '%s\n' 2.59 "${version##* }" | sort -V | head -n 1) != 2.59 ]]; then
  echo "slurm.sh: $version is installed, and the cluster's token needs Ray 2.59 or newer. Run" \
    "pip install 'ray>=2.59'." >&2
  exit 2
fi
# Ray makes its session folder writable for everyone. On each node it lies in a folder that only this user can enter.
# When the head's Ray is up, it has written the cluster's address into that folder and listens at the port of its client
# server. This then prints the address.
# shellcheck disable=SC2016 # expanded on the node
folder='folder=$(mktemp -d "/tmp/ray_${SLURM_JOB_ID}_XXXXXX") || exit
'
# shellcheck disable=SC2016
start_head=$folder'file=$folder/ray/ray_current_cluster
port=$1
shift
listens() { # whether this user listens at the port; the tables have the local address, the state (0A) and the user
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v end="$(printf ":%04X" "$port")" -v user="$UID" \
    "substr(\$2, length(\$2) - 4) == end && \$4 == \"0A\" && \$8 == user { found = 1 } END { exit !found }"
}
{
  until [[ -s $file ]] && listens; do [[ -e /proc/$$/exe ]] || exit; sleep 1; done # exe is gone when Ray has ended
  echo "$(<"$file")"
} &
exec ray start --temp-dir="$folder/ray" --ray-client-server-port="$port" "$@" >&2'
# shellcheck disable=SC2016
start_worker=$folder'exec ray start --temp-dir="$folder/ray" "$@" >&2'

# Ray takes free ports (0). Ray sends the token to its own ports when it starts, and another user could already listen at
# a port that follows from the number of the job. The address has numbers and no name: at another address that the name
# stands for, another user could still listen at the same port.
# Ray cannot be asked for a free port of the client server, nor to start without one, and ends if its port is taken. It
# gets a random one, below those that Linux gives out and above those of Ray's workers, and another one if Ray ends.
ray=
trap 'kill $ray $(jobs -p) 2>/dev/null || true; wait $ray || true; wait' EXIT # srun ends what it started
for attempt in 1 2 3; do
  exec {printed}< <(exec srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
    bash -c "$start_head" ray "$((20000 + RANDOM % 12000))" --head --port=0 --dashboard-host=0.0.0.0 --dashboard-port=0 \
    --dashboard-agent-listen-port=0 --num-gpus="$gpus" --block)
  ray=$!
  if read -r -t 300 -u "$printed" address; then
    break
  elif (($? > 128 || attempt == 3)); then # it takes too long, or no port helps
    echo "slurm.sh: Ray's head on $head did not come up; what it printed is above" >&2
    exit 1
  fi
  exec {printed}<&-
  echo "slurm.sh: Ray's head on $head has ended; starting it again with another port of its client server" >&2
done
# Ray's head stays up without a dashboard if that fails. From the root folder, Python imports nothing of other people.
server=$(cd / && python -c '
import sys
from ray.dashboard.utils import ray_address_to_api_server_url

print(ray_address_to_api_server_url(sys.argv[1]))' "$address") || {
  echo "slurm.sh: the job server of Ray's head on $head did not come up; the reason is above" >&2
  exit 1
}
echo "slurm.sh: the job server is $server" >&2
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --overlap --exclude="$head" \
    bash -c "$start_worker" ray --address="$address" --dashboard-agent-listen-port=0 --num-gpus="$gpus" --block &
fi

# One job, or one per seed and value of a sweep; it ends when all have ended, with a code other than 0 if one failed.
verl-gsd submit "${size[@]}" "$@" --runs "$RUNS" --address "$server"
