#!/usr/bin/env bash
# Train under Slurm: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
#
# GPUS (8 in total), GPUS_PER_NODE (8), CPUS_PER_TASK (10) and SRUN_ARGS from the environment; with
# GPUS_PER_NODE=0 GPUS counts processes on CPUs. Python: see tools/dist_train.sh.
# REQUEUE=SECONDS submits a batch job instead: Slurm signals it that long before its time limit, the run saves, and the
# job goes back into the queue and continues exactly.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
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

tasks=(
    --ntasks "$gpus" --ntasks-per-node "$tasks_per_node" --cpus-per-task "${CPUS_PER_TASK:-10}"
    "${resources[@]}" "${extra[@]}"
)
after_exit=(--kill-on-bad-exit=1)
if [ -n "${REQUEUE:-}" ]; then
    if [ -z "${SLURM_JOB_ID:-}" ]; then
        # A command, since Slurm runs a copy of a script, which would not find the files beside it.
        exec sbatch --partition "$partition" --job-name "$job" "${tasks[@]}" --requeue --open-mode append \
            --signal "USR1@$REQUEUE" --wrap "$(printf '%q ' bash "${root:?}/tools/slurm_train.sh" "$partition" "$job" "$config" "$@")"
    fi
    set -- --requeue "$@"
    after_exit=(--kill-on-bad-exit=0 --wait=60) # the status must be that of the tasks, not of a task that srun kills
fi

export MASTER_PORT=${PORT:-$((20000 + RANDOM % 20000))}
# The first host of the allocation is known only inside it.
# shellcheck disable=SC2016
run=(
    srun --partition "$partition" --job-name "$job" "${tasks[@]}" "${after_exit[@]}"
    bash -c 'export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)}
             exec "$@" --launcher slurm'
    _ "${python:?}" "${root:?}/tools/train.py" "$config" "$@"
)
if [ -z "${REQUEUE:-}" ]; then exec "${run[@]}"; fi
status=0
"${run[@]}" || status=$?
if [ "$status" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
