"""The ground truth: paths of the ranking space trained stand-alone, and the table that records them.

The table is a `SearchLog`: a header with everything that the results depend on, then one line per training. Line number
``path * seeds + seed`` is always the same training, so an interrupted table can be continued, and a longer one begins
with the shorter one's lines. Paths with an even number are for tuning, those with an odd one for reporting.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pinas_zoo import __version__
from pinas_zoo.models.cost import CostTable
from pinas_zoo.ranking.pictures import Task
from pinas_zoo.ranking.spaces import RANK_SPACE
from pinas_zoo.ranking.standalone import Recipe, Result, train_path
from pinas_zoo.ranking.task import PairTask
from pinas_zoo.search.log import SearchLog, SearchRecord
from pinas_zoo.space import Arch, SearchSpace

__all__ = ['HALVES', 'Check', 'Study', 'Truth', 'TruthRow', 'draw_paths', 'extend', 'read_truth', 'verify']

#: A path's half is ``HALVES[number % 2]``; the order of the paths is random, so the halves are too.
HALVES = ('tuning', 'reporting')
#: Keys of the header that may change when a table is extended; the recorded ones stay.
VERSIONS = ('code', 'torch')


@dataclass(frozen=True)
class Study:
    """Everything that the table depends on, besides code and torch.

    Args:
        space: The space.
        task: The images.
        recipe: The training.
        seeds: Trainings per path.
        draw: Seed with which the paths are drawn.
    """

    space: SearchSpace = RANK_SPACE
    task: Task = field(default_factory=PairTask)
    recipe: Recipe = field(default_factory=Recipe)
    seeds: int = 2
    draw: int = 2021

    def header(self) -> dict[str, Any]:
        """The header of the table's file."""
        test = self.task.compose('test')
        return {
            'kind': 'ground truth',
            'space': self.space.to_dict(),
            'task': asdict(self.task),
            'recipe': asdict(self.recipe),
            'seeds': self.seeds,
            'draw': self.draw,
            'halves': f'{HALVES[0]}: paths 0, 2, 4, ...; {HALVES[1]}: paths 1, 3, 5, ...',
            'line': f'index = path * {self.seeds} + seed; score is top-1 in percent on {len(test)} test images',
            'data': test.data,
            'code': __version__,
            'torch': torch.__version__.split('+')[0],
        }


def draw_paths(study: Study, count: int) -> list[Arch]:
    """The first paths of the study: uniform over the distinct networks, isomorphic ones counted once.

    An arch whose canonical form was already drawn is skipped, and so is one that is not canonical: every network then
    has the same chance.

    Raises:
        ValueError: The space has fewer distinct networks, or count is not positive.
    """
    if count < 1:
        raise ValueError(f'count must be at least 1, got {count}')
    rng, space = np.random.default_rng(study.draw), study.space
    drawn: dict[Arch, None] = {}
    for _ in range(1000 * count):
        arch = space.sample(rng)
        if arch == space.canonical(arch):
            drawn.setdefault(arch)
        if len(drawn) == count:
            return list(drawn)
    raise ValueError(f'{space.name} gave {len(drawn)} distinct networks in {1000 * count} draws, needed {count}')


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TruthRow:
    """One path of the table.

    Args:
        path: Number of the path in the draw; its half is ``HALVES[path % 2]``.
        arch: The architecture.
        top1: Test accuracy in percent, one per seed.
        loss: Test cross-entropy, one per seed; empty if it was not published.
        macs: Multiply-accumulates.
        params: Parameters.
        seconds: Processor time, one per seed.
    """

    path: int
    arch: Arch
    top1: tuple[float, ...]
    loss: tuple[float, ...]
    macs: int
    params: int
    seconds: tuple[float, ...]

    @property
    def half(self) -> str:
        """'tuning' or 'reporting'."""
        return HALVES[self.path % 2]


@dataclass(frozen=True)
class Truth:
    """A table that was read: its header, its study, and the paths that were trained with every seed."""

    header: dict[str, Any]
    study: Study
    rows: tuple[TruthRow, ...]

    def half(self, name: str) -> tuple[TruthRow, ...]:
        """The rows of one half, or of 'both'.

        Raises:
            ValueError: The half is unknown.
        """
        if name == 'both':
            return self.rows
        if name not in HALVES:
            raise ValueError(f'unknown half {name!r}, allowed: {", ".join(HALVES)}, both')
        return tuple(row for row in self.rows if row.half == name)


