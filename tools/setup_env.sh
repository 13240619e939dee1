#!/usr/bin/env bash
# Builds the project's Python environment: pinned packages and the project in editable mode. Needs no compiler, no root.
#
#   bash tools/setup_env.sh [options]   build, repair or re-point the environment; immediate if it is ready
#     --where      print the environment's folder and do nothing
#     --versions   print the supported versions of Python and do nothing
#     --core       only what the package and its core tests need: no mm packages
#     --mmcv-ops   compile mmcv with its operators (needs a C++ compiler); later calls keep them
#     --cpu        torch without its CUDA libraries, from the index $PINAS_TORCH_INDEX, else from those that pip uses
#     --share DIR  hard links to the CUDA libraries of the environment in DIR, which are the same for every Python
#
# Python is $PINAS_PYTHON, else that of the environment, else the machine's python3 or a python3.11 to python3.13.
# The folder is $PINAS_ENV_DIR; else, if CI is set, one in the cache that clones share; else .venv.
# The cache (locks, compiled mmcv) is $PINAS_CACHE_DIR, else pinas_zoo in the user's cache folder.
#
# Safe to interrupt and to run twice at the same time: locks order the runs, wheels and the stamp are renamed into place,
# and an environment that an interrupted pip left incomplete is rebuilt.
# The exit status is 75 if the disk is too full, 1 after any other error.
set -euo pipefail
unset PYTHONHOME PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${PINAS_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pinas_zoo}
lock=$root/requirements/lock.txt
pins=("$lock" "$root/requirements/mmcv.txt")
supported='3.11 3.12 3.13'
streams=4 # parallel downloads: a single connection rarely uses the full bandwidth
where='' core='' ops='' cpu='' share='' wheel_work='' heartbeat_pid=''

say() { printf '[setup %02d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }
fail() {
    printf 'setup_env: error: %s\n' "$*" >&2
    exit 1
}
pinned() { awk -F'[= ]+' -v name="$1" '$1 == name { print $2 }' "${pins[@]}"; }
hash16() { sha256sum | cut -c1-16; }

start_heartbeat() { # command
    "$@" 8>&- 9>&- &
    heartbeat_pid=$!
}
stop_heartbeat() {
    if [ -n "$heartbeat_pid" ]; then kill "$heartbeat_pid" 2>/dev/null || true; fi
    heartbeat_pid=''
}
clean_up() {
    stop_heartbeat
    if [ -n "$wheel_work" ]; then rm -rf "$wheel_work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --where) where=1 ;;
            --versions)
                printf '%s\n' "$supported"
                exit
                ;;
            --core) core=1 ;;
            --mmcv-ops) ops=1 ;;
            --cpu) cpu=1 ;;
            --share)
                [ -d "${2:-}/bin" ] || fail "--share needs the folder of an environment, got '${2:-}'"
                share=$2
                shift
                ;;
            *) fail "unknown argument $1; allowed: --where, --versions, --core, --mmcv-ops, --cpu, --share DIR" ;;
        esac
        shift
    done
    if [ -n "$core" ] && [ -n "$ops" ]; then fail "--core has no mm packages, --mmcv-ops compiles one: take one of them"; fi
    # CUDA libraries exist for x86_64 only
    if [ "$(uname -m)" != x86_64 ]; then cpu=''; fi
}

# ---- requirements of the machine ----------------------------------------------------------------------------------

version_of() { "$1" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# Sets `python` and `version` ("3.12").
find_python() {
    local name names=(python3 python3.11 python3.12 python3.13)
    if [ -n "${PINAS_PYTHON:-}" ]; then names=("$PINAS_PYTHON"); elif [ $# -gt 0 ]; then names=("$1" "${names[@]}"); fi
    for name in "${names[@]}"; do
        version=$(version_of "$name") || continue
        case " $supported " in *" $version "*) ;; *) continue ;; esac
        python=$(command -v "$name")
        return
    done
    fail "no Python of ${supported// /, } (tried: ${names[*]}); on Debian: apt-get install python3 python3-venv"
}

