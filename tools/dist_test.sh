#!/usr/bin/env bash
# Evaluate on several processes: tools/dist_test.sh CONFIG CHECKPOINT N [arguments of tools/test.py]
#
# Nodes, port and Python: see tools/dist_train.sh.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
config=$1
checkpoint=$2
processes=$3
shift 3
PINAS_TOOL=test.py exec "$(dirname "${BASH_SOURCE[0]}")/dist_train.sh" \
    "$config" "$processes" "$checkpoint" "$@"
