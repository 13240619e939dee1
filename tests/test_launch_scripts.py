"""tools/dist_train.sh, dist_test.sh and slurm_train.sh: which Python they take, and what they call."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / 'tools'


def stub(path: Path) -> Path:
    """A program that prints its own name, its arguments and the variables that the scripts set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\necho "$0" "$@" "threads=$PINAS_THREADS" "path=$PYTHONPATH"\n')
    path.chmod(0o755)
    return path


def call(script: str, *words: str, **env: str) -> str:
    clean = {'PATH': os.environ['PATH'], 'HOME': os.environ.get('HOME', '/'), **env}
    return subprocess.check_output(['bash', str(TOOLS / script), *words], env=clean, text=True)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """As on a machine for tests: the environment is in the cache."""
    return {'CI': '1', 'PINAS_CACHE_DIR': str(tmp_path), 'OMP_NUM_THREADS': '3'}


def test_the_environment_of_setup_env_is_found(settings: dict[str, str], tmp_path: Path) -> None:
    python = stub(Path(call('setup_env.sh', '--where', **settings).strip()) / 'bin/python')
    words = call('dist_train.sh', 'some.py', '2', '--seed', '1', **settings).split()
    assert words[0] == str(python) and words[1:3] == ['-m', 'torch.distributed.run']
    assert words[-7:-2] == ['some.py', '--seed', '1', '--launcher', 'pytorch']
    assert words[-2:] == ['threads=3', f'path={TOOLS.parent}'] and f'{TOOLS}/train.py' in words
    stub(tmp_path / 'bin/srun')
    settings['PATH'] = f'{tmp_path}/bin:{os.environ["PATH"]}'
    words = call('slurm_train.sh', 'gpu', 'job', 'some.py', '--amp', **settings).split()
    assert words[0].endswith('srun') and words[-6:-2] == [str(python), f'{TOOLS}/train.py', 'some.py', '--amp']
    assert words[-2:] == ['threads=3', f'path={TOOLS.parent}']


def test_python_can_be_named(settings: dict[str, str], tmp_path: Path) -> None:
    python = stub(tmp_path / 'my/python')
    words = call('dist_test.sh', 'some.py', 'x.pth', '2', '--out', 'o.pkl', PYTHON=str(python), **settings).split()
    assert words[0] == str(python) and f'{TOOLS}/test.py' in words and '--standalone' in words
    assert words[-8:-4] == ['some.py', 'x.pth', '--out', 'o.pkl']
    several = {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': 'first', 'PORT': '29123', 'PYTHON': str(python)}
    words = call('dist_train.sh', 'some.py', '8', **settings, **several)
    assert '--nnodes 2 --node_rank 1 --master_addr first --master_port 29123 --nproc_per_node 8' in words


def test_restarts_and_requeues(settings: dict[str, str], tmp_path: Path) -> None:
    python = stub(tmp_path / 'my/python')
    settings |= {'PYTHON': str(python), 'MAX_RESTARTS': '2'}
    words = call('dist_train.sh', 'some.py', '8', '--seed', '1', **settings)
    assert '--max-restarts 2 --standalone --nproc_per_node 8' in words and 'some.py --resume --seed 1' in words
    words = call('dist_test.sh', 'some.py', 'x.pth', '2', **settings)
    assert '--max-restarts 2' in words and '--resume' not in words
    words = call('dist_train.sh', 'some.py', '8', **settings, NNODES='2:4', MASTER_ADDR='first', PORT='29123')
    rendezvous = '--nnodes 2:4 --rdzv-id pinas --rdzv-backend c10d --rdzv-endpoint first:29123'
    assert f'--max-restarts 2 {rendezvous} --nproc_per_node 8' in words
    for name in ('srun', 'sbatch'):
        stub(tmp_path / 'bin' / name)
    settings |= {'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'REQUEUE': '90', 'SRUN_ARGS': '--time 8:00:00'}
    words = call('slurm_train.sh', 'gpu', 'job', 'some.py', '--work-dir', 'a b', **settings)
    assert words.startswith(f'{tmp_path}/bin/sbatch') and '--time 8:00:00 --requeue --open-mode append' in words
    assert f'--signal USR1@90 --wrap bash {TOOLS}/slurm_train.sh gpu job some.py --work-dir a\\ b' in words
    words = call('slurm_train.sh', 'gpu', 'job', 'some.py', **settings, SLURM_JOB_ID='7')
    assert words.startswith(f'{tmp_path}/bin/srun') and '--kill-on-bad-exit=0 --wait=60' in words
    assert f'{TOOLS}/train.py some.py --requeue' in words


def test_usage() -> None:
    for script in ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh'):
        done = subprocess.run(['bash', str(TOOLS / script)], capture_output=True, text=True)
        assert done.returncode == 2 and f'tools/{script}' in done.stderr
