"""Real data sets that fit into memory: Fashion-MNIST, and scikit-learn's digits if it cannot be obtained."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.data import fashion_mnist
from pinas_zoo.data.fashion_mnist import CLASSES as FASHION_MNIST_CLASSES
from pinas_zoo.data.fashion_mnist import DEBIAN_FOLDER, FILES, read_idx
from pinas_zoo.data.fashion_mnist import VARIABLE as FASHION_MNIST_VARIABLE
from pinas_zoo.data.sources import Source

__all__ = [
    'DEBIAN_FOLDER',
    'DIGITS_MEAN',
    'DIGITS_STD',
    'FASHION_MNIST_CLASSES',
    'FASHION_MNIST_MEAN',
    'FASHION_MNIST_STD',
    'FASHION_MNIST_VARIABLE',
    'ArraySource',
    'DataSetInfo',
    'DigitsSource',
    'FashionMNISTSource',
    'check_split',
    'resolve_digits',
    'resolve_fashion_mnist',
]

FASHION_MNIST_MEAN, FASHION_MNIST_STD = (0.2860,), (0.3530,)
DIGITS_MEAN, DIGITS_STD = (0.3053,), (0.3238,)
#: The test images are the last fifth of the digits, by other writers.
DIGITS_TRAIN_SHARE = 0.8
SPLITS = ('train', 'test')
IMAGE_SIZE = FILES['train', 'images'].shape[1]


@dataclass(frozen=True)
class DataSetInfo:
    """Which data set is used, and everything that a job has to know about it.

    Args:
        name: 'fashion-mnist' or 'digits'.
        title: Its name for readers.
        classes: Class names by label.
        mean, std: Mean and standard deviation of the pixels in [0, 1], one value each.
        sizes: Number of images by split.
        image_size: Side of an image in px.
        origin: How it was found.
        folder: Folder of its files; None for digits.
        fingerprint: Hash of all pixels and labels, in hexadecimal: the same data always have the same.
        problems: Why each earlier place did not have Fashion-MNIST.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: Mapping[str, int]
    image_size: int
    origin: str
    folder: Path | None
    fingerprint: str
    problems: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which other processes use exactly the same data, whatever becomes available meanwhile."""
        return {FASHION_MNIST_VARIABLE: self.name if self.folder is None else str(self.folder)}

    def __str__(self) -> str:
        counts = ' + '.join(f'{self.sizes[split]:,} {split}' for split in SPLITS)
        what = f'{counts} images of {self.image_size} px, {len(self.classes)} classes'
        return f'{self.title} ({what}; from {self.origin})'


def resolve_fashion_mnist(root: str | Path | None = None, download: bool | None = None) -> DataSetInfo:
    """Find or download Fashion-MNIST; scikit-learn's digits replace it if it cannot be obtained.

    Search order: `root`, else ``$PINAS_FASHION_MNIST``; the folder of Debian's package; the cache
    (``$PINAS_CACHE_DIR``/fashion-mnist); torchvision's mirrors; the distribution's package, unpacked without root.
    Downloads go into the cache. All files are checked by hash. If digits replace them, one line says why.

    Args:
        root: Folder with the four gzip idx files.
        download: False never uses the network. PINAS_OFFLINE and HF_HUB_OFFLINE forbid it in any case.

    Raises:
        ValueError: The given folder has other files with these names.
        ImportError: Digits are needed and scikit-learn is missing.
    """
    if root is None and os.environ.get(FASHION_MNIST_VARIABLE) == 'digits':
        return resolve_digits(f'scikit-learn, ${FASHION_MNIST_VARIABLE} asks for it')
    found = fashion_mnist.locate(root, download)
    if found.folder is None:
        tried = '; '.join(found.problems)
        _print_once(f"Fashion-MNIST could not be obtained, scikit-learn's digits replace it. Tried: {tried}")
        return resolve_digits(problems=found.problems)
    return DataSetInfo(
        'fashion-mnist',
        'Fashion-MNIST',
        FASHION_MNIST_CLASSES,
        FASHION_MNIST_MEAN,
        FASHION_MNIST_STD,
        {split: FILES[split, 'images'].shape[0] for split in SPLITS},
        IMAGE_SIZE,
        found.origin,
        found.folder,
        hashlib.sha256(''.join(file.sha256 for file in FILES.values()).encode()).hexdigest(),
        found.problems,
    )


@lru_cache(maxsize=64)
def _print_once(line: str) -> None:
    print(line, flush=True)


def resolve_digits(origin: str = 'scikit-learn', problems: tuple[str, ...] = ()) -> DataSetInfo:
    """scikit-learn's digits, in the size of Fashion-MNIST's images.

    Args:
        origin: How they were chosen.
        problems: Why Fashion-MNIST was not chosen.

    Raises:
        ImportError: scikit-learn is missing.
    """
    parts = {split: _read_digits(split, IMAGE_SIZE) for split in SPLITS}
    digest = hashlib.sha256()
    for images, labels in parts.values():
        digest.update(images.tobytes() + labels.astype(np.uint8).tobytes())
    return DataSetInfo(
        'digits',
        "scikit-learn's digits",
        _digit_classes(),
        DIGITS_MEAN,
        DIGITS_STD,
        {split: len(labels) for split, (_, labels) in parts.items()},
        IMAGE_SIZE,
        origin,
        None,
        digest.hexdigest(),
        problems,
    )


class ArraySource(Source):
    """Images that fit into memory.

    Args:
        images: uint8, (N, H, W) if they are grey, otherwise (N, 3, H, W).
        labels: (N,).
        classes: Class names.
        prefix: Start of every image's name.
        start, limit: Part of the images, in order.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], prefix: str, start: int, limit: int | None
    ) -> None:
        part = part_slice(len(labels), start, limit, prefix)
        self.images = torch.from_numpy(np.array(images[part]))
        self.labels = np.asarray(labels[part], dtype=np.int64)
        self.classes, self.prefix, self.start = tuple(classes), prefix, start

    def load(self, index: int) -> Tensor:
        return self.images[index].expand(3, -1, -1)

    def name(self, index: int) -> str:
        return f'{self.prefix}/{self.start + index}'

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self.planes(self.images), torch.from_numpy(self.labels)

    def planes(self, images: Tensor) -> Tensor:
        """Some of the images as (N, 3, H, W); of grey ones an expanded view."""
        return images if images.ndim == 4 else images[:, None].expand(-1, 3, -1, -1)


