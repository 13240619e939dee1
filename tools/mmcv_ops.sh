# shellcheck shell=bash disable=SC2154 # a part of tools/setup_env.sh: sets nothing up by itself
# mmcv with its compiled operators (`setup_env.sh --mmcv-ops`): built once per torch, Python and device, kept as a wheel.

check_compiler() {
    local compiler=${CXX:-c++} headers
    [ "$version" != 3.13 ] ||
        fail "the set-up of mmcv $(pinned mmcv) does not run on Python 3.13: --mmcv-ops needs 3.11 or 3.12 (PINAS_PYTHON=python3.12)"
    choose_variant
    if [ -n "$(cached_wheel "$variant")" ]; then return; fi
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$headers/Python.h" ] ||
        fail "Python's headers are missing (no Python.h), mmcv needs them; on Debian: apt-get install python$version-dev"
    "$compiler" -std=c++17 -x c++ -fsyntax-only - <<<'#include <vector>' 2>/dev/null ||
        fail "a C++17 compiler is missing ($compiler), mmcv needs it; on Debian: apt-get install g++"
}

# Compute capabilities of the CUDA devices, such as "9.0"; nothing if there is none.
cuda_devices() {
    local found
    found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null) || return 0
    printf '%s\n' "$found" | sort -u | paste -sd_ -
}

# Path of an nvcc of the given release ("12.8"); nothing if there is none.
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

# Sets `variant` (cpu, or cuda with its release and device kinds), `devices` and `nvcc`.
choose_variant() {
    local release=''
    variant=cpu nvcc='' devices=$(cuda_devices)
    if [ -z "$devices" ]; then return; fi
    # the CUDA release of the pinned torch, as its libraries name it: 12.8.90 is 12.8
    if [ -z "$cpu" ]; then release=$(pinned nvidia-cuda-runtime-cu12 | cut -d. -f1-2); fi
    if [ -n "$release" ]; then nvcc=$(find_nvcc "$release"); fi
    if [ -n "$nvcc" ]; then
        variant=cuda$release-sm$devices
        say "CUDA device and nvcc $release: mmcv gets its CUDA operators"
    else
        say "a CUDA device, but no nvcc ${release:-(torch is a CPU build)}: mmcv gets its CPU operators"
    fi
}

wheel_folder() {
    printf '%s/wheels/mmcv%s-torch%s-cp%s-%s-%s\n' "$cache" "$(pinned mmcv)" "$(pinned torch)${cpu:+cpu}" \
        "${version/./}" "$1" "$(uname -m)"
}
cached_wheel() { find "$(wheel_folder "$1")" -name 'mmcv-*.whl' 2>/dev/null | head -n 1; }

compiler_jobs() { # one job needs up to 2 GB
    local jobs by_memory
    jobs=$(env -u OMP_NUM_THREADS nproc)
    by_memory=$(awk '/MemAvailable/ { print int($2 / 2097152) }' /proc/meminfo)
    if [ "$by_memory" -lt "$jobs" ]; then jobs=$by_memory; fi
    printf '%s\n' "$((jobs > 0 ? jobs : 1))"
}

report_build() {
    while sleep 60; do
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
    rm -rf "$cache"/wheels/tmp.*
    wheel_work=$(mktemp -d "$cache/wheels/tmp.XXXXXX")
    mkdir "$wheel_work/build" "$wheel_work/out"
    # pip's own cache knows neither torch's version nor the variant: it could return a wheel of another build.
    # mmcv's set-up takes the CUDA path wherever torch sees a device, so the CPU variant hides the devices.
    settings=(MMCV_WITH_OPS=1 "MAX_JOBS=${MAX_JOBS:-$(compiler_jobs)}" "TMPDIR=$wheel_work/build")
    if [ -n "$nvcc" ]; then
        settings+=(FORCE_CUDA=1 "CUDA_HOME=${nvcc%/bin/nvcc}" "TORCH_CUDA_ARCH_LIST=${devices//_/;}")
    else
        settings+=(FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=)
    fi
    say "mmcv $(pinned mmcv): compiling its operators, ${settings[1]#*=} jobs (11 minutes on two idle cores)"
    start_heartbeat report_build
    (
        export "PATH=$env/bin:$PATH" "${settings[@]}"
        pip_run 'or build mmcv' pip wheel --no-cache-dir --no-deps --no-build-isolation "mmcv==$(pinned mmcv)" \
            -w "$wheel_work/out"
    )
    stop_heartbeat
    rm -rf "$target"
    mv "$wheel_work/out" "$target"
    say "mmcv's wheel is kept in $target"
}

install_mmcv() {
    if [ -z "$(cached_wheel "$variant")" ]; then build_mmcv; fi
    say "mmcv $(pinned mmcv) ($variant) from its wheel"
    begin_change
    if has_dist 'mmcv_lite-*'; then pip_run mmcv pip uninstall -y mmcv-lite; fi
    pip_run mmcv pip install --no-deps --no-index --force-reinstall "$(cached_wheel "$variant")"
    end_change
    exec 8>&-
}
