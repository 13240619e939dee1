"""Helpers for tests of exact resuming: run a config, kill it, compare what two runs left."""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fork_server import python

ROOT = Path(__file__).resolve().parents[1]
# Wall-clock fields and those that hold them; the rest must be equal bit for bit.
CLOCK = frozenset(
    # mmengine's version has the git hash in it, which a commit during a test changes
    {'time', 'data_time', 'eta', 'experiment_name', 'images_per_second', 'memory', 'timestamp', 'mmengine_version'}
)


def run_train(
    config: str | Path,
    work_dir: str | Path,
    *arguments: str,
    kill: tuple[int, str] | None = None,
    processes: int = 1,
    threads: int = 1,
    timeout: float = 600,
) -> subprocess.CompletedProcess:
    """Run tools/train.py in a process of its own, a fork (fork_server.py).

    Args:
        config: Config file.
        work_dir: Of the run.
        arguments: Further arguments of tools/train.py.
        kill: (iteration, moment) of engine_kill.py; None lets the run end.
        processes: More than 1 goes through torchrun.
        threads: Of each process.
        timeout: Seconds.

    Returns:
        The finished process with its output (stderr joined).
    """
    script = [str(ROOT / 'tools/train.py')]
    if kill is not None:
        script = [str(ROOT / 'tests/engine_kill.py'), str(kill[0]), kill[1]]
    script += [str(config), '--work-dir', str(work_dir), *arguments]
    if processes > 1:
        script = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes), *script]
    return run_tool(*script, threads=threads, timeout=timeout, hash_seed=2 if '--resume' in arguments else 1)


def run_tool(
    *words: str, threads: int = 1, timeout: float = 600, hash_seed: int = 1, program: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    """Runs Python, or another program that starts $PYTHON, as `run_train` does.

    Args:
        words: Arguments of Python or of the program.
        threads: Of each process.
        timeout: Seconds.
        hash_seed: Of the forks; continued runs have another one than those with which they are compared.
        program: What runs instead of Python.

    Returns:
        The finished process with its output (stderr joined).
    """
    forks = python(hash_seed)
    paths = [str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')]
    env = dict(
        os.environ,
        PYTHON=forks,
        PYTHON_EXEC=forks,  # torchrun's ranks
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        PINAS_THREADS=str(threads),
        OMP_NUM_THREADS=str(threads),
    )
    command = [*(program or [forks]), *words]
    # A file, not a pipe: a pipe ends only with the last process that a killed one leaves behind.
    with tempfile.NamedTemporaryFile('w+') as output:
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        try:
            process.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, output.read())


def run_killed(
    config: str | Path,
    work_dir: str | Path,
    kills: Sequence[tuple[int, str]],
    *arguments: str,
    **options: Any,
) -> None:
    """Run a config to its end, killing it at each of `kills` (in rising iterations) on the way.

    Raises:
        AssertionError: When a run did not die by SIGKILL, or the last did not end well.
    """
    for kill in kills:
        result = run_train(config, work_dir, *arguments, '--resume', kill=kill, **options)
        # torchrun reports the death of a process as its own failure.
        expected = result.returncode == -signal.SIGKILL or options.get('processes', 1) > 1
        assert expected and result.returncode != 0, f'{kill}: {result.stdout[-3000:]}'
    result = run_train(config, work_dir, *arguments, '--resume', **options)
    assert result.returncode == 0, result.stdout[-3000:]


def last_checkpoint(work_dir: str | Path) -> dict:
    """The content of the checkpoint that last_checkpoint names, loaded weights-only."""
    path = Path(work_dir, 'last_checkpoint').read_text()
    return torch.load(path, map_location='cpu', weights_only=True)


def flatten(node: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """All leaves of nested containers as (dotted name, value), without wall-clock fields."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, (list, tuple)):
        items = list(enumerate(node))
    else:
        yield name, node
        return
    yield f'{name}.#', (type(node).__name__, len(items))
    for key, item in items:
        if str(key).rsplit('/', 1)[-1] not in CLOCK:
            yield from flatten(item, f'{name}.{key}')


def _normal_text(text: str, work_dir: str | Path) -> str:
    """A text without the work_dir and without the lines that only a continued run has."""
    text = text.replace(str(Path(work_dir).resolve()), '<work_dir>').replace(str(work_dir), '<work_dir>')
    return re.sub(r'^(load_from|resume) = .*\n', '', text, flags=re.MULTILINE)


def differences(first: str | Path, second: str | Path) -> list[str]:
    """Names of all that differs between the last checkpoints of two work dirs, bit for bit."""
    leaves = [dict(flatten(last_checkpoint(work_dir))) for work_dir in (first, second)]
    found = sorted(f'only once: {name}' for name in set(leaves[0]) ^ set(leaves[1]))
    for name in sorted(set(leaves[0]) & set(leaves[1])):
        one, other = leaves[0][name], leaves[1][name]
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            same = (
                one.dtype == other.dtype
                and one.shape == other.shape
                and torch.equal(
                    one.contiguous().reshape(-1).view(torch.uint8),
                    other.contiguous().reshape(-1).view(torch.uint8),
                )
            )
        elif isinstance(one, str) and isinstance(other, str):
            same = _normal_text(one, first) == _normal_text(other, second)
        else:
            same = type(one) is type(other) and repr(one) == repr(other)
        if not same:
            found.append(f'{name}: {str(one)[:80]} != {str(other)[:80]}')
    return found


def logged(work_dir: str | Path) -> dict[tuple[int, str], Any]:
    """All logged values by (step, name), later runs over earlier ones, without times."""
    values: dict[tuple[int, str], Any] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the line at which a run was killed
                continue
            step = record.pop('step')
            values.update({(step, k): v for k, v in record.items() if k not in CLOCK})
    return values
