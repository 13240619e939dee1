#!/usr/bin/env bash
# Sets up the environment and runs every check: ruff, mypy, import contracts, tables, documentation, tests.
#
#   bash tools/run_tests.sh [--core | --checks] [--pythons] [pytest arguments]
#     --core      leaves out the tests marked mm or slow
#     --checks    only the checks, no tests
#     --pythons   before the tests, a smoke test on each other supported Python that is found; CI does this too
#
# The tests run in $PINAS_TEST_JOBS processes of one thread each, by default one per core (`-n 0`: in one process).
# The last line is pytest's summary; the exit status is not 0 when any check fails.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
core=(-m 'not mm and not slow')
selection=() checks='' pythons=${CI:-}

while true; do
    case ${1:-} in
        --core) selection=("${core[@]}") pythons='' ;;
        --checks) checks=1 ;;
        --pythons) pythons=1 ;;
        *) break ;;
    esac
    shift
done

check() {
    printf '[tests] %s\n' "$*"
    "$@" || {
        printf 'run_tests: error: %s failed (see above); the tests were not run\n' "$*" >&2
        exit 1
    }
}

# The site as it would be published, in a temporary folder; a broken link is an error. It needs no network.
build_docs() (
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    NO_MKDOCS_2_WARNING=1 mkdocs build --strict --site-dir "$site"
)

test_jobs() { # a process with the mm packages and a model takes up to 3 GB; what is available varies with the page cache
    local jobs by_memory
    jobs=$(env -u OMP_NUM_THREADS nproc) # nproc would return the number of threads
    by_memory=$(awk '/MemTotal/ { print int($2 / 3670016) }' /proc/meminfo)
    if [ "$by_memory" -lt "$jobs" ]; then jobs=$by_memory; fi
    printf '%s\n' "$((jobs > 8 ? 8 : jobs > 0 ? jobs : 1))"
}

# Tests of space, networks, method, search and weights: that the package imports and computes the same there.
smoke=(tests/test_space.py tests/test_supernet.py tests/test_contrast.py tests/test_search.py tests/test_weights.py)

# The command of a Python of the given version that can make environments; nothing if there is none.
find_other() { # version
    local name
    for name in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/"bin/python$1"; do
        if "$name" -c 'import venv, ensurepip' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
}

# A smoke test on another Python, in an environment in the cache without mm packages.
test_core_on() { # version
    local python other status=0
    python=$(find_other "$1")
    if [ -z "$python" ]; then
        printf '[tests] Python %s is not installed: nothing is tested on it\n' "$1"
        return
    fi
    CI=1 PINAS_ENV_DIR='' PINAS_PYTHON=$python bash tools/setup_env.sh --core --share "$folder" || status=$?
    if [ "$status" = 75 ]; then
        printf '[tests] the disk is too full for an environment of Python %s: nothing is tested on it\n' "$1"
        return
    elif [ "$status" != 0 ]; then
        return "$status"
    fi
    other=$(CI=1 PINAS_ENV_DIR='' PINAS_PYTHON=$python bash tools/setup_env.sh --core --where)
    check env "PATH=$other/bin:$PATH" python -m pytest "${workers[@]}" -q "${core[@]}" "${smoke[@]}"
}

export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # the tests start hundreds of processes: none should compile again what it imports
# One process runs a file, so that its fixtures are made once; the longest files start first (tests/conftest.py)
workers=(-n "${PINAS_TEST_JOBS:-$(test_jobs)}" --dist loadfile --no-loadscope-reorder)
bash tools/setup_env.sh
folder=$(bash tools/setup_env.sh --where)
PATH=$folder/bin:$PATH
check ruff check .
check ruff format --check .
check mypy
check lint-imports --no-logo
check python tools/dev/make_tables.py --check
check build_docs
if [ -n "$checks" ]; then exit; fi
if [ -n "$pythons" ]; then
    for version in $(bash tools/setup_env.sh --versions); do
        if [ ! -e "$folder/bin/python$version" ]; then test_core_on "$version"; fi
    done
fi
# Tests do not use the network: what is not in the cache now is replaced by scikit-learn's digits.
python -W ignore -c '
from pinas_zoo.data import resolve_fashion_mnist
data = resolve_fashion_mnist()
print(f"[tests] real images: {data.title} (from: {data.origin})")'
exec python -m pytest "${workers[@]}" "${selection[@]}" "$@"
