"""The index of tar shards: where the picture of every sample is, in files that are read without loading them.

Each shard has an index file, beside it or in the cache. All of them are merged into one array in the cache that is
mapped into memory: its pages belong to the system's file cache, which all processes of a machine share.
"""

import hashlib
import itertools
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pinas_zoo.data.fashion_mnist import cache_folder
from pinas_zoo.data.images import suffixes
from pinas_zoo.data.sources import MOST_CLASSES, few_names
from pinas_zoo.data.trees.parallel import in_processes
from pinas_zoo.dist import cores
from pinas_zoo.files import file_lock, read_json, write_atomic

__all__ = ['ROW', 'ShardIndex', 'expand_braces', 'index_shards']

#: One sample: its picture's bytes within the shard, and its label (-1: none).
ROW = np.dtype([('offset', '<i8'), ('length', '<i4'), ('label', '<i4')])
#: Part of the names in the cache; another format gets another number.
FORMAT = 1
_BLOCK = 512
_BRACES = re.compile(r'\{([^{}]*)\}')
_RANGE = re.compile(r'(\d+)\.\.(\d+)')


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern such as ``train-{0000..1023}.tar`` or ``{a,b}.tar`` stands for.

    Raises:
        ValueError: A range ends before it begins.

    Examples:
        >>> expand_braces('{a,b}-{08..10}.tar')
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    pieces = _BRACES.split(pattern)
    choices = []
    for inside in pieces[1::2]:
        numbers = _RANGE.fullmatch(inside)
        if numbers is None:
            choices.append(inside.split(','))
            continue
        first, last = numbers.groups()
        if int(last) < int(first):
            raise ValueError(f'{{{inside}}} of {pattern!r} is empty: write {{FIRST..LAST}}')
        width = len(first) if first.startswith('0') else 0
        choices.append([f'{number:0{width}}' for number in range(int(first), int(last) + 1)])
    texts = pieces[::2]
    return [''.join(itertools.chain(*zip(texts, [*chosen, '']))) for chosen in itertools.product(*choices)]


@dataclass(frozen=True)
class ShardIndex:
    """Index of all samples.

    Args:
        shards: Paths.
        stats: Size and time of change (ns) of each, (shards, 2).
        starts: Number of its first sample, and at the end the total, (shards + 1,).
        path: File with one `ROW` per sample, in the order of the shards.
        broken: Number of incomplete samples that were left out.
        notes: What was left out, one line each.
    """

    shards: list[str]
    stats: np.ndarray
    starts: np.ndarray
    path: Path
    broken: int
    notes: list[str]

    def rows(self) -> np.ndarray:
        """The rows, mapped into memory and read-only."""
        return np.load(self.path, mmap_mode='r')


def index_shards(
    shards: Sequence[str], image: str | None = None, label: str = 'cls', broken_limit: float = 0.01
) -> ShardIndex:
    """The index of some shards; only those without an index file of their present state are read.

    Args:
        shards: Paths of uncompressed tar files.
        image: Extension of a sample's picture, such as 'jpg'; None takes the first one that is read as a picture.
        label: Extension of a sample's label.
        broken_limit: Largest tolerated share of incomplete samples, and of shards that end too early.

    Raises:
        ValueError: A shard is missing or is not a tar file, all are empty, or too many samples are broken.
    """
    stats = _stats(shards)
    settings = json.dumps([FORMAT, image, label, sorted(suffixes()) if image is None else None])
    folder = cache_folder('shards')
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(settings.encode())
    for shard, stat in zip(shards, stats, strict=True):
        digest.update(f'{os.path.abspath(shard)} {stat[0]} {stat[1]}\n'.encode())
    merged = folder / f'{digest.hexdigest()[:32]}.npy'
    summary = merged.with_suffix('.json')
    with file_lock(merged.with_suffix('.lock')):
        facts = _known(merged, summary)
        if facts is None:
            scan = partial(_index_file, settings=settings, folder=folder, image=image, label=label)
            _merge(in_processes(scan, list(zip(shards, stats.tolist(), strict=True)), cores(), 'index'), merged)
            facts = read_json(summary)
    starts, left_out = np.concatenate([[0], np.cumsum(facts['counts'])]), Counter(facts['left_out'])
    broken, cut = left_out.pop('incomplete samples', 0), facts['cut']
    if not starts[-1]:
        left_out['incomplete samples (an empty member, or a label that is not an integer from 0 on)'] = broken
        listed = ', '.join(f'{count} {kind}' for kind, count in (+left_out).items())
        raise ValueError(
            f'{len(shards)} shards from {shards[0]!r} have no sample with a picture; left out: {listed or "nothing"}'
        )
    if len(cut) > broken_limit * len(shards):
        raise ValueError(
            f'{len(cut)} of {len(shards)} shards are damaged or cut off, more than broken_limit={broken_limit}: '
            f'{few_names(cut)}; fetch them again or leave them out'
        )
    if broken > broken_limit * (starts[-1] + broken):
        raise ValueError(
            f'{broken} of {starts[-1] + broken} samples are incomplete, more than broken_limit={broken_limit}; '
            f'first: {facts["first"]}'
        )
    notes = [f'{len(cut)} of {len(shards)} shards are damaged or cut off, the rest is missing: {few_names(cut)}']
    notes = [*(notes if cut else []), *([f'{broken} incomplete samples, first: {facts["first"]}'] if broken else [])]
    if left_out:
        notes.append('left out ' + ', '.join(f'{count} {kind}' for kind, count in left_out.most_common()))
    return ShardIndex(list(shards), stats, starts, merged, broken, notes)


