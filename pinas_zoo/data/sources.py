"""Image sources, their specs in configs, and the reader that skips broken images.

A *source* knows where the pixels are: `load`, `label`, `name`. Kinds: folders (`images`), lists (`image_list`), small
sets in memory (`small_sets`); parts of a source: `specs`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: From height and width in px to the factor by which the decoded image may be smaller.
Reduction = Callable[[int, int], float]


class BrokenImageError(ValueError):
    """An image cannot be read; the message names it."""


class BrokenRateError(ValueError):
    """Too many images cannot be read; the message gives the counts and the first files."""


class Source:
    """Images by index. Subclasses set the attributes and implement `load` and `name`.

    Attributes:
        classes: Class names, empty if the images have no labels.
        description: Which data and how many images; reports record it.
        notes: What was left out or looks odd, one line each.
        mean, std: Mean and standard deviation of the pixels in [0, 1]; one value (grey) or three.
    """

    classes: tuple[str, ...] = ()
    description: dict[str, Any]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    labels: np.ndarray
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Tensor:
        """Read one image.

        Shape: uint8 (3, H, W); a grey image is an expanded view of one plane.

        Raises:
            BrokenImageError: The image cannot be read.
        """
        raise NotImplementedError

    def load_reduced(self, index: int, reduction: Reduction) -> tuple[Tensor, float]:
        """Read one image, at a smaller size if its file can be decoded that way.

        Args:
            index: Index of the image.
            reduction: Called with the image's height and width; returns the factor by which it may be smaller.

        Returns:
            The image as from `load`, and the factor by which it is smaller; 1 for the full size.

        Raises:
            BrokenImageError: The image cannot be read.
        """
        image = self.load(index)
        reduction(*image.shape[-2:])
        return image, 1.0

    def label(self, index: int) -> int:
        """Class number, or -1 if there is none."""
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """File path, or e.g. 'fashion-mnist/train/123'."""
        raise NotImplementedError

    def look(self) -> list[str]:
        """Warnings, one line each, from a check of a few images.

        Raises:
            ValueError: None of them can be read.
        """
        return list(self.notes)

    def epoch_order(self, seed: int, epoch: int, world_size: int) -> Any:
        """The order in which an epoch is best read: a map from positions to indices; None for any order.

        Args:
            seed: Of the run.
            epoch: Number of the epoch.
            world_size: Number of ranks; position p is read by rank (p + const) % world_size.
        """
        return None

    def shrink(self, count: int) -> int:
        """A count or index of the requested set, converted to the set that is used instead; here unchanged."""
        return count

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images at once, for small sets: uint8 (N, 3, H, W) and long (N,)."""
        images = [self.load(i) for i in range(len(self))]
        if len({i.shape for i in images}) > 1:
            raise ValueError('the images differ in size: use load_tensor(source, size), which resizes them')
        return torch.stack(images), torch.as_tensor(self.labels, dtype=torch.long)


