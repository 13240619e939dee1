"""Several trainings of a shortlist at a time, each in one process or a group of processes, on separate GPUs."""

import multiprocessing
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pinas_zoo.mm.engine.sampling import die_with_parent

__all__ = ['train_side_by_side']


def train_side_by_side(
    train: Callable[[Path, str], None], plan: Path, archs: Sequence[str], workers: int, processes: int
) -> Iterator[str]:
    """Trains each architecture of a plan; yields their names as they are done.

    Args:
        train: Trains one, as a function that can be pickled; its module, run as a program, has the same arguments.
        plan: File of the plan, in the folder of all results.
        archs: What is trained.
        workers: Trainings at a time.
        processes: Processes of each.

    Raises:
        ValueError: They need more GPUs than there are.
        RuntimeError: A group of processes ended with an error.
    """
    slots: Any = queue.Queue() if processes > 1 else multiprocessing.get_context('spawn').Queue()
    for devices in _devices(workers, processes):
        slots.put(devices)
    with _executor(workers, processes, slots) as pool:
        task = partial(_in_processes, train.__module__, slots, processes) if processes > 1 else train
        futures = {pool.submit(task, plan, arch): arch for arch in archs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _devices(workers: int, processes: int) -> list[str | None]:
    """The GPUs that each worker may see; None on a machine without."""
    available = torch.cuda.device_count()
    if not available:
        return [None] * workers
    if workers * processes > available:
        raise ValueError(
            f'{workers} trainings side by side with {processes} processes each need {workers * processes} GPUs, '
            f'{available} are available'
        )
    names = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
    names = names if len(names) == available and all(names) else [str(index) for index in range(available)]
    return [','.join(names[worker * processes : (worker + 1) * processes]) for worker in range(workers)]


def _executor(workers: int, processes: int, slots: Any) -> Executor:
    """Processes that each train one network after the other, or threads that each wait for a group of processes."""
    if processes > 1:
        return ThreadPoolExecutor(workers)
    context = multiprocessing.get_context('spawn')
    return ProcessPoolExecutor(workers, context, _begin_worker, (slots, workers))


def _begin_worker(slots: Any, workers: int) -> None:
    die_with_parent()
    if (devices := slots.get()) is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = devices
    elif workers > 1:
        # Cores are divided among trainings, not among the threads of one: networks of a shortlist are small or many.
        os.environ['OMP_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = '1'


def _in_processes(module: str, slots: Any, processes: int, plan: Path, arch: str) -> None:
    devices = slots.get()
    environment = dict(os.environ) if devices is None else dict(os.environ, CUDA_VISIBLE_DEVICES=devices)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    log = plan.parent / f'{arch}.log'
    try:
        with open(log, 'a') as file:
            subprocess.run(
                [*command, '-m', module, str(plan), arch],
                env=environment, stdout=file, stderr=subprocess.STDOUT, check=True,
            )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f'the training of {arch} ended with {error.returncode}; its output is in {log}') from None
    finally:
        slots.put(devices)
