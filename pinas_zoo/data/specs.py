"""Sources as configs write them: a plain dict with a kind, and the part of it that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinas_zoo.data.pairs import PairSource
from pinas_zoo.data.small_sets import DigitsSource, FashionMNISTSource
from pinas_zoo.data.sources import ArraySource, FolderSource, ListSource, Reduction, Source, part_slice


class SubsetSource(Source):
    """A part of a source, deterministic by seed.

    Args:
        source: whole.
        part: 'all', or one of the disjoint parts 'train' and 'holdout'.
        holdout: size of the hold-out part: a count, or a fraction below 1.
        seed: shuffles the whole first; None keeps its order (only for 'all', since the files of a
            folder are ordered by class).
        start, limit: slice of the part.

    Raises:
        ValueError: an unknown part, or an empty result.
    """

    def __init__(
        self,
        source: Source,
        part: str = 'all',
        holdout: float = 0.1,
        seed: int | None = 0,
        start: int = 0,
        limit: int | None = None,
    ) -> None:
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
        self.mean, self.std = source.mean, source.std
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
        return images[:, None].expand(-1, 3, -1, -1), torch.from_numpy(self.labels)


SOURCES: dict[str, tuple[type[Source], tuple[str, ...]]] = {
    'folder': (FolderSource, ('root',)),
    'list': (ListSource, ('root', 'list_file')),
    'fashion-mnist': (FashionMNISTSource, ('split', 'root', 'download')),
    'digits': (DigitsSource, ('split', 'size')),
    'pairs': (PairSource, ('split', 'pairs', 'item', 'items_start', 'items_limit', 'pair_seed', 'root', 'download')),
}
SUBSET_KEYS = ('part', 'holdout', 'seed', 'start', 'limit')


def open_source(spec: Mapping[str, Any] | Source) -> Source:
    """Build a source from a config's plain dict.

    Args:
        spec: `kind` with that kind's settings, and optionally `part`, `holdout`, `seed`, `start`,
            `limit` (see SubsetSource). A ready source is returned as it is.

    Raises:
        ValueError: an unknown kind or setting.

    Example:
        >>> len(open_source({'kind': 'digits', 'split': 'train', 'limit': 100}))
        100
    """
    if isinstance(spec, Source):
        return spec
    kind = spec.get('kind') if isinstance(spec, Mapping) else spec
    if not isinstance(spec, Mapping) or kind not in SOURCES:
        raise ValueError(f'source {kind!r} is unknown; give a dict whose kind is allowed: {", ".join(SOURCES)}')
    cls, keys = SOURCES[kind]
    if unknown := set(spec) - {'kind', *keys, *SUBSET_KEYS}:
        raise ValueError(f'source {kind!r} has no {sorted(unknown)}; allowed: {", ".join((*keys, *SUBSET_KEYS))}')
    optional = {'download', 'size', 'item', 'items_start', 'items_limit', 'pair_seed'}
    optional |= {'root'} if kind in ('fashion-mnist', 'pairs') else set()
    if missing := set(keys) - optional - set(spec):
        raise ValueError(f'source {kind!r} needs {sorted(missing)}; came: {dict(spec)}')
    source = cls(**{k: spec[k] for k in keys if k in spec})
    subset = {k: spec[k] for k in SUBSET_KEYS if k in spec}
    if isinstance(source, FashionMNISTSource):
        counts = ('start', 'limit', 'holdout')  # of the real set; a hold-out below 1 is a fraction
        subset |= {k: source.shrink(subset[k]) for k in counts if (subset.get(k) or 0) >= 1}
    if not subset:
        return source
    # Without a part and a seed the order stays: start and limit count along the files.
    return SubsetSource(source, **{'seed': 0 if 'part' in subset else None, **subset})