env_folder() {
    local folder=$root/.venv
    if [ -n "${PINAS_ENV_DIR:-}" ]; then
        folder=$PINAS_ENV_DIR
    elif [ -n "${CI:-}" ]; then
        folder=$cache/envs/py$version${core:+-core}-$(cat "${pins[@]}" | hash16)
    fi
    case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
    printf '%s\n' "$folder"
}

check_venv() {
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "Python's venv module is missing; on Debian: apt-get install python$version-venv"
}

check_disk() {
    local need_gb=12 free_kb # 7.6 installed, and 4.1 of wheels until the installation is done
    if [ "$(uname -m)" != x86_64 ] || [ -n "$cpu$share" ]; then need_gb=5; fi
    free_kb=$(df -Pk "$env" | awk 'NR == 2 { print $4 }')
    if [ "$((free_kb / 1048576))" -lt "$need_gb" ]; then
        (fail "disk is too full: $((free_kb / 1048576)) GB free at $env, torch and its libraries need $need_gb GB") || exit 75
    fi
}

# ---- steps --------------------------------------------------------------------------------------------------------

# Runs a command that calls pip; a failure becomes one line that names its likely cause.
pip_run() {
    local what=$1 log=$env/.pinas-pip.log
    shift
    if "$@" 2> >(tee "$log" >&2); then return; fi
    end_change # pip itself failed and has rolled back
    sleep 0.2  # the tee above may still be writing
    if grep -qi 'no matching distribution found for torch.*+cpu' "$log"; then
        fail "no CPU build of torch $(pinned torch) for Python $version at ${PINAS_TORCH_INDEX:-the indexes that pip knows};" \
            "set PINAS_TORCH_INDEX to one that serves it (torch's installation page names it) or leave out --cpu"
    elif grep -qiE '(connection|resolution|unreachable|timed out|proxy|SSL|from versions: none)' "$log"; then
        fail "the network is missing: pip could not fetch $what (no package index answered, see above)"
    fi
    fail "pip could not install $what (see above)"
}
pip() { "$env/bin/python" -m pip "$1" -qq "${@:2}"; }

# A killed pip leaves packages that look installed and are not, so a marker surrounds each change to the environment.
begin_change() { touch "$env/.pinas-installing"; }
end_change() { rm -f "$env/.pinas-installing"; }

has_dist() { compgen -G "$env/lib/python3*/site-packages/$1.dist-info" >/dev/null; } # pattern of name-version

remove_env() {
    [ -e "$env/.pinas-ours" ] || fail "$env is not $1; remove it or set PINAS_ENV_DIR"
    say "$env is not $1: building it again"
    rm -rf "$env"
}

make_venv() {
    if [ -e "$env/.pinas-installing" ]; then
        say "an earlier set-up was interrupted: building $env again"
        rm -rf "$env"
    elif [ -L "$env/bin/python" ] && [ "$(version_of "$env/bin/python")" != "$version" ]; then # other, or gone
        remove_env "an environment of Python $version"
    elif [ -n "$cpu" ] && has_dist 'nvidia_*'; then
        remove_env 'a CPU-only environment'
    fi
    if [ -x "$env/bin/python" ]; then return; fi
    [ -z "$(ls -A "$env" 2>/dev/null)" ] ||
        fail "$env is not empty and no virtual environment; remove it or set PINAS_ENV_DIR"
    mkdir -p "$env" 2>/dev/null || fail "cannot create $env; set PINAS_ENV_DIR to a folder of yours"
    check_disk
    say "virtual environment $env (Python $version)"
    touch "$env/.pinas-ours"
    begin_change
    "$python" -m venv "$env" || fail "python -m venv failed; on Debian: apt-get install python$version-venv"
}

# NVIDIA's wheels do not depend on the Python version: environments on one disk need these 4.3 of 7.6 GB only once.
share_cuda() {
    local from to
    from=$(echo "$share"/lib/python3*/site-packages)
    to=$(echo "$env"/lib/python3*/site-packages)
    if [ ! -d "$from/nvidia" ] || [ -e "$to/nvidia" ]; then return; fi
    say "CUDA libraries of $share"
    begin_change
    if cp -al "$from"/nvidia "$from"/nvidia_*.dist-info "$to"; then
        end_change
    else # another file system: they are downloaded
        rm -rf "$to"/nvidia "$to"/nvidia_*.dist-info
    fi
}

