"""timm's data readers as a source: image folders, tars and Hugging Face data sets, read by index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.readers import create_reader
from torch import Tensor

from pinas_zoo.data.images import FileSource, read_picture
from pinas_zoo.data.sources import BrokenImageError, Reduction

__all__ = ['STREAMS', 'TimmSource']

#: Readers of timm that give a stream without an index: `timm_stream`.
STREAMS = ('wds', 'hfids', 'tfds')


class TimmSource(FileSource):
    """What `timm.data.create_dataset` reads by index: a folder, tars, ``hfds/NAME`` of the Hugging Face hub.

    Args:
        name: timm's name of the set, such as 'hfds/uoft-cs/cifar10'; empty for a folder or a tar.
        root: The folder or `.tar` file; for ``hfds/`` the cache folder.
        split: Split of a set with a name.
        class_map: timm's class map: a text file with a class per line.
        input_key: Column of the images, for ``hfds/``.
        target_key: Column of the labels, for ``hfds/``.

    Raises:
        ValueError: It has no images.
        ImportError: ``hfds/`` needs the package datasets.
    """

    def __init__(
        self,
        name: str = '',
        root: str | Path | None = None,
        split: str = 'train',
        class_map: str | None = None,
        input_key: str | None = None,
        target_key: str | None = None,
    ) -> None:
        prefix = name.partition('/')[0].lower() if '/' in name else ''
        if prefix != 'hfds' and (root is None or not Path(root).exists()):
            raise ValueError(f"kind='timm' needs an existing root (folder or .tar) or a name with hfds/, got {root!r}")
        options: dict[str, Any] = dict(class_map=class_map, input_key=input_key, target_key=target_key)
        # Open tar files would be shared by the workers, and timm's cache of a tar's index is a pickle.
        options |= dict(cache_tarfiles=False, cache_tarinfo=False) if Path(str(root)).suffix == '.tar' else {}
        try:
            self.reader: Any = create_reader(
                name, None if root is None else str(root), split, **{k: v for k, v in options.items() if v is not None}
            )
        except RuntimeError as error:
            raise ValueError(f"kind='timm': {error}") from error
        except (ImportError, NameError) as error:
            raise ImportError(f'{name} needs the package datasets: pip install datasets') from error
        self.labels = self._labels(target_key or 'label')
        reader = self.reader
        numbers: dict[str, int] = getattr(reader, 'class_to_idx', getattr(reader, 'class_name_to_idx', None)) or {}
        self.classes = tuple(str(each) for each in sorted(numbers, key=lambda each: numbers[each]))
        counts = {'images': len(self), 'classes': len(self.classes)}
        self.description = {'data': 'timm', 'name': name, 'root': str(root), 'split': split, **counts}

    def _labels(self, target_key: str) -> np.ndarray:
        """Every label, without reading an image."""
        reader = self.reader
        if hasattr(reader, 'targets'):
            found = reader.targets
        elif hasattr(reader, 'samples'):
            found = [target for _, target in reader.samples]
        elif reader.remap_class:
            raise ValueError(f'class_map is not supported for {reader.dataset}; its labels are column {target_key!r}')
        else:
            found = reader.dataset[target_key]
        return np.asarray(found, dtype=np.int64)

    def name(self, index: int) -> str:
        """The reader's name of the file, relative to its root."""
        return str(self.reader.filename(index, basename=False, absolute=False))

    def load(self, index: int) -> Tensor:
        return self._read(index, None)[0]

    def load_reduced(self, index: int, reduction: Reduction) -> tuple[Tensor, float]:
        return self._read(index, reduction)

    def _read(self, index: int, reduction: Reduction | None) -> tuple[Tensor, float]:
        try:
            file, _ = self.reader[index]
            with file:
                pixels, factor = read_picture(file, reduction)
        except (BrokenImageError, OSError, KeyError) as error:
            raise BrokenImageError(f'cannot read image {self.name(index)!r}: {error}') from error
        return torch.from_numpy(pixels).permute(2, 0, 1), factor
