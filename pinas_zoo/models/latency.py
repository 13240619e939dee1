"""Latency of architectures from a table: blocks measured alone on one device, added up, checked on whole networks."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path as FilePath
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinas_zoo.files import read_json, write_text
from pinas_zoo.models.cost import Size
from pinas_zoo.models.precision import autocast, half_type
from pinas_zoo.models.supernet import Path, SuperNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.space import Arch, SearchSpace

__all__ = ['Check', 'Conditions', 'Interval', 'LatencyTable', 'measure_table']

#: Number of times that everything is measured in turn.
TURNS = 5
#: Whole networks that determine a table's scale, besides the checks.
FITS = 10


@dataclass(frozen=True)
class Interval:
    """Seconds of a call: median, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{1e3 * self.median:.3f} ({1e3 * self.low:.3f}-{1e3 * self.high:.3f})'


@dataclass(frozen=True)
class Conditions:
    """What latencies hold for.

    Args:
        device: Name of the processor or the GPU.
        kind: 'cpu' or 'cuda'.
        threads: Threads of torch.
        torch: Version of torch.
        precision: See `models.precision`.
        batch: Images per call.
        size: Height and width in pixels.
        channels_last: Memory format.
        num_classes: Classes of the linear layer.
        clock: 'wall', or 'processor': processor time of one thread, which other programs hardly affect.

    Raises:
        ValueError: The precision or the clock is unknown, or the clock does not fit the device.
    """

    device: str
    kind: str
    threads: int
    torch: str
    precision: str
    batch: int
    size: Size
    channels_last: bool
    num_classes: int
    clock: str = 'wall'

    def __post_init__(self) -> None:
        half_type(self.precision)
        if self.clock != 'wall' and (self.clock, self.kind, self.threads) != ('processor', 'cpu', 1):
            raise ValueError(
                "clock must be 'wall', or 'processor' on a CPU with one thread; "
                f'got {self.clock!r}, {self.kind}, {self.threads}'
            )


