"""Data that are functions of (seed, draw number), and workers that do not outlive their process.

The sampler computes where iteration k begins, and the data set wrapper seeds every sample by
itself. Batches therefore do not depend on the number of workers, on their persistence, or on how
often a run was stopped.
"""

import ctypes
import itertools
import math
import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.dist import broadcast_object_list, get_dist_info
from torch.utils.data import BatchSampler, Dataset, Sampler

from pinas_zoo.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS

Draw = tuple[int, int]


@DATA_SAMPLERS.register_module()
class StatelessSampler(Sampler):
    """Endless (index, draw number) pairs from any start, every `world_size`-th for this rank.

    Draw d of the endless sequence is member d % size of the permutation of epoch d // size, which
    follows from (seed, epoch) alone.

    Args:
        dataset: Anything with a length.
        shuffle: Permute each epoch; else the order of the data set.
        seed: Equal on all ranks.

    Raises:
        ValueError: Without a seed, or with an empty data set.
    """

    def __init__(self, dataset: Any, shuffle: bool = True, seed: int | None = None) -> None:
        if seed is None:
            raise ValueError(
                'StatelessSampler got seed=None: every rank and every continued run needs the '
                'same int; set randomness.seed, or sampler.seed with diff_rank_seed'
            )
        if len(dataset) == 0:
            raise ValueError(f'the data set {type(dataset).__name__} is empty')
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = int(seed)
        self.rank, self.world_size = get_dist_info()
        self.start = 0  # samples of this rank that were drawn before

    def __iter__(self) -> Iterator[Draw]:
        size, order, current = len(self.dataset), None, -1
        for number in itertools.count(self.start):
            draw = number * self.world_size + self.rank
            epoch, position = divmod(draw, size)
            if epoch != current:
                order, current = self._permutation(epoch, size), epoch
            yield (int(order[position]), draw)

    def __len__(self) -> int:
        """Samples of one epoch on one rank; the iterator itself has no end."""
        return math.ceil(len(self.dataset) / self.world_size)

    def _permutation(self, epoch: int, size: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(size)
        return np.random.default_rng([self.seed, epoch]).permutation(size)


@DATA_SAMPLERS.register_module()
class SkippingBatchSampler(Sampler):
    """A batch sampler of mmdet, mmseg or torch that can start at batch k.

    One that groups images (mmdet's AspectRatioBatchSampler) keeps partly filled groups, so batch k
    follows from all before it. They are replayed as indices; no image is read.

    Args:
        sampler: Yields draws or indices.
        batch_size: Samples a batch.
        drop_last: Leave out a partial batch of a finite sampler.
        batch_sampler: Config of the wrapped batch sampler; None is torch's.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        drop_last: bool = False,
        batch_sampler: dict | None = None,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._inner_cfg = batch_sampler
        self.start = 0  # batches of this rank that were drawn before

    def __iter__(self) -> Iterator[list]:
        return itertools.islice(self._endless(), self.start, None)

    def __len__(self) -> int:
        rounded = math.floor if self.drop_last else math.ceil
        return max(1, rounded(len(self.sampler) / self.batch_size))

    def _endless(self) -> Iterator[list]:
        for epoch in itertools.count():
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            yield from self._build()

    def _build(self) -> Any:
        """A fresh batch sampler: the groups of a used one may hold leftovers."""
        if self._inner_cfg is None:
            return BatchSampler(self.sampler, self.batch_size, self.drop_last)
        default = {'sampler': self.sampler, 'batch_size': self.batch_size}
        return DATA_SAMPLERS.build(dict(self._inner_cfg), default_args=default)


@contextmanager
def _kept_states() -> Iterator[None]:
    """One thread; the states of random, numpy and torch and the threads are put back after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads()
    # Workers have one thread; sums over a large image change bits with the number of threads.
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(seed: int, draw: int) -> None:
    """Seed random, numpy and torch from (seed, draw)."""
    words = np.random.SeedSequence([seed, draw]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # Not torch.manual_seed, which would seed the CUDA devices too.
    torch.default_generator.manual_seed(int(words[2]))


def run_seed(seed: int | None) -> int:
    """The seed that was set for this run, equal on all ranks; `seed` itself where it is given."""
    if seed is not None:
        return int(seed)
    seeds = [torch.initial_seed() % 2**32]
    broadcast_object_list(seeds)
    return seeds[0]


class DatasetWrapper(Dataset):
    """Forwards what it is not asked for itself to the data set inside, both ways.

    Hooks and batch samplers of mmdet and mmseg do not notice it.

    Args:
        dataset: A data set or its config, built in the default scope.
    """

    #: Attributes of the wrapper; subclasses add theirs.
    OWN: ClassVar[frozenset[str]] = frozenset({'dataset'})

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name in self.OWN or name.startswith('__'):  # not there yet: unpickling, copying
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.OWN:
            super().__setattr__(name, value)
        else:  # mmdet's PipelineSwitchHook assigns `dataset.pipeline`
            setattr(self.dataset, name, value)


@DATASETS.register_module()
class SeededDataset(DatasetWrapper):
    """Makes a data set's samples functions of (seed, draw number).

    Where batch samplers of mmdet and mmseg pass on what the sampler gave them (get_data_info, get_cat_ids,
    get_dataset_source), the draw number is taken off. Plain indices give unseeded samples: they come from samplers
    other than StatelessSampler.

    Args:
        dataset: A data set or its config, built in the default scope.
        seed: Equal on all ranks; None takes the run's.
        max_refetch: Further draws for a sample that came out as None (mmdet and mmseg data sets
            replace theirs themselves, with numpy, which is seeded here too).
    """

    OWN = DatasetWrapper.OWN | {'seed', 'max_refetch'}

    def __init__(self, dataset: Any, seed: int | None = None, max_refetch: int = 15) -> None:
        super().__init__(dataset)
        self.seed = run_seed(seed)
        self.max_refetch = max_refetch

    def __getitem__(self, item: int | Draw) -> Any:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | Draw]) -> list:
        """The samples of a batch; torch's loader asks for them so, and the random states are kept once."""
        if not isinstance(items[0], tuple):
            return [self.dataset[item] for item in items]
        with _kept_states():
            return [self._draw(item) for item in items]

    def _draw(self, item: Draw) -> Any:
        index, draw = item
        _seed(self.seed, draw)
        for _ in range(self.max_refetch + 1):
            sample = self.dataset[index]
            if sample is not None:
                return sample
            index = np.random.randint(len(self.dataset))
        raise RuntimeError(
            f'{type(self.dataset).__name__} gave None for sample {item[0]} and for {self.max_refetch} replacements'
        )

    def get_data_info(self, item: int | Draw) -> Any:
        """What the wrapped data set knows about a sample without reading it."""
        return self.dataset.get_data_info(_index(item))

    def get_cat_ids(self, item: int | Draw) -> Any:
        """Category ids of a sample."""
        return self.dataset.get_cat_ids(_index(item))

    def get_dataset_source(self, item: int | Draw) -> Any:
        """Which data set of a concatenation a sample comes from."""
        return self.dataset.get_dataset_source(_index(item))


@FUNCTIONS.register_module()
def end_with_parent(worker_id: int, seed: int = 0) -> None:
    """Start a data worker that ends when its process is killed (Linux).

    torch's own watch may not see it: a worker that waits to hand over a batch then waits for ever.

    Args:
        worker_id: Of this worker.
        seed: As mmengine seeds its workers; only samples that are not seeded depend on it.
    """
    die_with_parent()
    workers = torch.utils.data.get_worker_info().num_workers
    worker_init_fn(worker_id, workers, rank=int(os.environ.get('RANK', '0')), seed=seed)


def die_with_parent() -> None:
    """Lets the kernel kill this process when the one that started it is gone, however that ended (Linux only)."""
    if sys.platform == 'linux':
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _index(item: int | Draw) -> int:
    return item[0] if isinstance(item, tuple) else item
