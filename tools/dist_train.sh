#!/usr/bin/env bash
# Train on several processes: tools/dist_train.sh CONFIG N [arguments of tools/train.py]
#
# Several nodes: run it on each with NNODES, NODE_RANK, MASTER_ADDR and PORT set; N is per node.
# Python: $PYTHON, else $PINAS_ENV_DIR, else .venv of this repository, else the active environment.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1
processes=$2
shift 2

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tool=${PINAS_TOOL:-train.py}
python=${PYTHON:-}
for folder in "${PINAS_ENV_DIR:-}" "$root/.venv"; do
    if [ -z "$python" ] && [ -n "$folder" ] && [ -x "$folder/bin/python" ]; then
        python=$folder/bin/python
    fi
done
python=${python:-python}

nodes=${NNODES:-1}
rendezvous=()
if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
    rendezvous+=(--standalone) # any free port
else
    rendezvous+=(
        --nnodes "$nodes" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}"
    )
fi

# torchrun sets OMP_NUM_THREADS=1 where it is not set; what the user set is passed on by our name.
if [ -n "${OMP_NUM_THREADS:-}" ]; then
    export PINAS_THREADS=${PINAS_THREADS:-$OMP_NUM_THREADS}
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node "$processes" \
    "$root/tools/$tool" "$config" "$@" --launcher pytorch