@dataclass(frozen=True)
class Check:
    """A whole network, measured, beside the sum of its entries; seconds."""

    arch: str
    whole: Interval
    total: float

    @property
    def error(self) -> float:
        """By which fraction the sum differs from the whole network."""
        return self.total / self.whole.median - 1


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of every candidate at every position of a space, which add up to those of its architectures.

    Args:
        space: The space.
        conditions: What they hold for.
        fixed: Stem, and head with its global pooling: the parts that every architecture has.
        table: ``table[position][candidate]``, with the position's shortcut; None where a candidate does not fit.
        checks: Whole networks that were measured too.
        scale: Factor of every sum, the median ratio over whole networks other than the checks: blocks that are timed in
            a loop find their weights in the cache, those of a network do not.
    """

    space: SearchSpace
    conditions: Conditions
    fixed: dict[str, Interval]
    table: tuple[tuple[Interval | None, ...], ...]
    checks: tuple[Check, ...] = field(default=())
    scale: float = 1.0

    def of(self, arch: str | Sequence[int | Sequence[int]]) -> float:
        """Seconds of one architecture: the sum of the medians, times `scale`.

        Raises:
            ValueError: The architecture is malformed, or keeps several candidates at a position.
        """
        pairs = zip(self._rows, self.space.single(arch), strict=True)
        return self.scale * (self._fixed + sum(row[choice] for row, choice in pairs))

    @property
    def _fixed(self) -> float:
        return sum(part.median for part in self.fixed.values())

    @property
    def _rows(self) -> list[list[float]]:
        return [[math.nan if one is None else one.median for one in row] for row in self.table]

    def errors(self) -> dict[str, float]:
        """Median and largest absolute error of the sums, as fractions of the whole networks' latencies, and tau.

        Raises:
            ValueError: No whole network was measured.
        """
        if not self.checks:
            raise ValueError('no whole network was measured: make the table with at least two checks')
        from scipy.stats import kendalltau  # slow to import

        errors = [abs(check.error) for check in self.checks]
        tau = kendalltau([check.total for check in self.checks], [check.whole.median for check in self.checks])
        return {'median': median(errors), 'worst': max(errors), 'tau': float(tau.statistic)}

    def identity(self) -> dict[str, Any]:
        """The conditions and a hash of the latencies: part of the identity of a search with such a limit."""
        text = json.dumps([self._fixed, self._rows, self.scale])
        return {**asdict(self.conditions), 'sha256': hashlib.sha256(text.encode()).hexdigest()[:16]}

    def save(self, path: str | FilePath) -> None:
        """Writes the table as JSON, atomically."""
        values: dict[str, Any] = {'space': self.space.to_dict(), 'conditions': asdict(self.conditions)}
        values |= {'scale': self.scale, 'fixed': {name: asdict(part) for name, part in self.fixed.items()}}
        values |= {'table': [[None if one is None else asdict(one) for one in row] for row in self.table]}
        values |= {'checks': [asdict(check) for check in self.checks]}
        values |= {'errors': self.errors()} if self.checks else {}
        write_text(path, json.dumps(values, indent=1) + '\n')

    @classmethod
    def read(cls, path: str | FilePath) -> LatencyTable:
        """Reads a table.

        Raises:
            ValueError: The file is not a latency table.
        """
        try:
            values = read_json(path)
            conditions = values['conditions'] | {'size': tuple(values['conditions']['size'])}
            return cls(
                SearchSpace.from_dict(values['space']),
                Conditions(**conditions),
                {name: Interval(**part) for name, part in values['fixed'].items()},
                tuple(tuple(None if one is None else Interval(**one) for one in row) for row in values['table']),
                tuple(Check(one['arch'], Interval(**one['whole']), one['total']) for one in values['checks']),
                values['scale'],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} is not a latency table; `pinas latency` makes one ({error!r})') from error


@torch.no_grad()
def measure_table(
    supernet: SuperNet,
    device_name: str,
    batch: int = 1,
    size: Size | None = None,
    num_classes: int = 1000,
    precision: str = 'float32',
    channels_last: bool = True,
    checks: int = 20,
    min_seconds: float = 0.2,
    seed: int = 0,
    clock: str = 'wall',
    progress: Callable[[str], None] = lambda line: None,
) -> LatencyTable:
    """Measures a table on the supernet's device, in eval mode with random images.

    All entries and whole networks are measured in turn, several times, so that a device whose speed changes affects
    all of them.

    Args:
        supernet: The supernet; its weights do not matter.
        device_name: Name of the processor or the GPU, for the record.
        batch: See `Conditions`, as the next five.
        size: Default: the space's.
        num_classes: See there.
        precision: See there.
        channels_last: See there.
        clock: See there.
        checks: Random whole networks that are measured too, besides `FITS` for the scale; 0 for neither.
        min_seconds: Minimum time per entry.
        seed: Seed of images and networks.
        progress: Called with a line of text at a time.

    Raises:
        ValueError: The precision or the clock is unknown or does not fit, or a number is out of its range.
    """
    if batch < 1 or checks < 0 or num_classes < 1 or not min_seconds > 0:
        raise ValueError(
            'batch and num_classes must be at least 1, checks at least 0, min_seconds above 0; '
            f'got {batch}, {num_classes}, {checks}, {min_seconds}'
        )
    space, device, size = supernet.space, supernet.device, size or (supernet.space.input_size,) * 2
    machine = device_name, device.type, torch.get_num_threads(), torch.__version__
    conditions = Conditions(*machine, precision, batch, size, channels_last, num_classes, clock)
    training = supernet.training
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    to_memory_format(supernet, memory_format).eval()
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, supernet.in_chans, *size, generator=draw).to(device, memory_format=memory_format)
    head = nn.Linear(space.num_features, num_classes, device=device)
    count, rng = checks + FITS if checks else 0, np.random.default_rng(seed)
    archs = list(dict.fromkeys(space.sample(rng) for _ in range(100 * count)))[:count]  # different ones
    with autocast(device.type, half_type(precision)):
        found = _time_in_turn(_calls(supernet, head, images, archs), min_seconds, clock, progress)
    supernet.train(training)
    return _fitted(space, conditions, found, archs)


def _fitted(
    space: SearchSpace, conditions: Conditions, found: Mapping[Any, Interval], archs: Sequence[Arch]
) -> LatencyTable:
    """The table of what was timed (see `_calls`): the first `FITS` whole networks scale it, the others check it."""
    columns = range(len(space.candidates))
    rows = tuple(tuple(found.get((index, c)) for c in columns) for index in range(space.num_positions))
    table = LatencyTable(space, conditions, {name: found[name] for name in ('stem', 'head')}, rows)
    if not archs:
        return table
    table = replace(table, scale=median(found[arch].median / table.of(arch) for arch in archs[:FITS]))
    whole = [Check(space.format(arch), found[arch], table.of(arch)) for arch in archs[FITS:]]
    return replace(table, checks=tuple(whole))


def _calls(supernet: SuperNet, head: nn.Module, images: Tensor, archs: Sequence[Arch]) -> dict[Any, Callable[[], Any]]:
    """What is timed: 'stem', 'head', (position, candidate), and whole networks by their arch."""
    x = supernet.forward_stem(images)
    calls: dict[Any, Callable[[], Any]] = {'stem': partial(supernet.forward_stem, images)}
    for index, position in enumerate(supernet.blocks):
        choices = supernet.space.choices(index)
        calls |= {(index, choice): partial(position, x, choice) for choice in choices}
        x = position(x, choices[0])
    features = x
    calls['head'] = lambda: head(supernet.final_conv(features).mean((2, 3)))
    return calls | {arch: partial(_whole, supernet.path(arch), head, images) for arch in archs}


def _whole(path: Path, head: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = head(path(images).mean((2, 3)))
    return logits


def _time_in_turn(
    calls: Mapping[Any, Callable[[], Any]], min_seconds: float, clock: str, progress: Callable[[str], None]
) -> dict[Any, Interval]:
    """Median and quartiles over the blocks of calls of `torch.utils.benchmark`, which waits for the device."""
    from torch.utils.benchmark import Timer  # searches for compilers when it is imported

    own: dict[str, Any] = {} if clock == 'wall' else {'timer': time.process_time}
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for turn in range(TURNS):
        progress(f'turn {turn + 1} of {TURNS}')
        for key, call in calls.items():
            timer = Timer('call()', globals={'call': call}, num_threads=torch.get_num_threads(), **own)
            times[key] += timer.blocked_autorange(min_run_time=min_seconds / TURNS).times
    return {key: _interval(found) for key, found in times.items()}


def _interval(times: Sequence[float]) -> Interval:
    low, middle, high = np.percentile(times, [25, 50, 75]).tolist()
    return Interval(middle, low, high)
