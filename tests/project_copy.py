"""A copy of the project, so that a test may build it or give it other weights; and commands that run in the copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from fork_server import SHARED, python

ROOT = Path(__file__).resolve().parents[1]


def copy_project(target: Path) -> Path:
    """Copies the project without the results of builds and runs."""
    skipped = shutil.ignore_patterns('.*', 'work_dirs', 'build', 'dist', 'data', '*.egg-info', '__pycache__')
    shutil.copytree(ROOT, target, ignore=lambda folder, names: skipped(folder, names) - keep(folder))
    return target


def keep(folder: str) -> set[str]:
    """`data` is a folder of pixels at the top and a package of ours below."""
    return set() if Path(folder) == ROOT else {'data'}


def run_in(project: Path, *arguments: str, forked: bool = False, **settings: str) -> subprocess.CompletedProcess:
    """Runs Python in a copy, with the copy's package, offline, with an empty cache of weights.

    Args:
        project: The copy.
        arguments: Of Python.
        forked: In a fork that has imported torch, timm and mmengine (fork_server.py).
        settings: Further environment variables.
    """
    own = {'PYTHONPATH': str(project), 'PINAS_OFFLINE': '1', 'PINAS_ZOO_HOME': str(project / 'work_dirs' / 'cache')}
    own[SHARED] = ''  # a server of ours is none of the copy's
    env = {**os.environ, **own, **settings}
    program = python(ours=False) if forked else sys.executable
    return subprocess.run([program, *arguments], cwd=project, env=env, capture_output=True, text=True)
