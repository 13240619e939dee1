"""A search shared by several jobs (a job array): each evaluates its share of the paths and reads the others' scores.

All jobs propose the same paths, since proposals follow from the settings and the scores. Path number i is evaluated by
job i % jobs, which writes its score to its own file; so no path is lost or evaluated twice, and the log that job 0
writes is that of a search by a single job. A job that was stopped continues; the number of jobs may change in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch.distributed as dist

from pinas_zoo.dist import rank_and_world
from pinas_zoo.files import file_lock
from pinas_zoo.search.evaluate import Evaluator, PathScore
from pinas_zoo.space import Arch

__all__ = ['JobEvaluator']

_logger = logging.getLogger('pinas_zoo')


class JobEvaluator:
    """Scores paths together with other jobs; a context manager that holds the lock of this job's file.

    Args:
        evaluate: Scores paths in this job; its cache has a file of this job alone. The files of all jobs match
            ``scores*.jsonl`` in one folder.
        job: Number of this job, from 0.
        jobs: Number of jobs.
        first: Number of the first path that will be asked for.
        poll: Seconds between two looks at the others' files.
        report: Seconds between two lines that say for which job this one waits.
    """

    def __init__(
        self, evaluate: Evaluator, job: int, jobs: int, first: int = 0, poll: float = 2.0, report: float = 60.0
    ) -> None:
        if evaluate.cache.path is None or not 0 <= job < jobs:
            raise ValueError(f'a shared search needs a file of scores and a job below {jobs}, got {job}')
        self.evaluate, self.job, self.jobs = evaluate, job, jobs
        self.next, self.poll, self.report = first, poll, report
        self.path: Path = evaluate.cache.path
        self._sizes: dict[Path, int] = {}
        self._held = ExitStack()

    def __enter__(self) -> JobEvaluator:
        if rank_and_world()[0] == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            waiting = f'job {self.job} of this search is already running: waiting for its end'
            self._held.enter_context(file_lock(self.path.with_suffix('.lock'), lambda: _logger.warning(waiting)))
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def __call__(self, archs: Sequence[Arch]) -> list[PathScore]:
        """Scores of the next paths, in their order; the same paths in the same order on every job and rank."""
        scores, numbered = self.evaluate.cache.scores, list(enumerate(archs, self.next))
        self.next += len(archs)
        self._read()
        mine = [arch for number, arch in numbered if number % self.jobs == self.job and arch not in scores]
        if mine:
            self.evaluate(mine)
        reported = time.monotonic()
        while missing := sorted({number % self.jobs for number, arch in numbered if arch not in scores}):
            if time.monotonic() - reported > self.report:
                reported = time.monotonic()
                _logger.warning('waiting for the scores of job %s of %d', ', '.join(map(str, missing)), self.jobs)
            time.sleep(self.poll)
            self._read()
        return [scores[arch] for arch in archs]

    def _read(self) -> None:
        """Takes what other jobs have written since; on all ranks of this job the same."""
        cache = self.evaluate.cache
        rank, ranks = rank_and_world()
        known = set(cache.scores)
        for path in sorted(self.path.parent.glob('scores*.jsonl')) if rank == 0 else ():
            size = path.stat().st_size
            if path != self.path and self._sizes.get(path) != size:
                self._sizes[path] = size
                cache.read(path)
        if ranks > 1:  # often, so that no rank waits for long: a collective has a time limit
            found = [[score for arch, score in cache.scores.items() if arch not in known]]
            dist.broadcast_object_list(found)
            cache.scores |= {score.arch: score for score in found[0]}