def few_names(names: Sequence[str], most: int = 5) -> str:
    """Names in brackets; of many, the first ones and the number of the others."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return f'({", ".join(names[:most])}{more})'


#: Kinds of sources and the settings of each, which are keyword arguments; those without a default are required.
#: `images`, `image_list`, `shards` and `specs` add theirs.
SOURCES: dict[str, tuple[Callable[..., Source], tuple[str, ...]]] = {}
MOST_CLASSES = 1_000_000  # labels are counted from 0, every number below the largest is one
SUBSET_KEYS = ('part', 'holdout', 'seed', 'start', 'limit')


def open_source(spec: Mapping[str, Any] | Source) -> Source:
    """Build a source from a config's plain dict.

    Args:
        spec: `kind` with that kind's settings, and optionally `part`, `holdout`, `seed`, `start`,
            `limit` (see SubsetSource). A source object is returned unchanged.

    Raises:
        ValueError: An unknown kind or setting.

    Examples:
        >>> len(open_source({'kind': 'digits', 'split': 'train', 'limit': 100}))
        100
    """
    if isinstance(spec, Source):
        return spec
    kind = spec.get('kind') if isinstance(spec, Mapping) else spec
    if not isinstance(spec, Mapping) or kind not in SOURCES:
        raise ValueError(f'source {kind!r} is unknown; give a dict whose kind is allowed: {", ".join(sorted(SOURCES))}')
    cls, keys = SOURCES[kind]
    if unknown := set(spec) - {'kind', *keys, *SUBSET_KEYS}:
        raise ValueError(
            f'source {kind!r} has no setting {sorted(unknown)}; allowed: {", ".join((*keys, *SUBSET_KEYS))}'
        )
    parameters = signature(cls).parameters
    required = {key for key in keys if key in parameters and parameters[key].default is Parameter.empty}
    if missing := required - set(spec):
        raise ValueError(f'source {kind!r} needs {sorted(missing)}, got {dict(spec)}')
    source = _open(cls, {k: spec[k] for k in keys if k in spec})
    subset = {k: spec[k] for k in SUBSET_KEYS if k in spec}
    if not subset:
        return source
    from pinas_zoo.data.specs import SubsetSource  # it imports this module

    counts = ('start', 'limit', 'holdout')  # a hold-out below 1 is a fraction
    subset |= {k: source.shrink(subset[k]) for k in counts if (subset.get(k) or 0) >= 1}
    # Without a part and a seed the order is unchanged: start and limit refer to the files.
    return SubsetSource(source, **{'seed': 0 if 'part' in subset else None, **subset})


#: For `opened_once`: sources with the requested classes, by kind and other settings.
_opened: dict[str, list[tuple[Any, Source]]] | None = None


@contextmanager
def opened_once() -> Iterator[None]:
    """Within this context equal specs open one source, so a folder is walked once for all parts of a run.

    A spec whose `classes` are those that the source finds by itself is equal to one without them.
    """
    global _opened
    outer, _opened = _opened, {} if _opened is None else _opened
    try:
        yield
    finally:
        _opened = outer


def _open(cls: Callable[..., Source], settings: dict[str, Any]) -> Source:
    if _opened is None:
        return cls(**settings)
    classes = settings.get('classes')
    key = repr((cls, sorted((name, value) for name, value in settings.items() if name != 'classes')))
    known = _opened.setdefault(key, [])
    for asked, source in known:
        if classes == asked or (classes and list(classes) == list(source.classes)):
            return source
    source = cls(**settings)
    known.append((classes, source))
    return source


UNLABELLED = ('FourViews', 'BatchedViews')  # data sets in configs that ignore labels


def find_views(
    node: Any, keys: Sequence[str] | None = None, path: str = ''
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every part of a config that reads images from a source.

    Args:
        node: The config, as dicts and lists.
        keys: Keys of the config to look at, in this order; None for all.
        path: Prefix of its keys.

    Yields:
        Its dotted key, its dict, and whether labels are needed.
    """
    if isinstance(node, dict):
        if isinstance(node.get('source'), dict) and 'kind' in node['source']:
            kind: Any = node.get('type', '')
            yield path, node, not getattr(kind, '__name__', kind).endswith(UNLABELLED)
        items = [(key, node.get(key)) for key in (node if keys is None else keys)]
    else:
        items = list(enumerate(node)) if isinstance(node, (list, tuple)) else []
    for key, child in items:
        yield from find_views(child, path=f'{path}.{key}' if path else str(key))


class ImageReader:
    """Reads images of a source and skips broken ones.

    The replacement depends only on (index, attempt): a resumed run and any number of workers
    choose the same one.

    Args:
        source: The images.
        broken_rate_limit: Largest tolerated share of failed reads, in [0, 1]; below 100
            reads it is a share of 100.
    """

    BASE: ClassVar[int] = 100
    # Two primes: at least one does not divide the length of any set below 60 million images.
    STRIDES: ClassVar[tuple[int, int]] = (7919, 7907)

    def __init__(self, source: Source, broken_rate_limit: float = 0.01) -> None:
        if not 0 <= broken_rate_limit <= 1:
            raise ValueError(f'broken_rate_limit={broken_rate_limit!r}; allowed: 0 to 1')
        self.source, self.broken_rate_limit = source, broken_rate_limit
        self.reads, self.failures = 0, 0
        self.broken: dict[str, str] = {}

    def read(self, index: int, load: Callable[[int], Any] | None = None) -> tuple[Any, int, int]:
        """Image, the index that was actually read, and the number of broken images that were skipped.

        Args:
            index: Which image.
            load: Function that reads one; None uses the source's `load`.

        Raises:
            BrokenRateError: More than the tolerated share is broken.
        """
        length = len(self.source)
        stride = self.STRIDES[0] if length % self.STRIDES[0] else self.STRIDES[1]
        for attempt in range(length):
            actual = (index + attempt * stride) % length
            self.reads += 1
            try:
                return (load or self.source.load)(actual), actual, attempt
            except BrokenImageError as error:
                self._count(self.source.name(actual), str(error))
        raise BrokenRateError(f'none of {length} images can be read; first: {list(self.broken)[:3]}')

    def sample(self, index: int, load: Callable[[int], Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Image and its sample fields: index as requested, name and label as read, number of skipped images.

        Args:
            index: Index of the image.
            load: See `read`.

        Raises:
            BrokenRateError: More than the tolerated share is broken.
        """
        image, actual, broken = self.read(index, load)
        name, label = self.source.name(actual), self.source.label(actual)
        return image, {'index': index, 'name': name, 'label': label, 'broken': broken}

    def _count(self, name: str, message: str) -> None:
        self.failures += 1
        if name not in self.broken:
            self.broken[name] = message
            logger.warning('broken image no. %d, replaced by another one: %s', len(self.broken), message)
        if self.failures > self.broken_rate_limit * max(self.reads, self.BASE):
            raise BrokenRateError(
                f'{self.failures} of {self.reads} reads failed ({len(self.broken)} files), more '
                f'than broken_rate_limit={self.broken_rate_limit}; repair or remove the files. '
                f'First: {list(self.broken)[:5]}'
            )