def read_truth(path: str | Path) -> Truth:
    """Reads a table; paths for which a seed is missing are left out.

    Raises:
        ValueError: The file is not a table of this kind, or it is damaged.
    """
    header, records = SearchLog.read(path)
    if header.get('kind') != 'ground truth':
        raise ValueError(f'{path} is not a table of the ground truth, its kind is {header.get("kind")!r}')
    study = Study(
        SearchSpace.from_dict(header['space']),
        PairTask(**header['task']),
        Recipe(**header['recipe']),
        header['seeds'],
        header['draw'],
    )
    rows = []
    for first in range(0, len(records) - study.seeds + 1, study.seeds):
        group = records[first : first + study.seeds]
        rows.append(
            TruthRow(
                first // study.seeds,
                study.space.parse(group[0].arch),
                tuple(record.score for record in group),
                tuple(_known(record.loss, path) for record in group),
                int(_known(group[0].macs, path)),
                int(_known(group[0].params, path)),
                tuple(_known(record.seconds, path) for record in group),
            )
        )
    return Truth(header, study, tuple(rows))


def extend(
    file: str | Path,
    study: Study,
    paths: int,
    workers: int = 1,
    device: str = 'cpu',
    progress: Callable[[int, int, SearchRecord], None] = lambda done, total, record: None,
) -> None:
    """Trains what a table with this many paths still lacks. One process writes; each training has one thread.

    Args:
        file: The table; created if it is missing.
        study: What the table depends on; must be equal to that of an existing file, except the versions of code and
            torch.
        paths: Number of paths that the table should have.
        workers: Number of training processes.
        device: Device of the trainings; all lines of a table are from the same kind of device.
        progress: Called after each line with the lines done now, the lines to do now, and the line.

    Raises:
        ValueError: The file belongs to another study, or an argument is out of range.
    """
    if workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    archs, header = draw_paths(study, paths), study.header()
    if device != 'cpu':
        header['device'] = torch.cuda.get_device_name(device)
    if Path(file).is_file() and Path(file).stat().st_size:
        header |= {key: SearchLog.read(file)[0].get(key) for key in VERSIONS}
    costs = CostTable(study.space, study.task.input_size, study.task.num_classes, study.task.in_chans)
    with SearchLog(file, header) as log:
        start, total = len(log), paths * study.seeds
        jobs = [(study, archs[i // study.seeds], i % study.seeds) for i in range(start, total)]
        for index, result in enumerate(_run(jobs, workers, device), start=start):
            arch = archs[index // study.seeds]
            cost = costs.of(arch)
            record = SearchRecord(
                index,
                study.space.format(arch),
                round(result.top1, 4),
                round(result.loss, 6),
                cost.macs,
                cost.params,
                round(result.seconds, 2),
            )
            log.append(record)
            progress(index - start + 1, total - start, record)


Job = tuple[Study, Arch, int]


def _run(jobs: Sequence[Job], workers: int, device: str) -> Iterator[Result]:
    """Results in the order of the jobs."""
    train = partial(_train, device=device)
    if workers == 1 or len(jobs) < 2:
        with _one_thread():
            yield from map(train, jobs)
        return
    # Spawned processes: forking a process whose torch has threads may hang.
    with multiprocessing.get_context('spawn').Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(train, jobs)


def _train(job: Job, device: str = 'cpu') -> Result:
    study, arch, seed = job
    return train_path(study.space, study.task, study.recipe, arch, seed, device)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Check:
    """A line of the table beside a repetition of the same training."""

    row: TruthRow
    seed: int
    result: Result
    spread: float

    @property
    def holds(self) -> bool:
        """Whether the accuracies differ by at most the spread."""
        return abs(self.result.top1 - self.row.top1[self.seed]) <= self.spread


def verify(truth: Truth, count: int, draw: int = 0) -> Iterator[Check]:
    """Repeats some recorded trainings; `Check.spread` is the largest difference between the seeds of any path.

    Args:
        truth: The table.
        count: Number of lines, each of a different path.
        draw: Seed of the choice.

    Raises:
        ValueError: The table has fewer paths.
    """
    if not 1 <= count <= len(truth.rows):
        raise ValueError(f'count must be in 1..{len(truth.rows)}, the number of paths of the table, got {count}')
    spread = max(max(row.top1) - min(row.top1) for row in truth.rows)
    rng = np.random.default_rng(draw)
    for number in rng.choice(len(truth.rows), count, replace=False):
        row, seed = truth.rows[number], int(rng.integers(truth.study.seeds))
        with _one_thread():
            yield Check(row, seed, _train((truth.study, row.arch, seed)), spread)


def _known(value: float | None, path: str | Path) -> float:
    if value is None:
        raise ValueError(f'{path} is damaged: it lacks the loss, the costs or the seconds of a path')
    return value
