# shellcheck shell=bash
# Sourced by dist_train.sh and slurm_train.sh. Sets `root` and `python`, exports PYTHONPATH and PINAS_THREADS.
#
# Python is $PYTHON, else that of the environment which tools/setup_env.sh makes, else the active one.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$(bash "$root/tools/setup_env.sh" --where)/bin/python}
if [ -z "${PYTHON:-}" ] && [ ! -x "$python" ]; then
    python=python
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# torchrun sets OMP_NUM_THREADS=1 if it is not set; the user's value is passed on under our name.
if [ -n "${OMP_NUM_THREADS:-}" ]; then
    export PINAS_THREADS=${PINAS_THREADS:-$OMP_NUM_THREADS}
fi
