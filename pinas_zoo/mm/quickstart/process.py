"""Tools in separate processes: their output goes to a log and, line by line, to the display."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ['ToolProcess', 'log_end']


class ToolProcess:
    """A running tool.

    Args:
        command: Its script (or ``-m`` and a module) and arguments; the interpreter is this one.
        log: File that its output is appended to.
        threads: Threads of the process.
        environment: Variables in addition to the present ones.
        keep_open: Descriptors that it inherits, such as a lock's: it is then held as long as the tool lives.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        threads: int = 1,
        environment: Mapping[str, str] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # A waiting OpenMP thread sleeps instead of spinning, which would take a core from whatever runs beside it.
        variables = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ, 'PYTHONUNBUFFERED': '1'}
        variables |= {'OMP_NUM_THREADS': str(threads), **(environment or {})}
        variables.pop('PINAS_THREADS', None)  # would also apply to the processes that a tool starts
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env=variables,
            pass_fds=tuple(keep_open),
            start_new_session=True,  # it is stopped together with the processes that it has started
        )

    def follow(self, on_line: Callable[[str], None]) -> int:
        """Writes the log until the tool ends; returns its exit status."""
        assert self.process.stdout is not None
        with open(self.log, 'a', buffering=1, encoding='utf-8') as file, self.process:
            for line in self.process.stdout:  # universal newlines: carriage returns of a progress bar end lines too
                file.write(line)
                on_line(line)
        return self.process.returncode

    def stop(self) -> None:
        """Asks the tool to end; what it has saved is kept."""
        self._signal(signal.SIGTERM)

    def wait(self, patience: float = 20.0) -> None:
        """Waits for a stopped tool; kills it if it does not end within `patience` seconds."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(self.process.pid, number)


def log_end(log: Path) -> str:
    """The last 15 lines of a log."""
    return ''.join(log.read_text(encoding='utf-8').splitlines(keepends=True)[-15:])
