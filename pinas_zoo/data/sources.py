"""Image sources: a folder, a list, and what configs write; the reader that steps over broken images.

A *source* knows where pixels live: `load`, `label`, `name`. Small sets in memory: `pinas_zoo.data.small_sets`; parts of
a source: `pinas_zoo.data.specs`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: From height and width in px to the factor by which a decoded image may be smaller.
Reduction = Callable[[int, int], float]
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


class BrokenImageError(ValueError):
    """One image cannot be read; the message names it."""


class BrokenRateError(RuntimeError):
    """Too many images cannot be read; the message gives the counts and the first files."""


class Source:
    """Images by index. Subclasses fill the attributes and implement `load` and `name`.

    Attributes:
        classes: class names, empty where the images carry no labels.
        description: which data and how many images; a report records it.
        mean, std: of the pixels in [0, 1]; one value (grey) or three.
    """

    classes: tuple[str, ...] = ()
    description: dict[str, Any]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Tensor:
        """Read one image.

        Shape: uint8 (3, H, W); a grey image is an expanded view of one plane.

        Raises:
            BrokenImageError: the image cannot be read.
        """
        raise NotImplementedError

    def load_reduced(self, index: int, reduction: Reduction) -> tuple[Tensor, float]:
        """Read one image, smaller than it is where its file allows to decode it so.

        Args:
            index: Which image.
            reduction: Asked with the image's height and width: by which factor it may be smaller, at most.

        Returns:
            The image as from `load`, and the factor by which it is smaller; 1 is the whole.

        Raises:
            BrokenImageError: the image cannot be read.
        """
        image = self.load(index)
        reduction(*image.shape[-2:])
        return image, 1.0

    def label(self, index: int) -> int:
        """Class number, or -1 where there is none."""
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """File path, or e.g. 'fashion-mnist/train/123'."""
        raise NotImplementedError

    def shrink(self, count: int) -> int:
        """A count or place of the set that was asked for, in the one that is used instead of it: here the same."""
        return count

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Everything at once, for small sets: uint8 (N, 3, H, W) and long (N,)."""
        images = [self.load(i) for i in range(len(self))]
        if len({i.shape for i in images}) > 1:
            raise ValueError('the images differ in size: use load_tensor(source, size), which resizes them')
        return torch.stack(images), torch.as_tensor(self.labels, dtype=torch.long)


