"""Fixed batches of a source for BN re-estimation and the evaluation of paths, read many times."""

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from pinas_zoo.data.supervised import SupervisedView, finish_images

__all__ = ['FixedBatches']


class FixedBatches:
    """Fixed image batches in a fixed order, iterated any number of times.

    Args:
        view: Arguments of `SupervisedView` (source, size, ...), in evaluation geometry.
        batch_size: Images per batch.
        batches: Number of batches; None for the whole source.
        num_workers: Processes that decode; 0 decodes in this one.
        in_memory: Keep all images on the device; for sets that fit.
        keep_gib: Otherwise, GiB of decoded uint8 images that this process keeps in the host's memory after the
            first pass (50,000 of 224 px are 7); the rest is decoded again in every pass.
        device: Device of the batches.
        labelled: Return (images, labels) instead of images.
    """

    def __init__(
        self,
        view: dict[str, Any],
        batch_size: int,
        batches: int | None = None,
        num_workers: int = 0,
        in_memory: bool = False,
        keep_gib: float = 8.0,
        device: str = 'cpu',
        labelled: bool = False,
    ) -> None:
        self.dataset = SupervisedView(**view, train=False, finish=False, labelled=labelled)
        self.batch_size, self.batches, self.num_workers = batch_size, batches, num_workers
        self.device, self.labelled = device, labelled
        self.in_memory, self.room = in_memory, keep_gib * 2**30
        self.kept: list[dict[str, Tensor]] = []
        available = len(self.dataset) // batch_size
        if batches is not None and batches > available:
            raise ValueError(
                f'{batches} batches of {batch_size} images were requested, {view["source"]} has enough for {available}'
            )

    @property
    def name(self) -> str:
        """Identifies these images; part of the score cache's key."""
        facts = {'batch_size': self.batch_size, 'batches': self.batches, 'size': self.dataset.size}
        return json.dumps(self.dataset.source.description | facts, sort_keys=True)

    def __iter__(self) -> Iterator[Any]:
        kept = list(self.kept)
        for batch in kept:
            yield self._finish(batch)
        last = len(self.dataset) if self.batches is None else self.batches * self.batch_size
        rest = Subset(self.dataset, range(len(kept) * self.batch_size, last))
        if not len(rest):
            return
        pinned = torch.device(self.device).type == 'cuda'
        loader = DataLoader(rest, self.batch_size, num_workers=self.num_workers, pin_memory=pinned)
        for index, found in enumerate(loader, start=len(kept)):
            batch = {key: found[key] for key in ('image', 'statistics', 'label')}
            if index == len(self.kept):  # an aborted pass has kept its beginning
                self._keep(batch)
            yield self._finish(batch)

    def _keep(self, batch: dict[str, Tensor]) -> None:
        size = batch['image'].nbytes
        if self.in_memory:
            self.kept.append({key: tensor.to(self.device) for key, tensor in batch.items()})
        elif size <= self.room:
            # A worker's batch is in shared memory, of which there may be little.
            self.kept.append({key: tensor.clone() if tensor.is_shared() else tensor for key, tensor in batch.items()})
            self.room -= size

    def _finish(self, batch: dict[str, Tensor]) -> Any:
        """Network input, normalised on the device."""
        batch = finish_images({key: tensor.to(self.device, non_blocking=True) for key, tensor in batch.items()})
        return (batch['image'], batch['label']) if self.labelled else batch['image']
