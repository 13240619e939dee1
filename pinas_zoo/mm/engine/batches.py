"""Batches on their way to the model: copied asynchronously, finished on the device, prefetched by one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from pinas_zoo.data import finish_images, finish_views
from pinas_zoo.mm.engine.checkpoint_hook import unwrap
from pinas_zoo.mm.engine.machine import LOADERS
from pinas_zoo.registry import MODELS, type_name

__all__ = ['BatchPreprocessor', 'Prefetched', 'finish_on_device', 'preprocessor_config', 'read_ahead']

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


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


def finish_on_device(cfg: Config, notes: list[str]) -> None:
    """With a GPU, workers return uint8 images in pinned memory, and the rest is done on the device.

    Settings of the config are kept: a data set's `finish`, a loader's `pin_memory`, a preprocessor of another type.
    """
    preprocessor = type_name((cfg.get('model') or {}).get('data_preprocessor') or {})
    if preprocessor not in ('', 'BatchPreprocessor'):
        return
    found = False
    for loader in filter(None, map(cfg.get, LOADERS)):
        dataset = loader['dataset']
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        if type_name(dataset) in ('FourViews', 'BatchedViews', 'SupervisedView', 'HalvedView'):
            dataset.setdefault('finish', False)
            loader.setdefault('pin_memory', True)
            found = True
    if found:
        notes.append('GPU: workers leave uint8 images; colours, blur and normalisation are done on the device')


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
        device: Target device; without CUDA there is no stream, and batches are still prefetched.
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