def _stats(shards: Sequence[str]) -> np.ndarray:
    found, missing = [], []
    for shard in shards:
        try:
            facts = os.stat(shard)
            found.append((facts.st_size, facts.st_mtime_ns))
        except OSError:
            missing.append(shard)
    if missing or not shards:
        what = f'{len(missing)} of {len(shards)} shards are missing: {few_names(missing)}' if missing else 'no shards'
        raise ValueError(f"{what}; give the existing ones, as a list or a pattern 'name-{{0000..1023}}.tar'")
    return np.array(found, np.int64)


def _known(merged: Path, summary: Path) -> dict[str, Any] | None:
    """What is known of the merged rows; None if they have to be made, or made again since a file is damaged."""
    with suppress(Exception):
        facts: dict[str, Any] = read_json(summary)
        whole = np.load(merged, mmap_mode='r').shape == (sum(facts['counts']),)
        if whole and {'cut', 'left_out', 'first'} <= set(facts):
            return facts
    return None


def _merge(files: list[Path], merged: Path) -> None:
    """Writes the rows of all index files to one, file by file; and what is known of them beside it."""
    counts, cut, left_out, first = [], [], Counter[str](), ''
    for file in files:
        facts = json.loads(str(np.load(file)['facts']))
        counts.append(facts['count'])
        cut += facts['cut']
        left_out.update(facts['left_out'])
        first = first or facts['first']

    def write(path: Path) -> None:
        header = {'descr': np.lib.format.dtype_to_descr(ROW), 'fortran_order': False, 'shape': (sum(counts),)}
        with open(path, 'wb') as out:
            np.lib.format.write_array_header_1_0(out, header)
            for file in files:
                out.write(np.load(file)['rows'].tobytes())

    write_atomic(merged, write)
    text = json.dumps({'counts': counts, 'cut': cut, 'left_out': left_out, 'first': first})
    write_atomic(merged.with_suffix('.json'), lambda path: path.write_text(text))


def _index_file(shard: tuple[str, list[int]], settings: str, folder: Path, image: str | None, label: str) -> Path:
    """The index file of one shard, written if there is none of its present state."""
    path, stat = shard
    key = json.dumps([settings, stat])
    name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:32]
    places = [Path(f'{path}.index.npz'), folder / f'{name}.index.npz']
    for place in places:
        # a damaged archive raises almost anything, when opened or when an entry is read: the shard is read again
        with suppress(Exception), np.load(place) as content:
            if str(content['key']) == key and content['rows'].dtype == ROW and json.loads(str(content['facts'])):
                return place
    rows, facts = _scan(path, image, label)
    content = {'rows': rows, 'facts': np.array(json.dumps(facts)), 'key': np.array(key)}

    def write(temporary: Path) -> None:
        with open(temporary, 'wb') as out:
            np.savez(out, allow_pickle=False, **content)

    try:
        write_atomic(places[0], write)
    except OSError:  # somebody else's folder
        write_atomic(places[1], write)
        return places[1]
    return places[0]


def _scan(path: str, image: str | None, label: str) -> tuple[np.ndarray, dict[str, object]]:
    """Rows of a shard, and facts: number of samples, whether it is cut off, what was left out."""
    left_out, rows, first = Counter[str](), [], ''
    size, known = os.path.getsize(path), suffixes()
    try:
        with tarfile.open(path, 'r:') as tar:
            for key, members in itertools.groupby(_members(tar), key=lambda pair: pair[0]):
                row, number = None, -1
                faults = set()
                for _, (extension, member) in members:
                    is_picture = (
                        extension == image if image else f'.{extension.rpartition(".")[2]}' in known and row is None
                    )
                    if not (is_picture or extension == label):
                        left_out['other members'] += 1
                    elif member.offset_data + member.size > size or not member.size:
                        faults.add('incomplete samples')
                    elif is_picture:
                        row = (member.offset_data, member.size)
                    else:
                        number = _label(tar, member)
                        faults |= {'incomplete samples'} if number < 0 else set()
                if faults:
                    first = first or f'{path}/{key}'
                    left_out['incomplete samples'] += 1
                elif row is None:
                    left_out['samples without a picture'] += 1
                else:
                    rows.append((*row, number))
            whole = _ended_well(path, tar.offset)
    except tarfile.ReadError as error:
        if not rows and not left_out:
            raise ValueError(f'shard {path!r} is not an uncompressed tar file: {error}') from None
        whole = False
    facts = {'count': len(rows), 'cut': [] if whole else [path], 'left_out': left_out, 'first': first}
    return np.array(rows, ROW), facts


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, tuple[str, tarfile.TarInfo]]]:
    """(key, (extension, member)) of the files; the key ends at the first dot of the file's name, as in WebDataset."""
    for member in tar:
        folder, _, name = member.name.rpartition('/')
        if member.isreg() and not name.startswith('.'):
            key, _, extension = name.partition('.')
            yield f'{folder}/{key}', (extension.lower(), member)
        tar.members = []  # type: ignore[attr-defined] # otherwise it keeps all of them


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = file.read(32) if file else b''
    return int(text) if text.strip().isdigit() and int(text) < MOST_CLASSES else -1


def _ended_well(path: str, offset: int) -> bool:
    """Whether the block at which reading stopped is the end marker: at anything else tarfile stops silently."""
    with open(path, 'rb') as file:
        file.seek(offset)
        block = file.read(_BLOCK)
    return len(block) == _BLOCK and not block.strip(b'\0')
