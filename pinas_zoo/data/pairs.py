"""Two items of a small set side by side on one canvas, and the unordered pair as the class.

A harder task from the same pixels: nearly every path of a small space can tell single items apart, but not pairs.
Everything follows from the seed.
"""

from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.data.small_sets import SPLITS, ArraySource, FashionMNISTSource
from pinas_zoo.data.sources import Source

__all__ = ['PAIR_MEAN', 'PAIR_STD', 'PairSource', 'compose_pairs', 'pair_class', 'pair_names']

#: Mean and standard deviation of the canvases' pixels in [0, 1], rounded; constants, so that all nets see the same.
PAIR_MEAN, PAIR_STD = (0.28,), (0.33,)


def pair_class(first: Tensor, second: Tensor) -> Tensor:
    """Number of an unordered pair of classes: 0 for (0, 0), 1 for (0, 1), 2 for (1, 1), 3 for (0, 2) and so on."""
    high, low = torch.maximum(first, second), torch.minimum(first, second)
    return high * (high + 1) // 2 + low


def pair_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the pairs by their number."""
    pairs = combinations_with_replacement(range(len(classes)), 2)
    return tuple(f'{classes[low]} + {classes[high]}' for low, high in sorted(pairs, key=lambda pair: pair[::-1]))


def compose_pairs(source: Source, count: int, item: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws pairs of a small grey set and puts them side by side.

    Args:
        source: The items.
        count: Number of pairs.
        item: Side in px to which an item is resized.
        draw: Seed that determines which items are paired.

    Returns:
        uint8 (count, 1, item, 2 * item) and long (count,), see `pair_class`.
    """
    pixels, classes = source.tensors()
    items = F.interpolate(pixels[:, :1].float(), size=(item, item), mode='bilinear', antialias=True)
    first, second = torch.randint(len(items), (2, count), generator=draw)
    items = items.round().to(torch.uint8)
    return torch.cat([items[first], items[second]], dim=-1), pair_class(classes[first], classes[second])


class PairSource(ArraySource):
    """Pairs of Fashion-MNIST's items, or of its replacement (`resolve_fashion_mnist`).

    Args:
        split: 'train' or 'test': which items.
        items_start, items_limit: Part of the split's items, in order; disjoint parts share no item. The numbers
            refer to the real set and are scaled down with its replacement.
        pairs: Number of pairs.
        item: Side in px to which an item is resized; a canvas is (item, 2 * item).
        pair_seed: Determines which items are paired.
        root: Folder with the four gzip idx files.
        download: Whether a missing set may be downloaded.

    Raises:
        ValueError: A number is out of its range, or the given folder has other files with these names.
    """

    mean, std = PAIR_MEAN, PAIR_STD

    def __init__(
        self,
        split: str,
        pairs: int,
        item: int = 20,
        items_start: int = 0,
        items_limit: int | None = None,
        pair_seed: int = 0,
        root: str | None = None,
        download: bool | None = None,
    ) -> None:
        if min(pairs, item) < 1 or pair_seed < 0:
            raise ValueError(
                f'pairs and item must be at least 1, pair_seed at least 0; got {pairs}, {item}, {pair_seed}'
            )
        whole = FashionMNISTSource(split, items_limit, items_start, root, download)
        # Other splits and parts draw from other streams: equal seeds do not pair equal positions.
        stream = np.random.SeedSequence([pair_seed, SPLITS.index(split), items_start])
        draw = torch.Generator().manual_seed(int(stream.generate_state(1)[0]))
        images, labels = compose_pairs(whole, pairs, item, draw)
        prefix = f'{whole.info.name}/{split}/pairs'
        super().__init__(images[:, 0].numpy(), labels.numpy(), pair_names(whole.classes), prefix, 0, None)
        drawn: dict[str, Any] = {'pairs': pairs, 'item': item, 'pair_seed': pair_seed}
        self.description = whole.description | drawn | {'images': pairs, 'items': len(whole)}
