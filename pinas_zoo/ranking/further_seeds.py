"""Further seeds of the truth: the reporting half trained alone again, so that its mean is less noisy.

A line of the table is one training. The transfer study begins with the same trainings (same seeds, same code): the
lines of those that it has recorded are copied, marked by 'from'.
"""

import dataclasses
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pinas_zoo import __version__
from pinas_zoo.files import append_lines, read_lines
from pinas_zoo.ranking.standalone import train_path
from pinas_zoo.ranking.transfer import DESIGNS
from pinas_zoo.ranking.truth import HALVES, Study, Truth
from pinas_zoo.space import Arch

__all__ = ['FURTHER', 'extend_seeds', 'with_further_seeds']

#: The seeds that are added to those of the truth.
FURTHER = (2, 3)

Job = tuple[int, Arch, int]


def extend_seeds(
    file: str | Path,
    truth: Truth,
    paths: int,
    workers: int = 1,
    transfer: str | Path | None = None,
    progress: Callable[[int, int, dict[str, Any]], None] = lambda done, total, line: None,
) -> None:
    """Trains what the table still lacks on the CPU, as the truth was, each training in one thread.

    Args:
        file: The table; created if it is missing.
        truth: The truth table; the first paths of its reporting half are trained.
        paths: Number of paths.
        workers: Number of training processes.
        transfer: The transfer table, whose trainings need not be repeated; None for none.
        progress: Called after each line with the lines done now, the lines to do now, and the line.

    Raises:
        ValueError: workers is below 1, or the truth has fewer paths.
    """
    rows, study = truth.half(HALVES[1]), truth.study
    if workers < 1 or not 1 <= paths <= len(rows):
        raise ValueError(f'allowed: workers >= 1, paths in 1..{len(rows)}; got {workers=}, {paths=}')
    done = {(line['path'], line['seed']) for line in read_lines(file)}
    jobs = [(row.path, row.arch, seed) for row in rows[:paths] for seed in FURTHER if (row.path, seed) not in done]
    known = {} if transfer is None else _known(transfer, study)
    copied = [known[number, seed] for number, _, seed in jobs if (number, seed) in known]
    append_lines(file, copied)
    jobs = [job for job in jobs if (job[0], job[2]) not in known]
    # Spawned processes: forking a process whose torch has threads may hang.
    with multiprocessing.get_context('spawn').Pool(workers, torch.set_num_threads, (1,)) as pool:
        for count, line in enumerate(pool.imap_unordered(partial(_train, study=study), jobs), start=1):
            append_lines(file, [line])
            progress(count, len(jobs), line)


def _train(job: Job, study: Study) -> dict[str, Any]:
    number, arch, seed = job
    result = train_path(study.space, study.task, study.recipe, arch, seed)
    more = {'seconds': round(result.seconds, 2), 'code': __version__, 'torch': torch.__version__.split('+')[0]}
    return _line(number, study.space.format(arch), seed, result.top1, result.loss, more)


def _line(path: int, arch: str, seed: int, top1: float, loss: float, more: dict[str, Any]) -> dict[str, Any]:
    return {'path': path, 'arch': arch, 'seed': seed, 'top1': round(top1, 4), 'loss': round(loss, 6), **more}


def _known(transfer: str | Path, study: Study) -> dict[tuple[int, int], dict[str, Any]]:
    """Lines for the trainings with which those of the transfer table began, on the same study and on the CPU."""
    alike = dataclasses.replace(study, seeds=2)
    designs = {design.id for design in DESIGNS.values() if dataclasses.replace(design.source, seeds=2) == alike}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for line in read_lines(transfer):
        if line['design'] in designs and line['seed'] in FURTHER and 'device' not in line:
            more = {'code': line['code'], 'torch': line['torch'], 'from': 'transfer'}
            place, results = (line['path'], line['arch'], line['seed']), (line['source_top1'], line['source_loss'])
            found.setdefault((line['path'], line['seed']), _line(*place, *results, more))
    return found


def with_further_seeds(truth: Truth, file: str | Path) -> Truth:
    """The truth with four seeds of the reporting half.

    As long as a training of that half is missing, the truth is returned as it is: all paths have the same noise.

    Raises:
        ValueError: A line names another architecture than the truth does.
    """
    found = {(line['path'], line['seed']): line for line in read_lines(file)}
    rows: list[Any] = []
    for row in truth.rows:
        lines: Sequence[dict[str, Any] | None] = [found.get((row.path, seed)) for seed in FURTHER]
        present = [line for line in lines if line is not None]
        if any(line['arch'] != truth.study.space.format(row.arch) for line in present):
            raise ValueError(f'{file} and the truth disagree on path {row.path}: {present[0]["arch"]}')
        if row.half != HALVES[1]:
            rows.append(row)
        elif len(present) < len(lines):
            return truth
        else:
            more = {key: tuple(line[key] for line in present) for key in ('top1', 'loss')}
            rows.append(dataclasses.replace(row, **{key: getattr(row, key) + more[key] for key in more}))
    return dataclasses.replace(truth, rows=tuple(rows))