# The selected lines of the lock, without their markers: `name==version`.
selected_pins() {
    local cuda=''
    if [ "$(uname -m)" = x86_64 ] && [ -z "$cpu" ]; then cuda=1; fi
    awk -v core="$core" -v ops="$ops" -v cuda="$cuda" -v cpu="$cpu" '
        /^# ---- / { section = $3; sub(/:$/, "", section) }
        !/^[A-Za-z]/ || (core && section != "core") || (ops && /^mmcv-lite==/) || (!cuda && / ; platform_machine/) { next }
        { print $1 (cpu && /^torch(vision)?==/ ? "+cpu" : "") }' "$lock"
}

# The lines on standard input that the environment lacks.
lacking() {
    "$env/bin/python" -I -c '
import sys
from importlib.metadata import PackageNotFoundError, version
for line in sys.stdin:
    name, wanted = line.strip().split("==")
    try:
        found = version(name)
    except PackageNotFoundError:
        found = None
    if found != wanted:
        print(f"{name}=={wanted}")'
}

report_download() { # folder
    local kb last=0 from=$SECONDS
    while sleep 15; do
        kb=$(du -sk "$1" 2>/dev/null | cut -f1)
        say "  $((kb / 1024)) MB fetched, $(((kb - last) / 1024 / (SECONDS - from))) MB/s"
        last=$kb from=$SECONDS
    done
}

# Downloads the given lines' wheels into a folder, several at a time: the big ones separately, the others in groups.
fetch() { # folder line...
    local folder=$1 index=()
    shift
    if [ -n "$cpu" ]; then
        index=(--extra-index-url "${PINAS_TORCH_INDEX:-}")
        if [ -z "${PINAS_TORCH_INDEX:-}" ]; then index=(); fi
    fi
    printf '%s\n' "$@" | awk '
        /^(torch|torchvision|triton|nvidia-.*)==/ { print; next }
        { group = group " " $0; if (++n % 24 == 0) { print group; group = "" } }
        END { if (group) print group }' |
        TMPDIR=$folder/tmp xargs -P "$streams" -L 1 "$env/bin/python" -m pip download -qq --no-deps \
            --only-binary=:all: "${index[@]}" -d "$folder"
}

