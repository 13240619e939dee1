#!/usr/bin/env bash
# The main job, from a fresh machine: set up, then search on Fashion-MNIST (digits if it cannot be obtained) and transfer
# the network that is found to detection and segmentation. A later call continues an interrupted stage, and repeats what is stale.
# Options go to `pinas quickstart` (--help).
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_env.sh
exec "$(bash tools/setup_env.sh --where)/bin/python" -m pinas_cli quickstart "$@"
