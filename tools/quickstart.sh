#!/usr/bin/env bash
# The main job, from a fresh machine: set up, then search on Fashion-MNIST (digits where it cannot be had) and carry the
# found network to detection and segmentation. A later call continues an interrupted stage, and runs again what is stale.
# Options go to `pinas quickstart` (--help).
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_env.sh
exec "$(bash tools/setup_env.sh --where)/bin/python" -m pinas_cli quickstart "$@"