class ListSource(Source):
    """Images named in a list, one 'path [label]' a line; label is a class number.

    Args:
        root: folder that the paths are relative to.
        list_file: text file; blank lines are skipped.

    Raises:
        ValueError: the list is missing or empty.
    """

    def __init__(self, root: str | Path, list_file: str | Path) -> None:
        if not Path(list_file).is_file():
            raise ValueError(f"image list {str(list_file)!r} is not a file; give one with 'path [label]' lines")
        lines = [x.strip() for x in Path(list_file).read_text(encoding='utf-8').splitlines()]
        pairs = [_split_line(x) for x in lines if x]
        self._fill(Path(root), [p for p, _ in pairs], [n for _, n in pairs], f'image list {list_file}')
        self.classes = tuple(str(i) for i in range(int(self.labels.max()) + 1))
        self.description = {'data': 'list', 'list': str(list_file), 'root': str(root), 'images': len(self)}

    def _fill(self, root: Path, paths: Sequence[str], labels: Sequence[int], where: str) -> None:
        if not paths:
            raise ValueError(f'{where} holds no image; suffixes searched for: {", ".join(SUFFIXES)}')
        self.root = root
        # One block of bytes: a million Python strings would be copied into every worker process.
        self.paths = np.array([os.fsencode(p) for p in paths])
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(bytes(self.paths[index])))

    def load(self, index: int) -> Tensor:
        return self.load_reduced(index, lambda height, width: 1.0)[0]

    def load_reduced(self, index: int, reduction: Reduction) -> tuple[Tensor, float]:
        path = self.name(index)
        try:
            with Image.open(path) as file:
                width, height = file.size
                wanted = reduction(height, width)
                if wanted >= 2:  # JPEG files decode at 1/2, 1/4 or 1/8; for others this does nothing
                    power = 2 ** min(3, int(math.log2(wanted)))
                    file.draft(None, (max(1, width // power), max(1, height // power)))
                pixels = np.array(file if file.mode == 'RGB' else file.convert('RGB'))
        # PIL reports a damaged file with any of these, depending on its format.
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
            raise BrokenImageError(f'cannot read image {path!r}: {error}') from error
        except Image.DecompressionBombError as error:
            raise BrokenImageError(f'image {path!r} is implausibly large: {error}') from error
        # A reduced side is rounded up.
        factor = next(k for k in (1.0, 2.0, 4.0, 8.0) if math.ceil(width / k) == pixels.shape[1])
        return torch.from_numpy(pixels).permute(2, 0, 1), factor


class FolderSource(ListSource):
    """All images under a folder: class folders (root/class/...) or flat (root/*), no labels.

    Raises:
        ValueError: the folder is missing or holds no image.
    """

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f'image folder {str(root)!r} is not a folder; give one with images or class folders')
        paths = sorted(
            Path(folder, f).relative_to(root)
            for folder, _, files in os.walk(root, followlinks=True)
            for f in files
            if f.lower().endswith(SUFFIXES)
        )
        owners = [p.parts[0] if len(p.parts) > 1 else '' for p in paths]
        self.classes = tuple(sorted(set(owners) - {''}))
        numbers = {name: i for i, name in enumerate(self.classes)}
        labels = [numbers.get(o, -1) for o in owners]
        self._fill(root, [str(p) for p in paths], labels, f'folder {str(root)!r}')
        counts = {'images': len(self), 'classes': len(self.classes)}
        self.description = {'data': 'folder', 'root': str(root), **counts}


#: Kinds of sources and the settings of each; `small_sets` and `pairs` are added by `specs`.
SOURCES: dict[str, tuple[type[Source], tuple[str, ...]]] = {
    'folder': (FolderSource, ('root',)),
    'list': (ListSource, ('root', 'list_file')),
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
    if not subset:
        return source
    from pinas_zoo.data.specs import SubsetSource  # it imports this module

    counts = ('start', 'limit', 'holdout')  # a hold-out below 1 is a fraction
    subset |= {k: source.shrink(subset[k]) for k in counts if (subset.get(k) or 0) >= 1}
    # Without a part and a seed the order stays: start and limit count along the files.
    return SubsetSource(source, **{'seed': 0 if 'part' in subset else None, **subset})


class ImageReader:
    """Reads images of a source and steps over broken ones.

    The replacement depends on (index, attempt) alone: a resumed run and any number of workers
    replace alike.

    Args:
        source: images.
        broken_rate_limit: highest tolerated share of failed reads, in [0, 1]; below 100
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
        """Image, the index that was really read, and the number of broken images stepped over.

        Args:
            index: Which image.
            load: What reads one; None is the source's `load`.

        Raises:
            BrokenRateError: more than the tolerated share is broken.
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
        """Image and what a sample says about it: index as asked for, name and label as read, images stepped over.

        Args:
            index: Which image.
            load: See `read`.

        Raises:
            BrokenRateError: more than the tolerated share is broken.
        """
        image, actual, broken = self.read(index, load)
        name, label = self.source.name(actual), self.source.label(actual)
        return image, {'index': index, 'name': name, 'label': label, 'broken': broken}

    def _count(self, name: str, message: str) -> None:
        self.failures += 1
        if name not in self.broken:
            self.broken[name] = message
            logger.warning('broken image no. %d, another one takes its place: %s', len(self.broken), message)
        if self.failures > self.broken_rate_limit * max(self.reads, self.BASE):
            raise BrokenRateError(
                f'{self.failures} of {self.reads} reads failed ({len(self.broken)} files), more '
                f'than broken_rate_limit={self.broken_rate_limit}; repair or remove the files. '
                f'First: {list(self.broken)[:5]}'
            )


def channel_constants(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std as (C, 1, 1) each, to be read only; kept per device, since a copy from the host waits for it."""
    return _channel_constants(tuple(mean), tuple(std), device)


@lru_cache(maxsize=16)
def _channel_constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean, device=device).view(-1, 1, 1), torch.tensor(std, device=device).view(-1, 1, 1)


def _split_line(line: str) -> tuple[str, int]:
    words = line.rsplit(maxsplit=1)
    labelled = len(words) == 2 and words[1].lstrip('-').isdigit()
    return (words[0], int(words[1])) if labelled else (line, -1)
