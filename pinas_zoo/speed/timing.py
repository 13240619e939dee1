"""Timing of alternating contestants, and the statistics of the times."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ['Settings', 'Times', 'alternate', 'compare', 'peak_memory', 'row']

Contestant = Callable[[int], Any]


@dataclass(frozen=True)
class Settings:
    """Settings that all parts share.

    Args:
        quick: Use tiny sizes, to see that a part runs; the times say nothing.
        rounds: Timed rounds, of which the median counts.
        warmups: Rounds before them.
        threads: Threads of torch.
        seed: Seed of weights, images and paths.
    """

    quick: bool = False
    rounds: int = 5
    warmups: int = 2
    threads: int = 1
    seed: int = 0


@dataclass
class Times:
    """Wall-clock and processor seconds per round (all threads; other programs hardly affect the latter)."""

    wall: list[float]
    cpu: list[float]


def alternate(
    contestants: dict[str, Contestant],
    settings: Settings,
    title: str,
    after: Callable[[], Any] | None = None,
    repeats: int = 1,
) -> dict[str, Times]:
    """Runs every contestant once per round, so that a machine that slows down affects all of them.

    Args:
        contestants: Functions of the round, by name. Warm-ups have negative rounds.
        settings: Rounds and warm-ups.
        title: Start of the progress lines.
        after: Called after each contestant, outside its time.
        repeats: Calls of a contestant in one round, for short ones; times are per call.

    Returns:
        The times of the rounds after the warm-ups.
    """
    times = {name: Times([], []) for name in contestants}
    names = list(contestants)
    for index in range(-settings.warmups, settings.rounds):
        start = index % len(names)  # each contestant comes first in turn
        for name in names[start:] + names[:start]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                contestants[name](index)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if after is not None:
                after()
            kind = f'round {index + 1}/{settings.rounds}' if index >= 0 else 'warm-up'
            print(f'{title}: {kind}, {name}: {wall / repeats:.4f} s', file=sys.stderr, flush=True)
            if index >= 0:
                times[name].wall.append(wall / repeats)
                times[name].cpu.append(cpu / repeats)
    return times


def row(name: str, times: Times, images: int | None = None) -> dict[str, Any]:
    """One row of the result: medians and all rounds; images/s if a round processes a number of images."""
    out: dict[str, Any] = dict(name=name, seconds=median(times.wall), cpu_seconds=median(times.cpu), rounds=times.wall)
    return out | ({} if images is None else dict(images_per_second=images / out['seconds']))


def compare(first: Times, second: Times, cpu: bool = True) -> dict[str, float]:
    """By how many times the first takes longer than the second.

    Args:
        first: The numerator's times.
        second: The denominator's times.
        cpu: Whether processor times are meaningful; they leave out worker processes.

    Returns:
        'ratio' of the medians; 'paired', the median of the ratios per round, the one to trust on a machine with
        other load; 'cpu', the ratio of the medians of processor time.
    """
    ratios = dict(
        ratio=median(first.wall) / median(second.wall),
        paired=median(a / b for a, b in zip(first.wall, second.wall, strict=True)),
    )
    return ratios | (dict(cpu=median(first.cpu) / median(second.cpu)) if cpu else {})


def peak_memory() -> float:
    """Highest resident memory of this process so far, in MiB."""
    status = Path('/proc/self/status')
    if status.is_file():  # ru_maxrss would be the parent's peak if that is higher
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 / (1024 if sys.platform == 'darwin' else 1)
