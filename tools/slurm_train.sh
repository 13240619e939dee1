#!/usr/bin/env bash
# Train under Slurm: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
#
# GPUS (8 in total), GPUS_PER_NODE (8), CPUS_PER_TASK (10) and SRUN_ARGS from the environment; with
# GPUS_PER_NODE=0 GPUS counts processes on CPUs. Python: see tools/dist_train.sh.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
partition=$1
job=$2
config=$3
shift 3

# shellcheck disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/launch_env.sh"

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
tasks_per_node=$per_node
resources=(--gres "gpu:$per_node")
if [ "$per_node" = 0 ]; then
    tasks_per_node=$gpus
    resources=()
elif [ "$gpus" -lt "$per_node" ]; then
    tasks_per_node=$gpus
    resources=(--gres "gpu:$gpus")
fi
read -r -a extra <<<"${SRUN_ARGS:-}"

export MASTER_PORT=${PORT:-$((20000 + RANDOM % 20000))}
# The first host of the allocation is known only inside it.
# shellcheck disable=SC2016
exec srun --partition "$partition" --job-name "$job" --kill-on-bad-exit=1 \
    --ntasks "$gpus" --ntasks-per-node "$tasks_per_node" \
    --cpus-per-task "${CPUS_PER_TASK:-10}" "${resources[@]}" "${extra[@]}" \
    bash -c 'export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)}
             exec "$@" --launcher slurm' \
    _ "${python:?}" "${root:?}/tools/train.py" "$config" "$@"
