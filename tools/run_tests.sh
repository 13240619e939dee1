#!/usr/bin/env bash
# Sets up the environment and runs every check: ruff, import contracts, generated tables, tests.
#
#   bash tools/run_tests.sh [--core] [pytest arguments]      --core leaves out the tests marked mm or slow
#
# The last line is pytest's summary; the exit status is not 0 when any check fails.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"

pytest_arguments=()
if [ "${1:-}" = --core ]; then
    pytest_arguments=(-m 'not mm and not slow')
    shift
fi

check() {
    printf '[tests] %s\n' "$*"
    "$@" || {
        printf 'run_tests: error: %s failed (see above); the tests were not run\n' "$*" >&2
        exit 1
    }
}

bash tools/setup_env.sh
PATH=$(bash tools/setup_env.sh --where)/bin:$PATH
export PATH
check ruff check .
check lint-imports --no-logo
if [ -f tools/dev/make_tables.py ]; then check python tools/dev/make_tables.py --check; fi
exec python -m pytest "${pytest_arguments[@]}" "$@"
