"""Batch samplers of mmdet and mmseg that start at any batch, and workers that do not outlive their process."""

import ctypes
import itertools
import math
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dataset import worker_init_fn
from torch.utils.data import BatchSampler, Sampler

from pinas_zoo.registry import DATA_SAMPLERS, FUNCTIONS


@DATA_SAMPLERS.register_module()
class SkippingBatchSampler(Sampler[list[Any]]):
    """A batch sampler of mmdet, mmseg or torch that can start at batch k.

    A sampler that groups images (mmdet's AspectRatioBatchSampler) keeps partly filled groups, so batch k
    depends on all before it. They are replayed as indices; no image is read.

    Args:
        sampler: Yields draws or indices.
        batch_size: Samples per batch.
        drop_last: Leave out a partial batch of a finite sampler.
        batch_sampler: Config of the wrapped batch sampler; None is torch's.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        drop_last: bool = False,
        batch_sampler: dict[str, Any] | None = None,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._inner_cfg = batch_sampler
        self.start = 0  # batches of this rank that were drawn before

    def __iter__(self) -> Iterator[list[Any]]:
        return itertools.islice(self._endless(), self.start, None)

    def __len__(self) -> int:
        rounded = math.floor if self.drop_last else math.ceil
        return max(1, rounded(len(self.sampler) / self.batch_size))

    def _endless(self) -> Iterator[list[Any]]:
        for epoch in itertools.count():
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            yield from self._build()

    def _build(self) -> Any:
        """A new batch sampler: the groups of a used one may contain leftovers."""
        if self._inner_cfg is None:
            return BatchSampler(self.sampler, self.batch_size, self.drop_last)
        default = {'sampler': self.sampler, 'batch_size': self.batch_size}
        return DATA_SAMPLERS.build(dict(self._inner_cfg), default_args=default)


@FUNCTIONS.register_module()
def end_with_parent(worker_id: int, seed: int = 0) -> None:
    """Start a data worker that ends when its process is killed (Linux).

    torch's own watch may miss it: a worker that is about to pass on a batch would then wait forever.

    Args:
        worker_id: Index of this worker.
        seed: As mmengine seeds its workers; only samples that are not seeded depend on it.
    """
    die_with_parent()
    info = torch.utils.data.get_worker_info()
    assert info is not None  # torch calls this in a worker
    worker_init_fn(worker_id, info.num_workers, rank=int(os.environ.get('RANK', '0')), seed=seed)


def die_with_parent() -> None:
    """Lets the kernel kill this process when its parent is gone, however that ended (Linux only)."""
    if sys.platform == 'linux':
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