install_pins() {
    local work=$env/.pinas-downloads lines from=$SECONDS mb
    mapfile -t lines < <(selected_pins | lacking)
    if [ ${#lines[@]} = 0 ]; then return; fi
    say "packages to fetch: ${#lines[@]}"
    if has_line 'nvidia-cublas*' "${lines[@]}"; then
        say '  4.1 GB, most of it CUDA libraries: 1 minute at 70 MB/s, 7 minutes at 10 MB/s, 70 minutes at 1 MB/s'
    fi
    begin_change
    rm -rf "$work"
    mkdir -p "$work/tmp"
    start_heartbeat report_download "$work"
    pip_run 'the pinned packages' fetch "$work" "${lines[@]}"
    stop_heartbeat
    mb=$(du -sm "$work" | cut -f1)
    say "installing them ($mb MB came in $((SECONDS - from)) s)"
    pip_run 'the pinned packages' pip install --no-deps --no-compile --no-index --find-links "$work" "${lines[@]}"
    rm -rf "$work"
    end_change
}

has_line() { # pattern line...
    local line
    for line in "${@:2}"; do
        # shellcheck disable=SC2053 # a pattern is meant
        if [[ $line == $1 ]]; then return; fi
    done
    return 1
}

# Two seconds; also what re-points an environment that clones share.
install_project() {
    say "pinas_zoo of $root in editable mode"
    begin_change
    pip_run pinas_zoo pip install --no-deps --no-index --no-build-isolation --no-compile -e "$root"
    end_change
}

# mmcv without compiled operators gets those of torchvision instead.
install_operators() {
    if [ -n "$core" ]; then return; fi
    say "$("$env/bin/python" -I -W ignore -m pinas_zoo.mmcv_ext install)" || fail "mmcv's operators could not be set up (see above)"
}

# Also writes the bytecode of what a training imports, which pip left out, even where PYTHONDONTWRITEBYTECODE is set (-I
# ignores it): compiling mmdet's models in every process would cost 15 seconds each.
check_imports() {
    local modules='torch, torchvision, timm, pinas_zoo'
    if [ -z "$core" ]; then modules="mmengine, mmcv.ops, mmdet.apis, mmseg.apis, $modules, pinas_zoo.mm.heads"; fi
    say 'checking the imports'
    "$env/bin/python" -I -W ignore -c "import $modules" ||
        fail "the environment does not import (see above); remove $env and run this again"
}

# Environments that CI made for other pins, unused for a day: each is 7 GB.
remove_old_envs() {
    local stamp
    if [ -z "${CI:-}" ] || [ -n "${PINAS_ENV_DIR:-}" ]; then return; fi
    mkdir -p "$cache/envs" # find fails without a start folder, and so would the script
    find "$cache/envs" -mindepth 2 -maxdepth 2 -name .pinas-stamp -mmin +1440 2>/dev/null | while read -r stamp; do
        say "removing ${stamp%/.pinas-stamp}: unused for a day"
        rm -rf "${stamp%/.pinas-stamp}"
    done
}

# ---- main -------------------------------------------------------------------------------------------------------

is_complete() {
    [ "$(cat "$env/.pinas-stamp" 2>/dev/null)" = "$key" ] && [ ! -e "$env/.pinas-installing" ] && [ -x "$env/bin/python" ]
}
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

# What the environment has is kept: compiled operators, a CPU torch, and mm packages if only the core is requested.
keep_choices() {
    if has_dist 'mmcv-*'; then ops=1; fi
    if has_dist 'torch-*+cpu'; then cpu=1; fi
    if has_dist 'mmdet-*'; then core=''; fi
    if [ -n "$core" ]; then ops=''; fi
}

build() {
    make_venv
    rm -f "$env/.pinas-stamp"
    if [ -n "$ops" ]; then check_compiler; fi # now, not after the downloads
    if [ -n "$share" ] && [ -z "$cpu" ]; then share_cuda; fi
    if ! has_dist "pip-$(pinned pip)"; then pip_run pip pip install --no-deps --no-compile "pip==$(pinned pip)"; fi
    install_pins
    if [ -n "$ops" ]; then install_mmcv; fi
}

main() {
    read_arguments "$@"
    if [ -n "${CI:-}" ] && [ -z "${PINAS_ENV_DIR:-}" ]; then
        find_python
        env=$(env_folder)
    else
        env=$(env_folder)
        if [ -z "$where" ]; then find_python "$env/bin/python"; fi
    fi
    if [ -n "$where" ]; then
        printf '%s\n' "$env"
        return
    fi
    keep_choices
    # shellcheck source=tools/mmcv_ops.sh
    if [ -n "$ops" ]; then . "$root/tools/mmcv_ops.sh"; fi
    key=$({ selected_pins && printf '%s\n' "$version" "$env" "${ops:+$(pinned mmcv) $(cuda_devices)}"; } | hash16)
    if is_complete && points_here; then
        touch "$env/.pinas-stamp"
        say "ready: $env"
        return
    fi
    check_venv
    mkdir -p "$cache/locks" 2>/dev/null || fail "cannot write to the cache $cache; set PINAS_CACHE_DIR"
    exec 9>"$cache/locks/$(printf '%s' "$env" | hash16)"
    flock -n 9 || { say "waiting: another set-up works on $env"; flock 9; }
    remove_old_envs
    if ! is_complete; then build; fi
    points_here || install_project
    if ! is_complete; then
        install_operators
        check_imports
        printf '%s\n' "$key" >"$env/.pinas-stamp.new"
        mv "$env/.pinas-stamp.new" "$env/.pinas-stamp"
    fi
    say "ready: $env (activate it: . $env/bin/activate)"
}

main "$@"
