"""The study: every contestant with every seed, one line of scores.jsonl each.

A line is written as soon as its supernet is done, so an interrupted study continues with the first missing one.
Every path of the truth is scored, in both halves; the report keeps the halves apart.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pinas_zoo import __version__
from pinas_zoo.files import append_lines, read_lines, write_atomic
from pinas_zoo.methods import ArchitectureMethod, Method
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.ranking.contestants import (
    CONTESTANTS,
    Contestant,
    build_method,
    constants_of,
    linear_units,
    training_units,
)
from pinas_zoo.ranking.observe import Observer
from pinas_zoo.ranking.pictures import Task
from pinas_zoo.ranking.recipe import SupernetRecipe, short_hash
from pinas_zoo.ranking.train import (
    cosine,
    halved_batches,
    labelled_batches,
    linear,
    native_scores,
    optimise,
    score_method,
    view_batches,
)
from pinas_zoo.space import Arch, SearchSpace

__all__ = ['Job', 'is_result_of', 'missing_jobs', 'run', 'train_contestant']


@dataclass(frozen=True)
class Job:
    """One supernet to train.

    Args:
        contestant: A key of `CONTESTANTS`.
        seed: Its seed, from 0.
        space: The space of the truth.
        task: The images of the truth.
        recipe: How it is trained and scored.
        archs: Paths to score: those of the truth in their order, tuning and reporting alternating.

    Raises:
        ValueError: The contestant is unknown or the seed negative.
    """

    contestant: str
    seed: int
    space: SearchSpace
    task: Task
    recipe: SupernetRecipe = field(default_factory=SupernetRecipe)
    archs: tuple[Arch, ...] = ()

    def __post_init__(self) -> None:
        if self.contestant not in CONTESTANTS or self.seed < 0:
            raise ValueError(
                f'allowed: contestants {", ".join(CONTESTANTS)}, seeds from 0; got {self.contestant!r}, {self.seed}'
            )


def is_result_of(job: Job, row: dict[str, Any]) -> bool:
    """Whether a line of scores.jsonl is the result of this job."""
    same = (row['contestant'], row['seed'], row['recipe']) == (job.contestant, job.seed, job.recipe.id)
    same = same and constants_of(row) == CONTESTANTS[job.contestant].constants
    same = same and SearchSpace.from_dict(row['space']) == job.space and row['task'] == asdict(job.task)
    return same and {job.space.format(arch) for arch in job.archs} <= set(row['scores'])


def missing_jobs(file: str | Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that have no line yet."""
    rows = read_lines(file)
    return [job for job in jobs if not any(is_result_of(job, row) for row in rows)]


def run(
    file: str | Path,
    jobs: Sequence[Job],
    workers: int = 1,
    threads: int = 1,
    device: str = 'cpu',
    progress: Callable[[int, int, dict[str, Any]], None] = lambda done, total, row: None,
    keep: Path | None = None,
) -> None:
    """Trains what is missing, each supernet in its own process, so that its peak memory can be measured.

    Args:
        file: scores.jsonl; a line is on disk before the next supernet is awaited.
        jobs: The jobs that it should contain.
        workers: Number of supernets trained at a time.
        threads: Threads of each.
        device: Device that trains and scores them; every line records it.
        progress: Called after each line with the lines done now, the lines to do now, and the line.
        keep: Folder that keeps trained supernets until they are scored, so that a run that is stopped while it scores
            does not train again.

    Raises:
        ValueError: workers or threads are below 1.
    """
    if workers < 1 or threads < 1:
        raise ValueError(f'workers and threads must be at least 1, got {workers} and {threads}')
    jobs = missing_jobs(file, jobs)
    if not jobs:
        return
    context = multiprocessing.get_context('spawn')  # a fork of a process whose torch has threads may hang
    with context.Pool(workers, torch.set_num_threads, (threads,), maxtasksperchild=1) as pool:
        for done, row in enumerate(
            pool.imap_unordered(partial(train_contestant, device=device, keep=keep), jobs), start=1
        ):
            append_lines(file, [row])
            progress(done, len(jobs), row)


