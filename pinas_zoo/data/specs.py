"""Parts of a source, and the kinds of sources other than folders and lists (`open_source`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pinas_zoo.data.cifar import CIFAR10Source, CIFAR100Source
from pinas_zoo.data.pairs import PairSource
from pinas_zoo.data.small_sets import ArraySource, DigitsSource, FashionMNISTSource, part_slice
from pinas_zoo.data.sources import SOURCES, Reduction, Source
from pinas_zoo.data.timm_stream import TimmStream, open_timm


class SubsetSource(Source):
    """A part of a source, deterministic by seed.

    Args:
        source: The whole source.
        part: 'all', or one of the disjoint parts 'train' and 'holdout'.
        holdout: Size of the hold-out part: a count, or a fraction below 1 (a tenth by default).
        seed: Shuffles the whole first; None keeps its order (only for 'all', since the files of a
            folder are ordered by class).
        start, limit: Slice of the part.

    Raises:
        ValueError: An unknown part, a hold-out without a part, an empty result, or a stream.
    """

    def __init__(
        self,
        source: Source,
        part: str = 'all',
        holdout: float | None = None,
        seed: int | None = 0,
        start: int = 0,
        limit: int | None = None,
    ) -> None:
        if isinstance(source, TimmStream):
            raise ValueError(f'{source.name(0)}: a stream has no parts; leave out part, seed, start and limit')
        if part == 'all' and holdout is not None:
            raise ValueError(f"holdout={holdout} has no effect on all images: add part='train' or part='holdout'")
        holdout = 0.1 if holdout is None else holdout
        count = int(holdout * len(source)) if holdout < 1 else int(holdout)
        parts = {'all': slice(None), 'holdout': slice(count), 'train': slice(count, None)}
        if part not in parts or (part != 'all' and (seed is None or not 0 < count < len(source))):
            raise ValueError(
                f'part={part!r}, holdout={holdout!r}, seed={seed!r} of {len(source)} images; '
                'allowed parts: all, train, holdout; the last two need a seed and a hold-out of '
                f'1 to {len(source) - 1} images (or a fraction)'
            )
        order = np.arange(len(source)) if seed is None else np.random.default_rng(seed).permutation(len(source))
        order = order[parts[part]]
        self.indices = order[part_slice(len(order), start, limit, f'part {part!r}')]
        self.source, self.labels, self.classes = source, source.labels[self.indices], source.classes
        self.mean, self.std, self.notes = source.mean, source.std, source.notes
        chosen = {'part': part, 'seed': seed, 'images': len(self), 'part_start': start}
        self.description = {**source.description, **chosen}

    def load(self, index: int) -> Tensor:
        return self.source.load(int(self.indices[index]))

    def load_reduced(self, index: int, reduction: Reduction) -> tuple[Tensor, float]:
        return self.source.load_reduced(int(self.indices[index]), reduction)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def tensors(self) -> tuple[Tensor, Tensor]:
        if not isinstance(self.source, ArraySource):
            return super().tensors()
        images = self.source.images[torch.from_numpy(self.indices)]
        return self.source.planes(images), torch.from_numpy(self.labels)


SOURCES |= {
    'fashion-mnist': (FashionMNISTSource, ('split', 'root', 'download')),
    'cifar10': (CIFAR10Source, ('split', 'root', 'download')),
    'cifar100': (CIFAR100Source, ('split', 'root', 'download')),
    'timm': (open_timm, ('name', 'root', 'split', 'class_map', 'input_key', 'target_key', 'num_samples')),
    'digits': (DigitsSource, ('split', 'size')),
    'pairs': (PairSource, ('split', 'pairs', 'item', 'items_start', 'items_limit', 'pair_seed', 'root', 'download')),
}
