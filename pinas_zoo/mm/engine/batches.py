"""Which samples make a batch, and its way to the model: copied asynchronously, finished on the device, prefetched."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.model import BaseDataPreprocessor
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

from pinas_zoo.data import finish_images, finish_views
from pinas_zoo.data.sources import Source
from pinas_zoo.data.timm_stream import TimmStream
from pinas_zoo.mm.engine.batch_samplers import SkippingBatchSampler
from pinas_zoo.mm.engine.checkpoint_hook import unwrap
from pinas_zoo.registry import DATA_SAMPLERS, MODELS

__all__ = [
    'BatchPreprocessor',
    'Draw',
    'Prefetched',
    'StatelessSampler',
    'fill_batches',
    'preprocessor_config',
    'read_ahead',
    'start_batches',
]

logger = logging.getLogger(__name__)

#: (index of a sample, number of its draw).
Draw = tuple[int, int]
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


@DATA_SAMPLERS.register_module()
class StatelessSampler(Sampler[Draw]):
    """Endless (index, draw number) pairs from any start, every `world_size`-th for this rank.

    Draw d of the endless sequence is member d % size of the permutation of epoch d // size, which
    depends only on (seed, epoch). Where the images are in shards, their source gives the permutation
    (`ShardOrder`), which depends on the number of ranks too.

    Args:
        dataset: Anything with a length.
        shuffle: Permute each epoch; otherwise keep the order of the data set.
        seed: Equal on all ranks.

    Raises:
        ValueError: The seed is missing, or the data set is empty.
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
        size, current = len(self.dataset), -1
        order: Any = None
        for number in itertools.count(self.start):
            draw = number * self.world_size + self.rank
            epoch, position = divmod(draw, size)
            if epoch != current:
                order, current = self._order(epoch, size), epoch
            yield (int(order[position]), draw)

    def __len__(self) -> int:
        """Samples of one epoch on one rank; the iterator itself has no end."""
        return math.ceil(len(self.dataset) / self.world_size)

    def _order(self, epoch: int, size: int) -> Any:
        if not self.shuffle:
            return range(size)
        source = getattr(self.dataset, 'source', None)
        if isinstance(source, Source) and len(source) == size:  # a view may split its source
            order = source.epoch_order(self.seed, epoch, self.world_size)
            if order is not None:
                return order
        return np.random.default_rng([self.seed, epoch]).permutation(size)


def fill_batches(loader: DataLoader[Any]) -> bool:
    """Lets a data set that is smaller than a batch repeat within it. Returns whether that happens."""
    batches: Any = loader.batch_sampler
    sampler = getattr(batches, 'sampler', None)
    if not isinstance(sampler, StatelessSampler) or len(sampler) >= batches.batch_size:
        return False
    batches.drop_last = False  # the sampler has no end: batches are full, and an epoch is one of them
    return True


def start_batches(loader: DataLoader[Any], start: int) -> None:
    """Lets the next iterator of a loader begin with batch `start`.

    Raises:
        ValueError: Its samplers can only begin with the first one.
    """
    batches: Any = loader.batch_sampler
    sampler = getattr(batches, 'sampler', None)
    if isinstance(batches, SkippingBatchSampler):
        batches.start = start
    elif type(batches) is BatchSampler and isinstance(sampler, StatelessSampler):
        sampler.start = start * batches.batch_size
        source = getattr(sampler.dataset, 'source', None)
        if isinstance(source, TimmStream):
            _begin_stream(source, sampler, loader, start)
    else:
        raise ValueError(
            f'ExactIterLoop got the batch sampler {type(batches).__name__} over {type(sampler).__name__}; allowed '
            'are a StatelessSampler without a batch sampler, or any batch sampler in a SkippingBatchSampler'
        )


def _begin_stream(source: TimmStream, sampler: StatelessSampler, loader: DataLoader[Any], start: int) -> None:
    source.begin(sampler.seed, sampler.start)
    if not sampler.shuffle:
        raise ValueError(f'{source.name(0)}: a stream has no fixed order; set sampler.shuffle=True')
    if start % max(1, loader.num_workers):
        logger.warning(
            'iteration %d is not a multiple of %d workers: the stream %s continues near that place, so a few images of '
            'this epoch may be read twice or not at all',
            start,
            loader.num_workers,
            source.name(0),
        )


@MODELS.register_module()
class BatchPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the device and does the rest of its augmentation there (`finish=False`); others pass unchanged.

    Args:
        non_blocking: Copy asynchronously; only useful if the loader pins its memory.
        dtype: Type of the images: 'float32', 'bfloat16' or 'float16'.
        channels_last: Memory format of the images.

    Raises:
        ValueError: Another dtype was given.
    """

    def __init__(self, non_blocking: bool = True, dtype: str = 'float32', channels_last: bool = False) -> None:
        super().__init__(non_blocking)
        if dtype not in DTYPES:
            raise ValueError(f'BatchPreprocessor got dtype={dtype!r}, allowed: {", ".join(DTYPES)}')
        self.dtype, self.channels_last = DTYPES[dtype], channels_last

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        return self._finish(self.cast_data(data))

    def _finish(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        # A batch of HalvedView contains another one.
        inner = {k: self._finish(v) if isinstance(v, Mapping) else v for k, v in batch.items()}
        if 'statistics' in inner:
            inner = finish_images(inner, self.dtype, self.channels_last)
        return finish_views(inner, self.dtype, self.channels_last)


def preprocessor_config(given: dict[str, Any] | None, channels_last: bool) -> dict[str, Any]:
    """The config of a model's preprocessor: ours, if none or one without a type is given."""
    given = dict(given or {})
    if 'type' not in given:
        given = {'type': 'pinas_zoo.BatchPreprocessor', 'channels_last': channels_last, **given}
    return given


class Prefetched:
    """Batches, each copied and finished on a separate stream while the previous step runs.

    It prefetches one batch and draws no random numbers: the batches are those of the iterator, in its order.

    Args:
        batches: The loader's iterator.
        prepare: Moves and finishes a batch.
        device: Target device; without CUDA, batches are prefetched without a stream.
    """

    def __init__(self, batches: Iterator[Any], prepare: Callable[[Any], Any], device: torch.device) -> None:
        self.batches, self.prepare = batches, prepare
        self.stream = torch.cuda.Stream(device) if device.type == 'cuda' else None
        self._ahead: tuple[Any, Exception | None] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch, error = self._ahead or self._read()
        if error is not None:
            raise error
        if self.stream is not None:
            step = torch.cuda.current_stream(self.stream.device)
            step.wait_stream(self.stream)
            for tensor in _tensors(batch):
                tensor.record_stream(step)
        self._ahead = self._read()
        return batch

    def _read(self) -> tuple[Any, Exception | None]:
        """The next batch, or the error that reading it raised, which is due when that batch is requested."""
        try:
            with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
                return self.prepare(next(self.batches)), None
        except Exception as error:
            return None, error


def read_ahead(batches: Iterator[Any], model: torch.nn.Module) -> Iterator[Any]:
    """The iterator, with one batch prefetched if the model is on a GPU and its preprocessor is ours."""
    prepare = getattr(unwrap(model), 'data_preprocessor', None)
    if not isinstance(prepare, BatchPreprocessor) or prepare.device.type != 'cuda':
        return batches
    return Prefetched(batches, lambda data: prepare(data, training=True), prepare.device)


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _tensors(value)
