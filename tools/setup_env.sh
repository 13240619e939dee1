#!/usr/bin/env bash
# Builds the project's Python environment: pinned packages, mmcv with its operators, the project in editable mode.
#
#   bash tools/setup_env.sh           build, repair or re-point the environment; at once when it is ready
#   bash tools/setup_env.sh --where   print the environment's folder and do nothing
#
# The folder is $PINAS_ENV_DIR; else, where CI is set, one in the cache that clones share; else .venv.
# The cache (mmcv's wheel, locks) is $PINAS_CACHE_DIR, else pinas_zoo in the user's cache folder.
# $PINAS_PYTHON names another Python 3.11; $MAX_JOBS caps the compiler's processes.
#
# Safe to interrupt and to run twice at a time: locks order the runs, wheels and the stamp are renamed into place,
# and an environment that an interrupted pip left half-installed is built anew.
set -euo pipefail
unset PYTHONHOME PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${PINAS_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pinas_zoo}
pins=("$root/requirements/lock.txt" "$root/requirements/mmcv.txt")
wheel_work=''
heartbeat_pid=''

say() { printf '[setup %02d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }
fail() {
    printf 'setup_env: error: %s\n' "$*" >&2
    exit 1
}
pinned() { awk -F'[= ]+' -v name="$1" '$1 == name { print $2 }' "${pins[@]}"; }
hash16() { sha256sum | cut -c1-16; }

clean_up() {
    if [ -n "$heartbeat_pid" ]; then kill "$heartbeat_pid" 2>/dev/null || true; fi
    if [ -n "$wheel_work" ]; then rm -rf "$wheel_work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

env_folder() {
    local folder=$root/.venv
    if [ -n "${PINAS_ENV_DIR:-}" ]; then
        folder=$PINAS_ENV_DIR
    elif [ -n "${CI:-}" ]; then
        folder=$cache/envs/$(cat "${pins[@]}" | hash16)
    fi
    case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
    printf '%s\n' "$folder"
}

# ---- what the machine has to bring --------------------------------------------------------------------------------

find_python() {
    local name names=(python3.11 python3)
    if [ -n "${PINAS_PYTHON:-}" ]; then names=("$PINAS_PYTHON"); fi
    for name in "${names[@]}"; do
        if [ "$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.11 ]; then
            command -v "$name"
            return
        fi
    done
    fail "Python 3.11 is missing (tried: ${names[*]}); on Debian: apt-get install python3.11 python3.11-venv python3.11-dev"
}

check_venv() {
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "Python's venv module is missing; on Debian: apt-get install python3.11-venv"
}

check_compiler() {
    local compiler=${CXX:-c++} headers
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$headers/Python.h" ] ||
        fail "Python's headers are missing (no Python.h), mmcv needs them; on Debian: apt-get install python3.11-dev"
    "$compiler" -std=c++17 -x c++ -fsyntax-only - <<<'#include <vector>' 2>/dev/null ||
        fail "a C++17 compiler is missing ($compiler), mmcv needs it; on Debian: apt-get install g++"
}

check_disk() {
    local need_gb=3 free_kb
    if [ "$(uname -m)" = x86_64 ]; then need_gb=11; fi # 7.5 installed, the rest while pip unpacks its downloads
    free_kb=$(df -Pk "$env" | awk 'NR == 2 { print $4 }')
    [ "$((free_kb / 1048576))" -ge "$need_gb" ] ||
        fail "disk is too full: $((free_kb / 1048576)) GB free at $env, torch and its libraries need $need_gb GB"
}

# Compute capabilities of the CUDA devices, such as "9.0"; nothing where there is none.
cuda_devices() {
    local found
    found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null) || return 0
    printf '%s\n' "$found" | sort -u | paste -sd_ -
}

# Path of an nvcc of the given release ("12.8"); nothing where there is none.
find_nvcc() {
    local nvcc
    for nvcc in "${CUDA_HOME:-/usr/local/cuda-$1}/bin/nvcc" "$(command -v nvcc || true)" \
        "/usr/local/cuda-$1/bin/nvcc" /usr/local/cuda/bin/nvcc; do
        if [ -n "$nvcc" ] && "$nvcc" --version 2>/dev/null | grep -q "release $1,"; then
            printf '%s\n' "$nvcc"
            return
        fi
    done
}

# ---- steps --------------------------------------------------------------------------------------------------------

# Runs pip in the environment; a failure becomes one line that names its likely cause.
pip_run() {
    local what=$1 log=$env/.pinas-pip.log quiet=()
    shift
    if [ ! -t 1 ]; then quiet=(-qq); fi # errors only; a terminal gets pip's progress bars
    if "$env/bin/python" -m pip "$1" "${quiet[@]}" "${@:2}" 2> >(tee "$log" >&2); then return; fi
    end_change # an orderly failure: pip has rolled back
    sleep 0.2  # the tee above may still be writing
    if grep -qiE '^(ERROR|WARNING|pip\.).*(connection|resolution|unreachable|timed out|proxy|SSL|from versions: none)' "$log"; then
        fail "the network is missing: pip could not fetch $what (no package index answered, see above)"
    fi
    fail "pip could not install $what (see above)"
}

# A killed pip leaves packages that look installed and are not, so a marker surrounds each change to the environment.
begin_change() { touch "$env/.pinas-installing"; }
end_change() { rm -f "$env/.pinas-installing"; }

make_venv() {
    if [ -e "$env/.pinas-installing" ]; then
        say "an earlier set-up was interrupted: building $env anew"
        rm -rf "$env"
    fi
    if [ -x "$env/bin/python" ] && [ "$("$env/bin/python" -c "$version_line" 2>/dev/null)" != "$version" ]; then
        [ -e "$env/.pinas-ours" ] ||
            fail "$env is not an environment of Python $version; remove it or set PINAS_ENV_DIR"
        say "$env belongs to another Python: building it anew"
        rm -rf "$env"
    fi
    if [ -x "$env/bin/python" ]; then return; fi
    [ -z "$(ls -A "$env" 2>/dev/null)" ] ||
        fail "$env is not empty and no virtual environment; remove it or set PINAS_ENV_DIR"
    mkdir -p "$env" 2>/dev/null || fail "cannot create $env; set PINAS_ENV_DIR to a folder of yours"
    check_disk
    say "virtual environment $env (Python $version)"
    touch "$env/.pinas-ours"
    begin_change
    "$python" -m venv "$env" || fail "python -m venv failed; on Debian: apt-get install python3.11-venv"
}

install_pins() {
    say "pinned packages: $(grep -c '==' "${pins[0]}") (a first set-up fetches about 4 GB, some minutes)"
    begin_change
    pip_run 'the pinned packages' install --no-deps -r "${pins[0]}"
    end_change
}

# Sets `variant` (cpu, or cuda with its release and device kinds) and `nvcc`. Needs torch.
choose_variant() {
    local release
    variant=cpu nvcc=''
    if [ -z "$devices" ]; then
        say 'no CUDA device: mmcv gets its CPU operators'
        return
    fi
    release=$("$env/bin/python" -c 'import torch; print(torch.version.cuda or "")')
    if [ -n "$release" ]; then nvcc=$(find_nvcc "$release"); fi
    if [ -n "$nvcc" ]; then
        variant=cuda$release-sm$devices
        say "CUDA device and nvcc $release: mmcv gets its CUDA operators"
    else
        say "a CUDA device, but no nvcc ${release:-(torch is a CPU build)}: mmcv gets its CPU operators"
    fi
}

wheel_folder() { printf '%s/wheels/mmcv%s-torch%s-cp311-%s-%s\n' "$cache" "$(pinned mmcv)" "$(pinned torch)" "$1" "$(uname -m)"; }
cached_wheel() { find "$(wheel_folder "$1")" -name 'mmcv-*.whl' 2>/dev/null | head -n 1; }

compiler_jobs() { # one job needs up to 2 GB
    local jobs by_memory
    jobs=$(nproc)
    by_memory=$(awk '/MemAvailable/ { print int($2 / 2097152) }' /proc/meminfo)
    if [ "$by_memory" -lt "$jobs" ]; then jobs=$by_memory; fi
    printf '%s\n' "$((jobs > 0 ? jobs : 1))"
}

heartbeat() {
    while sleep 60 >/dev/null 2>&1; do
        say "  mmcv: $(find "$wheel_work" -name '*.o' | wc -l) files compiled"
    done
}

build_mmcv() {
    local target settings
    target=$(wheel_folder "$variant")
    mkdir -p "$cache/wheels"
    exec 8>"$cache/wheels/.lock"
    flock -n 8 || { say 'waiting: another set-up builds mmcv'; flock 8; }
    if [ -n "$(cached_wheel "$variant")" ]; then return; fi
    check_compiler
    rm -rf "$cache"/wheels/tmp.*
    wheel_work=$(mktemp -d "$cache/wheels/tmp.XXXXXX")
    mkdir "$wheel_work/build" "$wheel_work/out"
    # pip's own cache knows neither torch's version nor the variant: it would hand out a wheel of another build.
    # mmcv's set-up takes the CUDA path wherever torch sees a device, so the CPU variant hides the devices.
    settings=(MMCV_WITH_OPS=1 "MAX_JOBS=${MAX_JOBS:-$(compiler_jobs)}" "TMPDIR=$wheel_work/build")
    if [ -n "$nvcc" ]; then
        settings+=(FORCE_CUDA=1 "CUDA_HOME=${nvcc%/bin/nvcc}" "TORCH_CUDA_ARCH_LIST=${devices//_/;}")
    else
        settings+=(FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=)
    fi
    say "mmcv $(pinned mmcv): compiling its operators, ${settings[1]#*=} jobs (11 minutes on two idle cores)"
    heartbeat 8>&- 9>&- &
    heartbeat_pid=$!
    (
        export "PATH=$env/bin:$PATH" "${settings[@]}"
        pip_run 'or build mmcv' wheel --no-cache-dir --no-deps --no-build-isolation "mmcv==$(pinned mmcv)" \
            -w "$wheel_work/out"
    )
    kill "$heartbeat_pid" 2>/dev/null || true
    heartbeat_pid=''
    rm -rf "$target"
    mv "$wheel_work/out" "$target"
    say "mmcv's wheel is kept in $target"
}

install_mmcv() {
    if [ -z "$(cached_wheel "$variant")" ]; then build_mmcv; fi
    say "mmcv $(pinned mmcv) ($variant) from its wheel"
    begin_change
    pip_run mmcv install --no-deps --no-index --force-reinstall "$(cached_wheel "$variant")"
    end_change
    exec 8>&-
}

# Two seconds; also what re-points an environment that clones share.
install_project() {
    say "pinas_zoo of $root in editable mode"
    begin_change
    pip_run pinas_zoo install --no-deps --no-index --no-build-isolation -e "$root"
    end_change
}

check_imports() {
    say 'checking the imports'
    "$env/bin/python" -I -W ignore -c 'import torch, torchvision, timm, mmengine, mmcv.ops, mmdet, mmseg' ||
        fail "the environment does not import (see above); remove $env and run this again"
}

# ---- the order ----------------------------------------------------------------------------------------------------

is_complete() { [ "$(cat "$env/.pinas-stamp" 2>/dev/null)" = "$key" ] && [ ! -e "$env/.pinas-installing" ]; }
points_here() {
    local origin
    origin=$("$env/bin/python" -I -c '
import importlib.util
spec = importlib.util.find_spec("pinas_zoo")
print(spec.origin if spec else "")' 2>/dev/null) || return 1
    [ "$origin" = "$root/pinas_zoo/__init__.py" ] || return 1
    [ -x "$env/bin/pinas" ] || return 1
    [ ! -e "$root/configs" ] || [ -e "$root/pinas_zoo/.mim/configs" ]
}

main() {
    env=$(env_folder)
    if [ "${1:-}" = --where ]; then
        printf '%s\n' "$env"
        return
    elif [ $# -gt 0 ]; then
        fail "unknown argument $1; allowed: --where"
    fi
    version_line='import sys; print("%d.%d.%d" % sys.version_info[:3])'
    python=$(find_python)
    version=$("$python" -c "$version_line")
    devices=$(cuda_devices)
    key=$({ cat "${pins[@]}" && printf '%s\n' "$version" "$env" "$devices"; } | hash16)

    if is_complete && points_here; then
        say "ready: $env"
        return
    fi
    check_venv
    if [ -n "$devices" ] || [ -z "$(cached_wheel cpu)" ]; then check_compiler; fi # now, not after the downloads
    mkdir -p "$cache/locks" 2>/dev/null || fail "cannot write to the cache $cache; set PINAS_CACHE_DIR"
    exec 9>"$cache/locks/$(printf '%s' "$env" | hash16)"
    flock -n 9 || { say "waiting: another set-up works on $env"; flock 9; }
    if ! is_complete; then
        make_venv
        rm -f "$env/.pinas-stamp"
        install_pins
        choose_variant
        install_mmcv
    fi
    points_here || install_project
    if ! is_complete; then
        check_imports
        printf '%s\n' "$key" >"$env/.pinas-stamp.new"
        mv "$env/.pinas-stamp.new" "$env/.pinas-stamp"
    fi
    say "ready: $env (activate it: . $env/bin/activate)"
}

main "$@"
