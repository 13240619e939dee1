"""Python scripts in forks of a process that has imported the training packages already: a start takes no seconds.

A fork shares the server's hash seed, so what is compared with it comes from a process of its own (engine_utils.py).
"""

import contextlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PRELOADED = ('torchvision', 'timm', 'mmengine.runner', 'pinas_zoo.mm.engine.loop')


class ForkServer:
    """Starts the server; one script runs at a time. The server ends with the process that started it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _read(self, timeout: float | None = None) -> int | None:
        if timeout is not None and not select.select([self.process.stdout], [], [], timeout)[0]:
            return None
        return int(self.process.stdout.readline())

    def run(self, command: list[str], env: dict[str, str], cwd: Path, output: Path, timeout: float) -> int:
        """Runs a script as `python *command` would, in a session of its own.

        Args:
            command: The script and its arguments.
            env: The environment.
            cwd: The folder it runs in.
            output: File that stdout and stderr are appended to.
            timeout: Seconds.

        Returns:
            The exit status; the negative signal number where one ended it.

        Raises:
            subprocess.TimeoutExpired: It was killed after `timeout`.
        """
        call = dict(command=command, env=env, cwd=str(cwd), output=str(output))
        self.process.stdin.write(json.dumps(call).encode() + b'\n')
        self.process.stdin.flush()
        pid = self._read()
        status = self._read(timeout)
        with contextlib.suppress(ProcessLookupError):  # it, or what it left behind
            os.killpg(pid, signal.SIGKILL)
        if status is None:
            self._read()
            raise subprocess.TimeoutExpired(command, timeout)
        return status


def become(call: dict[str, Any]) -> list[str]:
    """Makes a fork what a new process would be; returns the script and its arguments."""
    import numpy as np
    import torch

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(call['output'], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(call['env'])
    os.chdir(call['cwd'])
    torch.set_num_threads(int(call['env'].get('OMP_NUM_THREADS', 1)))
    np.random.seed()
    sys.argv = call['command']
    paths = [str(Path(sys.argv[0]).resolve().parent), *call['env'].get('PYTHONPATH', '').split(os.pathsep)]
    sys.path[:1] = filter(None, paths)
    return sys.argv


def serve() -> list[str]:
    """Answers calls on stdin with a process id and an exit status on stdout; comes back in each fork."""
    for name in PRELOADED:
        __import__(name)
    answers = os.fdopen(os.dup(1), 'wb', buffering=0)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            answers.close()
            return become(json.loads(line))
        answers.write(b'%d\n' % pid)
        answers.write(b'%d\n' % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    raise SystemExit


if __name__ == '__main__':
    runpy.run_path(serve()[0], run_name='__main__')
