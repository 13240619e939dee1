"""A run of the GPU check: its device and budget, timing, the sequence of parts, and the JSON file of their results."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

import pinas_zoo
from pinas_zoo.dist import cores
from pinas_zoo.files import write_text

__all__ = ['LeftOutError', 'Part', 'Session', 'Timing', 'python']

PACKAGES = ('torch', 'torchvision', 'timm', 'numpy', 'mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation')


class LeftOutError(Exception):
    """A part, or a piece of one, cannot run here."""


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Args:
        run: Runs the part.
        limit: Seconds after which it is stopped. It is left out if less than `least` of that is left.
        least: Share of the limit that must be left for it to start.
    """

    run: Callable[[Session], None]
    limit: float
    least: float = 0.5

    @property
    def name(self) -> str:
        """Name on the command line and in the results."""
        return self.run.__name__


@dataclass(frozen=True)
class Timing:
    """Times of a call in milliseconds, and the GPU's memory.

    Args:
        ms: Time of one of many consecutive calls, on the device's clock.
        host_ms: The host's time until a call returns, starting with an idle device.
        peak_mib: Highest allocated memory.
    """

    ms: float
    host_ms: float
    peak_mib: int


@dataclass
class Session:
    """Settings and results of one run.

    Args:
        device: 'cuda', or 'cpu' for a rehearsal.
        tiny: Use tiny sizes, to see that every part runs; the times say nothing.
        out: Folder of the results.
        budget: Seconds in total.
    """

    device: torch.device
    tiny: bool
    out: Path
    budget: float
    results: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    current: str = ''

    @property
    def cuda(self) -> bool:
        """Whether there is a CUDA device."""
        return self.device.type == 'cuda'

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.budget - (time.monotonic() - self.began)

    def root(self) -> Path:
        """The clone that this package is in, with configs, tools and golden tensors.

        Raises:
            LeftOutError: The package is installed without them.
        """
        root = Path(pinas_zoo.__file__).resolve().parents[1]
        if not (root / 'tests' / 'golden.py').is_file():
            raise LeftOutError('needs a clone of the repository (tests/data, configs, tools)')
        return root

    def say(self, line: str) -> None:
        """Prints a line with the elapsed time."""
        print(f'[{time.monotonic() - self.began:5.0f}s] {line}', flush=True)

    def record(self, name: str, **values: Any) -> None:
        """Records values of the current part and prints them."""
        self.results['parts'][self.current].setdefault('rows', {})[name] = values
        self.say(f'{self.current} {name}: ' + '  '.join(f'{key} {_short(value)}' for key, value in values.items()))

    def free(self) -> None:
        """Frees the memory of discarded trainers, which are part of reference cycles."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, call: Callable[[int], Any], rounds: int = 10, warm_ups: int = 3) -> Timing:
        """Times a call that takes the index of its round; warm-up rounds have negative indices and may be many."""
        rounds, warm_ups = (2, 1) if self.tiny else (rounds, warm_ups)
        for index in range(-warm_ups, 0):
            call(index)
        self.synchronise()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        host = []
        for index in range(min(rounds, 4)):
            start = time.perf_counter()
            call(index)
            host.append(time.perf_counter() - start)
            self.synchronise()
        ms = self._in_a_row(call, rounds)
        peak = torch.cuda.max_memory_allocated() >> 20 if self.cuda else 0
        return Timing(ms, 1e3 * median(host), peak)

    def _in_a_row(self, call: Callable[[int], Any], rounds: int) -> float:
        if not self.cuda:
            start = time.perf_counter()
            for index in range(rounds):
                call(index)
            return 1e3 * (time.perf_counter() - start) / rounds
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for index in range(rounds):
            call(index)
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / rounds

    def commands(self, commands: Mapping[str, list[str]], limit: float) -> dict[str, tuple[int, str]]:
        """Runs programs side by side in the clone; returns exit status and output of each.

        Args:
            commands: Command by name.
            limit: Seconds for all of them; programs that still run then are killed.
        """
        root, running = self.root(), {}
        path = os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH'))))
        env = os.environ | {'PYTHONPATH': path, 'PINAS_OFFLINE': '1'}
        end = time.monotonic() + limit
        with TemporaryDirectory() as folder:
            logs = {name: Path(folder, str(index)) for index, name in enumerate(commands)}
            try:
                for name, command in commands.items():
                    with logs[name].open('wb') as log:
                        running[name] = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log)
                for process in running.values():
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(max(0.0, end - time.monotonic()) if self.cuda else None)
            finally:
                for process in running.values():
                    if process.poll() is None:
                        process.kill()
                    process.wait()
            return {name: (p.returncode, logs[name].read_text(errors='replace')) for name, p in running.items()}

    def run(self, parts: list[Part]) -> bool:
        """Runs parts one after another and writes results.json after each; returns whether none failed."""
        self.results |= {'environment': self.describe(), 'tiny': self.tiny, 'budget': self.budget, 'parts': {}}
        for part in parts:
            self.current = part.name
            result: dict[str, Any] = {}
            self.results['parts'][part.name] = result
            start = time.monotonic()
            if self.cuda and self.left < part.limit * part.least:
                result['left_out'] = f'{self.left:.0f} s left'
            else:
                self.say(f'== {part.name}')
                result |= self._attempt(part)
            result['seconds'] = round(time.monotonic() - start, 1)
            for kind in ('left_out', 'error'):
                if kind in result:
                    self.say(f'{part.name}: {kind.replace("_", " ")}: {result[kind]}')
            self.results['seconds'] = round(time.monotonic() - self.began, 1)
            write_text(self.out / 'results.json', json.dumps(self.results, indent=1) + '\n')
        return not any('error' in result for result in self.results['parts'].values())

    def _attempt(self, part: Part) -> dict[str, Any]:
        result = self.results['parts'][part.name]
        try:
            # A rehearsal takes as long as it takes: the limits are meant for time on a GPU.
            with time_limit(min(part.limit, max(self.left, 1))) if self.cuda else nullcontext():
                part.run(self)
        except LeftOutError as error:
            result['left_out'] = str(error)
        except Exception as error:
            traceback.print_exc(limit=-4)
            result['error'] = f'{type(error).__name__}: {str(error)[:300]}'
        self.free()
        return result

    def describe(self) -> dict[str, Any]:
        """GPU, driver and versions."""
        found: dict[str, Any] = {'python': platform.python_version(), 'cores': cores()}
        for name in PACKAGES:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        if self.cuda:
            card = torch.cuda.get_device_properties(self.device)
            found |= {
                'card': card.name,
                'memory_mib': card.total_memory >> 20,
                'capability': f'{card.major}.{card.minor}',
                'cuda': torch.version.cuda,
                'cudnn': torch.backends.cudnn.version(),
                'driver': _driver(),
            }
        return found


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError after this many seconds, in the main thread of a system with alarm signals.

    Again every few seconds after that: code that tries something and continues without it (torch's compiler does) would
    swallow a single one.

    Raises:
        TimeoutError: The time is over.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f'stopped after {seconds:.0f} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _driver() -> str | None:
    try:
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        return subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.4g}' if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return ' '.join(map(_short, value))
    return str(value)


def python(*arguments: str) -> list[str]:
    """A command that runs this Python."""
    return [sys.executable, *arguments]
