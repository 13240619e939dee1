"""Tar shards as a source: WebDataset's layout, read by index, in an order that reads each shard in one go."""

import io
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinas_zoo.data.images import FileSource, read_picture
from pinas_zoo.data.shard_index import expand_braces, index_shards
from pinas_zoo.data.sources import SOURCES, Reduction

__all__ = ['LostShardError', 'ShardOrder', 'ShardSource']

#: Shards that a process keeps open.
OPEN = 64


class LostShardError(OSError):
    """A shard is gone or has changed since it was indexed; the message names it."""


class ShardOrder:
    """The order of one epoch: shards shuffled and split over the ranks, samples shuffled within a window of shards.

    Position p of the epoch belongs to one rank (`StatelessSampler` deals positions in turn). The positions of a rank
    are one contiguous run of the shuffled shards, so that only the shards at its ends are shared with another rank;
    and they are shuffled within every `window` shards. Every sample has one position. Only the permutation of one
    window is in memory.

    Args:
        starts: Number of each shard's first sample, and the total at the end, (shards + 1,).
        seed: Of the run.
        epoch: Number of the epoch.
        world_size: Number of ranks.
        window: Shards whose samples are mixed.
    """

    def __init__(self, starts: np.ndarray, seed: int, epoch: int, world_size: int, window: int) -> None:
        self.words, self.world_size = (seed, epoch), world_size
        shards = np.random.default_rng(self.words).permutation(len(starts) - 1)
        self.first = starts[shards]  # of each shard in the shuffled order: its first sample,
        self.ends = np.cumsum(np.diff(starts)[shards])  # and where it ends in that order
        self.size = int(self.ends[-1])
        edges = self.ends[window - 1 :: window].tolist()
        self.edges = edges if edges and edges[-1] == self.size else [*edges, self.size]
        self._window: tuple[int, int] = (0, 0)
        self._permutation = np.empty(0, np.int64)

    def __getitem__(self, position: int) -> int:
        share, place = position % self.world_size, position // self.world_size
        low = share * (self.size // self.world_size) + min(share, self.size % self.world_size)
        high = low + self.size // self.world_size + (share < self.size % self.world_size)
        place += low
        if not self._window[0] <= place < self._window[1]:
            number = bisect_right(self.edges, place)
            begin = max(low, self.edges[number - 1] if number else 0)
            self._window = begin, min(high, self.edges[number])
            rng = np.random.default_rng([*self.words, 1 + begin])
            self._permutation = rng.permutation(self._window[1] - begin)
        place = self._window[0] + int(self._permutation[place - self._window[0]])
        shard = int(np.searchsorted(self.ends, place, side='right'))
        return int(self.first[shard] + place - (self.ends[shard - 1] if shard else 0))


class ShardSource(FileSource):
    """Pictures in tar files whose members follow each other by key (``000017.jpg``, ``000017.cls``), as WebDataset's.

    Args:
        shards: A pattern such as ``train-{0000..1023}.tar``, or a list of patterns and paths.
        root: Folder that they are relative to.
        classes: Names by label; None uses the labels' numbers.
        image: Extension of a sample's picture; None takes its first member that is read as a picture.
        label: Extension of the member with its label, an integer from 0.
        window: Shards whose samples are mixed, at least 1; see `ShardOrder`.
        broken_limit: Largest tolerated share of incomplete samples, and of shards that end too early, in [0, 1].

    Raises:
        ValueError: A shard is missing, no sample was found, or too many are broken.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        root: str | Path = '.',
        classes: Sequence[str] | None = None,
        image: str | None = None,
        label: str = 'cls',
        window: int = 8,
        broken_limit: float = 0.01,
    ) -> None:
        if window < 1 or not 0 <= broken_limit <= 1:
            raise ValueError(f'{window=}, {broken_limit=}; allowed: a window of at least 1, a limit of 0 to 1')
        patterns = [shards] if isinstance(shards, str) else list(shards)
        paths = [os.path.join(root, name) for pattern in patterns for name in expand_braces(pattern)]
        if len(set(paths)) < len(paths):
            raise ValueError(f'shards {patterns} name {len(paths) - len(set(paths))} of {len(paths)} files twice')
        self.window = window
        self.index = index_shards(paths, image, label, broken_limit)
        self.notes = [f'shards: {note}' for note in self.index.notes]
        self._map()
        count = int(self.labels.max()) + 1
        if classes is not None and count > len(classes):
            raise ValueError(
                f'{self.name(int(self.labels.argmax()))} has label {count - 1}, allowed are 0 to {len(classes) - 1}'
            )
        self.classes = tuple(map(str, range(count))) if classes is None or not count else tuple(classes)
        counts = {'images': len(self), 'shards': len(paths), 'broken': self.index.broken}
        self.description = {'data': 'shards', 'root': str(root), 'pattern': patterns, **counts}

    def _map(self) -> None:
        self.rows = self.index.rows()
        self.labels = self.rows['label']
        self._files: OrderedDict[int, int] = OrderedDict()  # descriptors, the last used at the end

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped arrays, which pickle would copy."""
        return {key: value for key, value in vars(self).items() if key not in ('rows', 'labels', '_files')}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._map()

    def __del__(self) -> None:
        for file in getattr(self, '_files', {}).values():
            os.close(file)

    def epoch_order(self, seed: int, epoch: int, world_size: int) -> ShardOrder:
        return ShardOrder(self.index.starts, seed, epoch, world_size, self.window)

    def name(self, index: int) -> str:
        shard, row = self._place(index)
        try:
            header = os.pread(self._open(shard), 512, int(row['offset']) - 512)
        except OSError:
            return f'{self.index.shards[shard]}@{row["offset"]}'
        name, prefix = (part.partition(b'\0')[0].decode(errors='replace') for part in (header[:100], header[345:500]))
        inside = f'{prefix}/{name}' if prefix and header[257:263] == b'ustar\0' else name
        return f'{self.index.shards[shard]}/{inside}'

    def load(self, index: int) -> Tensor:
        return self._read(index, None)[0]

    def load_reduced(self, index: int, reduction: Reduction) -> tuple[Tensor, float]:
        return self._read(index, reduction)

    def _read(self, index: int, reduction: Reduction | None) -> tuple[Tensor, float]:
        shard, row = self._place(index)
        try:
            content = os.pread(self._open(shard), int(row['length']), int(row['offset']))
        except LostShardError:
            raise
        except OSError as error:
            raise LostShardError(f'shard {self.index.shards[shard]!r} cannot be read: {error}') from error
        pixels, factor = read_picture(io.BytesIO(content), reduction, lambda: self.name(index))
        return torch.from_numpy(pixels).permute(2, 0, 1), factor

    def _place(self, index: int) -> tuple[int, np.void]:
        return int(np.searchsorted(self.index.starts, index, side='right')) - 1, self.rows[index]

    def _open(self, shard: int) -> int:
        """A descriptor of the shard, which `pread` may share with forked processes; compared with the index once."""
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path, (size, changed) = self.index.shards[shard], self.index.stats[shard]
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise LostShardError(f'shard {path!r} was lost during the run: {error.strerror}; restore it') from error
        facts = os.fstat(file)
        if (facts.st_size, facts.st_mtime_ns) != (size, changed):
            os.close(file)
            raise LostShardError(
                f'shard {path!r} changed since it was indexed ({size} bytes then, {facts.st_size} now): restore it, or '
                'start a new run'
            )
        if len(self._files) >= OPEN:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = file
        return file


SOURCES['shards'] = (ShardSource, ('shards', 'root', 'classes', 'image', 'label', 'window', 'broken_limit'))
