#!/usr/bin/env bash
# Train on several processes: tools/dist_train.sh CONFIG N [arguments of tools/train.py]
#
# Several nodes: run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set; N is per node.
# MAX_RESTARTS=K: when a process dies, torchrun starts all again, at most K times; they continue from the last checkpoint.
# Python: $PYTHON, else the environment of tools/setup_env.sh ($PINAS_ENV_DIR, .venv), else the active one.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1
processes=$2
shift 2

# shellcheck disable=SC1091
. "$(dirname "${BASH_SOURCE[0]}")/launch_env.sh"
tool=${PINAS_TOOL:-train.py}

nodes=${NNODES:-1}
rendezvous=()
if [ -n "${MAX_RESTARTS:-}" ]; then
    rendezvous+=(--max-restarts "$MAX_RESTARTS")
    # torchrun's own store lives through a restart, with the addresses of the ranks that ended: each start gets a new one.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    if [ "$tool" = train.py ]; then set -- --resume "$@"; fi
fi
if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
    rendezvous+=(--standalone) # any free port
elif [ -n "${MAX_RESTARTS:-}" ]; then # the static rendezvous cannot gather the nodes a second time
    rendezvous+=(
        --nnodes "$nodes" --rdzv-id "${RDZV_ID:-pinas}"
        --rdzv-backend c10d --rdzv-endpoint "${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
    )
else
    rendezvous+=(
        --nnodes "$nodes" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}"
    )
fi

exec "${python:?}" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node "$processes" \
    "${root:?}/tools/$tool" "$config" "$@" --launcher pytorch
