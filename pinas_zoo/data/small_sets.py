"""Real data sets that fit into memory: Fashion-MNIST, and scikit-learn's digits where it is missing."""

from __future__ import annotations

import gzip
import os
import socket
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pinas_zoo.data.sources import ArraySource

FASHION_MNIST_MEAN, FASHION_MNIST_STD = (0.2860,), (0.3530,)
DIGITS_MEAN, DIGITS_STD = (0.3053,), (0.3238,)
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
DEBIAN_FOLDER = Path('/usr/share/datasets/fashion-mnist')
OFFLINE_VARIABLE = 'PINAS_OFFLINE'


class DigitsSource(ArraySource):
    """scikit-learn's 1,797 digits; the last 360 (other writers) are the test split.

    Args:
        split: 'train' or 'test'.
        limit, start: part of the split.
        size: side in px that the 8 px originals are resized to.
    """

    mean, std = DIGITS_MEAN, DIGITS_STD

    def __init__(self, split: str, limit: int | None = None, start: int = 0, size: int = 28) -> None:
        _check_split(split)
        images, labels = _read_digits(split, size)
        super().__init__(images, labels, [str(i) for i in range(10)], f'digits/{split}', start, limit)
        self.description = _describe('digits', split, 'scikit-learn', start, len(self))


class FashionMNISTSource(ArraySource):
    """Fashion-MNIST: the Debian package, else torchvision's download, else digits.

    What is used instead is printed, and `description` records it. Digits are fewer: `start` and `limit` then shrink
    with the set (see `share`), so that parts which are disjoint stay so.

    Args:
        split: 'train' (60,000) or 'test' (10,000).
        limit, start: part of the split.
        root: folder with the four gzip idx files; default: Debian's folder, then the cache.
        download: whether a missing set may be fetched; default: unless PINAS_OFFLINE is set.
    """

    mean, std = FASHION_MNIST_MEAN, FASHION_MNIST_STD
    #: Images here for each image of the real set: 1, or less where digits stand in.
    share: float = 1.0

    def __init__(
        self,
        split: str,
        limit: int | None = None,
        start: int = 0,
        root: str | Path | None = None,
        download: bool | None = None,
    ) -> None:
        _check_split(split)
        folder, origin = _find_fashion_mnist(root, download)
        if folder is None:
            print(f"Fashion-MNIST is not available ({origin}): scikit-learn's digits at 28 px take its place")
            self.mean, self.std = DIGITS_MEAN, DIGITS_STD
            images, labels = _read_digits(split, 28)
            data, origin, classes = 'digits', 'scikit-learn', tuple(str(i) for i in range(10))
            self.share = len(labels) / {'train': 60_000, 'test': 10_000}[split]
            start, limit = self.shrink(start), self.shrink(limit)
        else:
            stem = 'train' if split == 'train' else 't10k'
            images = _read_idx(folder / f'{stem}-images-idx3-ubyte.gz')
            labels = _read_idx(folder / f'{stem}-labels-idx1-ubyte.gz')
            data, classes = 'fashion-mnist', FASHION_MNIST_CLASSES
        super().__init__(images, labels, classes, f'{data}/{split}', start, limit)
        self.description = _describe(data, split, origin, start, len(self))

    def shrink(self, count: int | None) -> int | None:
        """A count or place of the real set, in the set that stands in; at least 1 of each 1 or more."""
        return count if not count else max(1, int(count * self.share))


def _describe(data: str, split: str, origin: str, start: int, images: int) -> dict[str, Any]:
    return {'data': data, 'split': split, 'origin': origin, 'start': start, 'images': images}


def _check_split(split: str) -> None:
    if split not in ('train', 'test'):
        raise ValueError(f'split={split!r}; allowed: train, test')


def _read_idx(path: Path) -> np.ndarray:
    """One gzip idx file: two zero bytes, type 8 (bytes), number of axes, big-endian sizes, data."""
    with gzip.open(path) as file:
        content = file.read()
    axes = content[3]
    shape = np.frombuffer(content, '>u4', axes, 4)
    if content[:3] != b'\0\0\x08' or len(content) != 4 + 4 * axes + int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f'{path} is not an idx file of bytes: header {content[:4]!r}, shape {shape.tolist()}')
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


@lru_cache(maxsize=4)
def _read_digits(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits set needs scikit-learn: pip install 'pinas_zoo[search]'") from error
    data = load_digits()
    part = slice(0, 1437) if split == 'train' else slice(1437, None)
    images = torch.from_numpy(data.images[part] / 16).float()[:, None]
    images = F.interpolate(images, size=(size, size), mode='bilinear', antialias=True)[:, 0]
    return (images * 255).round().to(torch.uint8).numpy(), data.target[part]


def _find_fashion_mnist(root: str | Path | None, download: bool | None) -> tuple[Path | None, str]:
    """Folder of the idx files and where they came from; (None, why not) if there are none."""
    cache = Path(os.environ.get('PINAS_CACHE_DIR', Path.home() / '.cache' / 'pinas_zoo')) / 'fashion-mnist'
    places = {'given folder': Path(root)} if root else {'Debian package': DEBIAN_FOLDER, 'torchvision': cache}
    for origin, folder in places.items():
        if all(any(folder.glob(f'{stem}-{kind}-*.gz')) for stem in ('train', 't10k') for kind in ('images', 'labels')):
            return folder, origin
    if download is None:
        download = not os.environ.get(OFFLINE_VARIABLE)
    if not download:
        return None, f'not in {", ".join(map(str, places.values()))}; download is off'
    return _download_fashion_mnist(Path(root) if root else cache)


def _download_fashion_mnist(target: Path) -> tuple[Path | None, str]:
    from torchvision.datasets import FashionMNIST

    timeout = socket.getdefaulttimeout()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            socket.setdefaulttimeout(20)
            FashionMNIST(folder, download=True)
            target.mkdir(exist_ok=True)
            # One rename a file: processes may fetch at once, and a killed one leaves no half file.
            for file in Path(folder, 'FashionMNIST', 'raw').glob('*.gz'):
                with file.open('rb') as stream:
                    os.fsync(stream.fileno())
                file.replace(target / file.name)
    except (OSError, RuntimeError) as error:
        return None, f'download failed: {error}'
    finally:
        socket.setdefaulttimeout(timeout)
    return target, 'torchvision'
