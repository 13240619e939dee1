"""CIFAR-10 and CIFAR-100: torchvision's files, checked by its hashes and read as plain values only."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from pinas_zoo.data.fashion_mnist import cache_folder
from pinas_zoo.data.small_sets import ArraySource, check_split
from pinas_zoo.files import file_lock
from pinas_zoo.weights.fetch import offline

__all__ = ['CIFAR10Source', 'CIFAR100Source']

#: What the files consist of besides plain values.
ALLOWED = {
    ('numpy.core.multiarray', '_reconstruct'),
    ('numpy._core.multiarray', '_reconstruct'),
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    ('_codecs', 'encode'),
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads arrays and plain values only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f'{module}.{name} is not allowed in a CIFAR file')
        return super().find_class(module, name)


class CIFAR10Source(ArraySource):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 px in 10 classes.

    Args:
        split: 'train' or 'test'.
        limit, start: Part of the split.
        root: Folder with torchvision's files (`cifar-10-batches-py`), or that folder; default: the cache
            (``$PINAS_CACHE_DIR``/cifar10).
        download: Whether missing files may be downloaded into the cache; default: unless PINAS_OFFLINE is set.

    Raises:
        ValueError: Files are missing or are not the originals.
    """

    kind: ClassVar[str] = 'cifar10'
    files: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10
    label_key: ClassVar[str] = 'labels'
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        split: str,
        limit: int | None = None,
        start: int = 0,
        root: str | Path | None = None,
        download: bool | None = None,
    ) -> None:
        check_split(split)
        folder = self._locate(root, download)
        names = [name for name, _ in (self.files.train_list if split == 'train' else self.files.test_list)]
        parts = [_read(folder / name) for name in names]
        images = np.concatenate([np.asarray(part['data'], dtype=np.uint8) for part in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([np.asarray(part[self.label_key], dtype=np.int64) for part in parts])
        classes = _read(folder / self.files.meta['filename'])[self.files.meta['key']]
        super().__init__(images, labels, classes, f'{self.kind}/{split}', start, limit)
        self.description = {
            'data': self.kind, 'split': split, 'origin': str(folder), 'start': start, 'images': len(self),
        }  # fmt: skip

    @classmethod
    def _locate(cls, root: str | Path | None, download: bool | None) -> Path:
        base = cls.files.base_folder
        places = [cache_folder(cls.kind)] if root is None else [Path(root).expanduser()]
        folders = [folder for place in places for folder in (place / base, place)]
        faults = [cls._fault(folder) for folder in folders]
        if '' in faults:
            return folders[faults.index('')]
        forbidden = 'download=False' if download is False else offline()
        if root is not None or forbidden:
            why = f'; not downloaded, {forbidden}' if root is None else ''
            raise ValueError(
                f'{cls.kind}: {faults[0]}{why}. Give a root with {base} of {cls.files.filename}; for class folders of '
                "pictures use kind='folder'"
            )
        return cls._download(places[0])

    @classmethod
    def _fault(cls, folder: Path) -> str:
        """Why a folder does not have the original files; '' if it does."""
        wanted = [*cls.files.train_list, *cls.files.test_list, [cls.files.meta['filename'], cls.files.meta['md5']]]
        if missing := [name for name, _ in wanted if not (folder / name).is_file()]:
            return f'{folder} lacks {", ".join(missing)}'
        changed = [name for name, md5 in wanted if not check_integrity(str(folder / name), md5)]
        return f'{folder}: {", ".join(changed)} are not the originals (md5)' if changed else ''

    @classmethod
    def _download(cls, place: Path) -> Path:
        folder = place / cls.files.base_folder
        place.mkdir(parents=True, exist_ok=True)
        with file_lock(place / '.lock', partial(print, f'another process is downloading {cls.kind}: waiting for it')):
            if cls._fault(folder):
                print(f'downloading {cls.kind} (170 MB) into {place}', flush=True)
                try:
                    download_and_extract_archive(
                        cls.files.url, str(place), filename=cls.files.filename, md5=cls.files.tgz_md5
                    )
                except (OSError, RuntimeError) as error:  # URLError is an OSError; RuntimeError: another hash
                    raise ValueError(f'{cls.kind} could not be obtained: {error}; give its folder as root') from error
            if fault := cls._fault(folder):
                raise ValueError(f'{cls.kind}: {fault}')
        return folder


class CIFAR100Source(CIFAR10Source):
    """CIFAR-100, with its 100 fine classes. Arguments and errors as for `CIFAR10Source`."""

    kind = 'cifar100'
    files = datasets.CIFAR100
    label_key = 'fine_labels'
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def _read(path: Path) -> dict[str, Any]:
    with path.open('rb') as file:
        try:
            return dict(_PlainUnpickler(file, encoding='latin1').load())
        except (pickle.UnpicklingError, EOFError, TypeError, ValueError) as error:
            raise ValueError(f'{path} cannot be read: {error}') from error