def part_slice(length: int, start: int, limit: int | None, what: str) -> slice:
    """`limit` images from `start`, which must be within `length`; otherwise an error that begins with `what`."""
    stop = length if limit is None else start + limit
    if not 0 <= start < stop <= length:
        raise ValueError(f'{what}: start={start}, limit={limit}; allowed: 1 or more of its {length} images')
    return slice(start, stop)


class DigitsSource(ArraySource):
    """scikit-learn's digits; the last fifth (other writers) is the test split.

    Args:
        split: 'train' or 'test'.
        limit, start: Part of the split.
        size: Side in px to which the 8 px originals are resized.
    """

    mean, std = DIGITS_MEAN, DIGITS_STD

    def __init__(self, split: str, limit: int | None = None, start: int = 0, size: int = IMAGE_SIZE) -> None:
        check_split(split)
        images, labels = _read_digits(split, size)
        super().__init__(images, labels, _digit_classes(), f'digits/{split}', start, limit)
        self.description = _describe('digits', split, 'scikit-learn', start, len(self))


class FashionMNISTSource(ArraySource):
    """Fashion-MNIST, or its replacement (`resolve_fashion_mnist`).

    `description` records what is used. Digits are fewer: `start` and `limit` are then scaled down (see `share`), so
    that disjoint parts remain disjoint.

    Args:
        split: 'train' or 'test'.
        limit, start: Part of the split.
        root: Folder with the four gzip idx files.
        download: Whether a missing set may be downloaded; default: unless PINAS_OFFLINE is set.

    Raises:
        ValueError: The given folder has other files with these names.
    """

    #: Images here per image of the real set: 1, or less if digits replace it.
    share: float = 1.0

    def __init__(
        self,
        split: str,
        limit: int | None = None,
        start: int = 0,
        root: str | Path | None = None,
        download: bool | None = None,
    ) -> None:
        check_split(split)
        self.info = info = resolve_fashion_mnist(root, download)
        if info.folder is None:
            images, labels = _read_digits(split, info.image_size)
            self.share = info.sizes[split] / FILES[split, 'images'].shape[0]
            start, limit = self.shrink(start), None if limit is None else self.shrink(limit)
        else:
            images, labels = read_idx(info.folder, split, 'images'), read_idx(info.folder, split, 'labels')
        self.mean, self.std = info.mean, info.std
        super().__init__(images, labels, info.classes, f'{info.name}/{split}', start, limit)
        self.description = _describe(info.name, split, info.origin, start, len(self))

    def shrink(self, count: int) -> int:
        """A count or index of the real set, scaled to the replacement; at least 1 for 1 or more."""
        return max(1, int(count * self.share)) if count else 0


def _describe(data: str, split: str, origin: str, start: int, images: int) -> dict[str, Any]:
    return {'data': data, 'split': split, 'origin': origin, 'start': start, 'images': images}


def check_split(split: str) -> None:
    """Raises a ValueError if a split is neither 'train' nor 'test'."""
    if split not in SPLITS:
        raise ValueError(f'split={split!r}; allowed: train, test')


@lru_cache(maxsize=1)
def _load_digits() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits set needs scikit-learn: pip install 'pinas-zoo[search]'") from error
    return load_digits()


def _digit_classes() -> tuple[str, ...]:
    return tuple(map(str, _load_digits().target_names))


@lru_cache(maxsize=4)
def _read_digits(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    data = _load_digits()
    border = int(len(data.target) * DIGITS_TRAIN_SHARE)
    part = slice(0, border) if split == 'train' else slice(border, None)
    images = torch.from_numpy(data.images[part] / 16).float()[:, None]
    images = F.interpolate(images, size=(size, size), mode='bilinear', antialias=True)[:, 0]
    return (images * 255).round().to(torch.uint8).numpy(), data.target[part]
