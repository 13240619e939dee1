"""timm's streaming readers as a source: WebDataset's tars and Hugging Face streams, read in order and not by index."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.readers import create_reader
from torch import Tensor
from torch.utils.data import get_worker_info

from pinas_zoo.data.images import UPRIGHT, eight_bits, naming_damage, orientation
from pinas_zoo.data.sources import Source
from pinas_zoo.data.timm_source import STREAMS, TimmSource
from pinas_zoo.dist import rank_and_world

__all__ = ['TimmStream', 'open_timm']


def open_timm(name: str = '', num_samples: int | None = None, **settings: Any) -> Source:
    """timm's reader of a name: a `TimmStream` for ``wds/``, ``hfids/`` and ``tfds/``, otherwise a `TimmSource`.

    Raises:
        ValueError: `num_samples` was given for a set that is read by index.
    """
    if name.partition('/')[0].lower() in STREAMS and '/' in name:
        return TimmStream(name, num_samples=num_samples, **settings)
    if num_samples is not None:
        raise ValueError(
            f'num_samples={num_samples} is for streams ({", ".join(f"{p}/" for p in STREAMS)}), got {name!r}'
        )
    return TimmSource(name, **settings)


class TimmStream(Source):
    """A stream of timm's: every loading process reads its own part of the shards; an index means "the next image".

    Each epoch of a process has as many images as its share of the set, in an order that follows from (seed, epoch,
    rank, process). timm gives whole shards to processes: where these differ in length, some images are left out of an
    epoch and others repeat. Pictures that do not decode are skipped by timm (``wds/``) or end the run (``hfids/``).

    Args:
        name: timm's name: ``wds/NAME`` or ``hfids/NAME``.
        root: Folder or address of the tars of ``wds/``; the cache folder of ``hfids/``.
        split: Split of the set, or for ``wds/`` a pattern of its tars (``train-{0000..0099}.tar``).
        class_map: timm's class map: a text file with a class per line.
        input_key: Extensions or column of the images.
        target_key: Field or column of the labels.
        num_samples: Images in the split, if the set does not state their number.

    Raises:
        ValueError: ``tfds/``, whose order cannot be continued; or the set or its number of images was not found.
        ImportError: The package webdataset, or datasets, is not installed.
    """

    def __init__(
        self,
        name: str,
        root: str | Path | None = None,
        split: str = 'train',
        class_map: str | None = None,
        input_key: str | None = None,
        target_key: str | None = None,
        num_samples: int | None = None,
    ) -> None:
        prefix = name.partition('/')[0].lower()
        if prefix == 'tfds':
            raise ValueError(
                f"{name!r}: tfds/ is not supported, since a run could not resume in its order; use 'hfids/' or 'wds/'"
            )
        if prefix == 'wds' and root is None:
            raise ValueError(f"kind='timm' needs the root of {name!r}: the folder of its tars")
        options = dict(class_map=class_map, input_key=input_key, target_key=target_key, num_samples=num_samples)
        # Our own rule turns pictures into RGB (docs/data.md, Pictures).
        self._options: dict[str, Any] = dict(
            name=name, root=root and str(root), split=split, input_img_mode='', **options
        )
        try:
            reader: Any = self._open(training=False)
        except (ImportError, RuntimeError, NameError) as error:
            package = {'wds': 'webdataset', 'hfids': 'datasets'}[prefix]
            if isinstance(error, RuntimeError) and 'install' not in str(error):
                raise ValueError(f"kind='timm', {name!r} in {root!r}: {error}") from error
            raise ImportError(f'{name} needs the package {package}: pip install {package}') from error
        if not reader.num_samples:
            raise ValueError(f'{name!r} does not say how many images {split!r} has: give num_samples')
        # Unknown before an image is read; one number stands for all of them.
        self.labels = np.broadcast_to(np.int64(-1), int(reader.num_samples))
        numbers: dict[str, int] = reader.class_to_idx or {}
        self.classes = tuple(str(each) for each in sorted(numbers, key=lambda each: numbers[each]))
        counts = {'images': len(self), 'classes': len(self.classes)}
        self.description = {'data': 'timm', 'name': name, 'root': str(root), 'split': split, **counts}
        #: Number of this start (0: none yet), seed, images that this rank read before, rank, number of ranks.
        self._plan = torch.zeros(5, dtype=torch.int64).share_memory_()  # the workers see what the main process sets
        self._number = 0
        self._images: Iterator[tuple[Image.Image, int]] = iter(())
        self._label: tuple[int, int] | None = None

    def _open(self, training: bool, **options: Any) -> Any:
        return create_reader(**self._options, is_training=training, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open stream."""
        return {**vars(self), '_number': 0, '_images': iter(())}

    def epoch_order(self, seed: int, epoch: int, world_size: int) -> range:
        """Positions: the stream has an order of its own."""
        return range(len(self))

    def begin(self, seed: int, start: int) -> None:
        """Sets where the loading processes begin to read.

        The images that they read before are passed over, and decoded. A continued run reads the same images as one that
        was not stopped if ranks, workers and batch size are the same and the workers had read equally many batches;
        otherwise some images of the current epoch are read twice or not at all.

        Args:
            seed: Of the run.
            start: Images that this rank read before.
        """
        self._plan.copy_(torch.tensor([int(self._plan[0]) + 1, seed, start, *rank_and_world()]))

    def load(self, index: int) -> Tensor:
        """The next image; `index` only names it.

        Raises:
            ValueError: `begin` was not called: only trainings read streams.
            BrokenImageError: The image cannot be converted.
        """
        number = int(self._plan[0])
        if number == 0:
            raise ValueError(
                f'{self._options["name"]} is a stream, which only a training with StatelessSampler reads (or your own '
                "loop after source.begin(seed, start)); use kind='shards' or hfds/ where images need an index"
            )
        if number != self._number:
            self._number, self._images = number, self._read()
        image, label = next(self._images)
        self._label = (index, int(label))
        with naming_damage(lambda: self.name(index)):
            turn = UPRIGHT.get(orientation(image))
            pixels = eight_bits(image)
            return torch.from_numpy(np.array(pixels if turn is None else pixels.transpose(turn))).permute(2, 0, 1)

    def label(self, index: int) -> int:
        """Class number of the image that was read last; `index` is the one that it was read with.

        Raises:
            ValueError: Another image was read last, or the label is not one of the classes.
        """
        if self._label is None or self._label[0] != index:
            raise ValueError(f'{self.name(index)}: only the label of the image that was read last is known')
        if self.classes and not 0 <= self._label[1] < len(self.classes):
            raise ValueError(f'{self.name(index)} has label {self._label[1]}, there are {len(self.classes)} classes')
        return self._label[1]

    def name(self, index: int) -> str:
        return f'{self._options["name"]}/{self._options["split"]}@{index}'

    def look(self) -> list[str]:
        try:
            next(iter(self._open(training=False)))
        except Exception as error:  # of any package below
            raise ValueError(
                f'no image of {self._options["name"]} can be read: {error or type(error).__name__}'
            ) from error
        return list(self.notes)

    def _read(self) -> Iterator[tuple[Image.Image, int]]:
        """This process's part of the stream, epoch after epoch."""
        _, seed, start, *place = self._plan.tolist()
        if tuple(place) != rank_and_world():
            raise ValueError(
                f'(rank, world size) is {place}, but {rank_and_world()} in a worker: streams need forked workers'
            )
        info = get_worker_info()
        workers = info.num_workers if info else 1
        share = math.ceil(len(self) / (place[1] * workers))
        epoch, before = divmod(start // workers, share)
        while True:
            words = np.random.SeedSequence([seed, epoch]).generate_state(1)
            count = 0
            for image, label in islice(self._open(training=True, seed=int(words[0])), before, share):
                count += 1
                yield image, label
            if count == 0:
                raise ValueError(
                    f'worker {info.id if info else 0} of rank {place[0]} got no image of {self._options["name"]}: '
                    f'are there fewer shards than {place[1]} x {workers} loading processes?'
                )
            epoch, before = epoch + 1, 0
