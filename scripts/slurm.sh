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
port=$((20000 + 2 * (SLURM_JOB_ID % 6000))) # this and the next are the job's own, where nodes are shared
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
# shellcheck disable=SC2016 # expanded on the node
start='folder=$(mktemp -d "/tmp/ray_${SLURM_JOB_ID}_XXXXXX") && exec ray start --temp-dir="$folder/ray" "$@"'

srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
  bash -c "$start" ray --head --port="$port" --dashboard-host=0.0.0.0 --dashboard-port=$((port + 1)) --num-gpus="$gpus" --block &
trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT # srun ends what it started
ray=$!
for ((waited = 0; ; waited++)); do
  if (: >"/dev/tcp/$head/$((port + 1))") 2>/dev/null; then break; fi
  if ! kill -0 "$ray" 2>/dev/null || ((waited == 300)); then
    echo "slurm.sh: Ray's head on $head did not come up; what it printed is above" >&2
    exit 1
  fi
  sleep 1
done
# The ports can be guessed, and Ray's head stays up without a dashboard if another user has taken its port. That user
# would receive the token. A port is ours only if this user or root listens there.
# shellcheck disable=SC2016 # expanded on the node
listening='while read -r _ local _ state _ _ _ user _; do # a row of /proc/net/tcp; state 0A: it listens
  for port; do [[ $state == 0A ]] && ((16#${local##*:} == port)) && echo "$port $user"; done
done < <(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null); true'
owners=$(srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" bash -c "$listening" listening "$port" $((port + 1)))
for ours in "$port" $((port + 1)); do
  users=$(awk -v port="$ours" '$1 == port { print $2 }' <<<"$owners" | sort -u)
  if [[ -z $users ]] || grep -qvxE "0|$(id -u)" <<<"$users"; then
    echo "slurm.sh: port $ours of $head is not this job's Ray (users who listen there: ${users:-none}), so the cluster's" \
      "token was not sent. Submit the job again: each job has other ports." >&2
    exit 1
  fi
done
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --overlap --exclude="$head" \
    bash -c "$start" ray --address="$head:$port" --num-gpus="$gpus" --block &
fi

# One job, or one per seed and value of a sweep; it ends when all have ended, with a code other than 0 if one failed.
verl-gsd submit "${size[@]}" "$@" \
  --runs "$RUNS" --address "http://$head:$((port + 1))"