def train_contestant(job: Job, device: str = 'cpu', keep: Path | None = None) -> dict[str, Any]:
    """Trains one supernet on a device and scores all paths.

    The seed determines the weights, the batches, the paths of the training and the linear stage. Paths of the tuning
    half are also scored during the training, see `SupernetRecipe.checkpoints`.

    Returns:
        Plain values for a line of scores.jsonl.
    """
    contestant, recipe, task = CONTESTANTS[job.contestant], job.recipe, job.task
    file = None if keep is None else keep / f'{job.contestant}-{job.seed}-{short_hash(_conditions(job, device))}.pt'
    # The truth uses small seeds; a supernet with the same seed would see the same batches again.
    seed = 1000 * job.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SuperNet(job.space, in_chans=task.in_chans, zero_init_last=recipe.zero_init_last)
        method = build_method(contestant, recipe, net, task.num_classes, seed)
    assert isinstance(method, nn.Module)  # as every method is
    to_memory_format(method.to(device), torch.channels_last).train()
    if file is not None and file.is_file():
        kept = torch.load(file, weights_only=True)
        method.load_state_dict(kept['method'])
        facts = kept['facts']
    else:
        facts = _train(job, method, seed)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            content = {'method': method.state_dict(), 'facts': facts}
            write_atomic(file, lambda temporary: torch.save(content, temporary))
    trained = time.perf_counter()
    native = native_scores(method, job.archs)
    scores = score_method(method, task, recipe, job.archs, recipe.linear_steps, seed)
    facts['seconds']['linear_and_score'] = round(time.perf_counter() - trained, 1)
    if file is not None:
        file.unlink(missing_ok=True)
    return {
        **_conditions(job, device),
        **facts,
        'peak_memory_mb': _peak_memory_mb(device),
        'scores': scores,
        **({} if native is None else {'native': {name: round(value, 6) for name, value in native.items()}}),
        **_found(method, job.space, facts['steps'] - 1),
    }


def _train(job: Job, method: Method, seed: int) -> dict[str, Any]:
    """Trains a supernet in place; returns the facts of its training as plain values."""
    contestant, recipe, clock = CONTESTANTS[job.contestant], job.recipe, time.perf_counter()
    units = training_units(contestant, recipe)
    tuning = job.archs[::2][: recipe.checkpoint_paths]
    observer = Observer(method, units, job.task, recipe, tuning, seed)
    training = optimise(
        method,
        _batches(contestant, method, job.task, recipe, seed),
        units,
        before_step=observer.before_step,
        after_backward=observer.after_backward,
        warmup=recipe.warmup,
        bfloat16=recipe.bfloat16,
        **_rates(contestant, recipe),
    )
    losses = np.array_split(training.losses, min(len(training.losses), 50))
    seconds = {'train': time.perf_counter() - clock - observer.seconds, 'observe': observer.seconds}
    return {
        'steps': len(training.losses),
        'units': {'train': round(training.units, 2), 'linear': linear_units(contestant, recipe)},
        'seconds': {name: round(value, 1) for name, value in seconds.items()},
        'loss': [round(float(np.mean(part)), 4) for part in losses],
        'shifts': observer.shifts,
        'on_the_way': observer.scores,
    }


def _conditions(job: Job, device: str) -> dict[str, Any]:
    """What a training depends on, as plain values."""
    return {
        'contestant': job.contestant,
        'seed': job.seed,
        'constants': CONTESTANTS[job.contestant].constants,
        'recipe': job.recipe.id,
        'settings': asdict(job.recipe),
        'space': job.space.to_dict(),
        'task': asdict(job.task),
        'data': job.task.compose('train').data,
        'code': __version__,
        'torch': torch.__version__.split('+')[0],
        'threads': torch.get_num_threads(),
        **({} if device == 'cpu' else {'device': torch.cuda.get_device_name(device)}),
    }


def _peak_memory_mb(device: str) -> int:
    """Memory of this process on a CPU, of the device's allocator elsewhere."""
    if device != 'cpu':
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _batches(
    contestant: Contestant, method: Method, task: Task, recipe: SupernetRecipe, seed: int
) -> Iterator[dict[str, Any]]:
    if contestant.arch_optimiser:
        return halved_batches(task, recipe.batch, seed)
    if contestant.supervised:
        return labelled_batches(task, recipe.batch, seed, contestant.images)
    return view_batches(task, recipe, 2 * len(method.paths(0)), seed)


def _rates(contestant: Contestant, recipe: SupernetRecipe) -> dict[str, Any]:
    shared = dict(clip_value=contestant.clip_value, arch_optimiser=contestant.arch_optimiser)
    if contestant.supervised:
        lr = recipe.supervised_lr * contestant.lr_factor
        return dict(lr=lr, rate=linear, weight_decay=recipe.supervised_decay, **shared)
    return dict(lr=recipe.contrast_lr, rate=cosine, weight_decay=recipe.contrast_decay, **shared)


def _found(method: Method, space: SearchSpace, step: int) -> dict[str, Any]:
    """The architecture that the training itself selected, and the numbers that the method logs, if there are any."""
    out: dict[str, Any] = {}
    if isinstance(method, ArchitectureMethod):
        out['derived'] = space.format(method.derive())
    if scalars := method.log_scalars(step):
        out['at_the_end'] = {name: round(float(value), 6) for name, value in scalars.items()}
    return out
