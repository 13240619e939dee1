"""Tar shards: the index, the order over 1 to 64 ranks, what is left out, and what is lost."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pinas_cli.main import main
from pinas_zoo.data import FourViews, ImageReader, LostShardError, open_source
from pinas_zoo.data.shard_index import expand_braces
from pinas_zoo.data.shards import ShardOrder

SHARDS, EACH = 5, 7


def picture(shade: int, kind: str = 'PNG') -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (12, 10), (shade % 256, shade // 256, 7)).save(file, kind)
    return file.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, 'w') as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(shard: int, count: int = EACH) -> list[tuple[str, bytes]]:
    numbers = [shard * 100 + number for number in range(count)]
    return [
        pair
        for n in numbers
        for pair in ((f'{n:06}.png', picture(n)), (f'{n:06}.cls', b'%d\n' % (n % 3)), (f'{n:06}.json', b'{}'))
    ]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PINAS_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr('pinas_zoo.data.shard_index.cores', lambda: 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(SHARDS):
        write_shard(tmp_path / f'train-{shard:02}.tar', samples(shard))
    return tmp_path


def source(folder: Path, **settings: Any) -> Any:
    spec = {'kind': 'shards', 'shards': 'train-{00..04}.tar', 'root': str(folder), **settings}
    return open_source(spec)


def test_braces() -> None:
    assert expand_braces('a.tar') == ['a.tar']
    assert expand_braces('{9..11}') == ['9', '10', '11'] and expand_braces('x{07,b}') == ['x07', 'xb']
    with pytest.raises(ValueError, match='FIRST'):
        expand_braces('{3..1}')


def test_pictures_labels_and_names(folder: Path) -> None:
    data = source(folder)
    assert len(data) == SHARDS * EACH and data.classes == ('0', '1', '2')
    for index in (0, 6, 7, 20, 34):
        number = index // EACH * 100 + index % EACH
        assert data.load(index)[:, 3, 4].tolist() == [number % 256, number // 256, 7]
        assert data.label(index) == number % 3
        assert data.name(index) == f'{folder}/train-{number // 100:02}.tar/{number:06}.png'
    assert data.notes == ['shards: left out 35 other members'] and data.look() == data.notes
    assert data.description['shards'] == SHARDS and data.description['broken'] == 0
    again = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 5000 and torch.equal(again.load(20), data.load(20))
    view = FourViews(data, size=8)[3]
    assert view['views'].shape == (4, 3, 8, 8) and view['broken'] == 0
    assert source(folder, label='none').classes == () and source(folder, label='none').label(3) == -1
    with pytest.raises(ValueError, match='has label 2, allowed are 0 to 1'):
        source(folder, classes=['a', 'b'])


def test_the_index_is_written_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source(folder)
    monkeypatch.setattr('pinas_zoo.data.shard_index._scan', lambda path, *_: pytest.fail(f'{path} is read again'))
    assert np.array_equal(source(folder).rows, first.rows)
    assert len(source(folder, shards=['train-{00..01}.tar', 'train-04.tar'])) == 3 * EACH  # merged from the same files
    scanned: list[str] = []
    monkeypatch.undo()
    monkeypatch.setenv('PINAS_CACHE_DIR', str(folder / 'cache'))
    from pinas_zoo.data import shard_index

    scan = shard_index._scan
    monkeypatch.setattr(shard_index, '_scan', lambda path, *rest: scanned.append(path) or scan(path, *rest))
    monkeypatch.setattr(shard_index, 'cores', lambda: 1)
    write_shard(folder / 'train-02.tar', samples(2, 3))
    assert len(source(folder)) == 4 * EACH + 3 and scanned == [str(folder / 'train-02.tar')]


def test_a_folder_of_others_is_indexed_in_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pinas_zoo.data import shard_index

    write = shard_index.write_atomic

    def refuse(path: Path, function: Any) -> None:
        if Path(path).parent == folder:
            raise PermissionError(13, 'read-only')
        write(path, function)

    monkeypatch.setattr(shard_index, 'write_atomic', refuse)
    assert len(source(folder)) == SHARDS * EACH and not list(folder.glob('*.npz'))


def test_incomplete_members_are_counted_under_a_limit(folder: Path) -> None:
    members = samples(0)
    members[1] = ('000000.cls', b'cat')
    members[3] = ('000001.png', b'')
    write_shard(folder / 'train-00.tar', [('notes.txt', b'x'), *members])
    with pytest.raises(ValueError, match=r'2 of 35 samples are incomplete, more than broken_limit=0.01.*/000000'):
        source(folder)
    data = source(folder, broken_limit=0.1)
    assert len(data) == SHARDS * EACH - 2 and data.description['broken'] == 2
    assert data.notes[0].startswith('shards: 2 incomplete samples') and '1 samples without a picture' in data.notes[1]


def test_pictures_that_do_not_decode_are_replaced(folder: Path) -> None:
    members = samples(1)
    members[0] = ('000100.png', b'no picture at all')
    write_shard(folder / 'train-01.tar', members)
    reader = ImageReader(source(folder))
    sample = reader.sample(EACH)[1]
    assert sample['broken'] == 1 and list(reader.broken) == [f'{folder}/train-01.tar/000100.png']
    assert f"'{folder}/train-01.tar/000100.png'" in next(iter(reader.broken.values()))


@pytest.mark.parametrize('damage', ['cut', 'header', 'no end'])
def test_a_damaged_shard_is_named(damage: str, folder: Path) -> None:
    path = folder / 'train-03.tar'
    content = bytearray(path.read_bytes())
    if damage == 'cut':
        content = content[: 512 * 17 + 100]
    elif damage == 'header':
        content[512 * 12 : 512 * 13] = b'\xff' * 512  # where tarfile stops silently
    else:
        content = content[: 512 * 2 * 6 * 3]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'1 of 5 shards are damaged or cut off.*train-03\.tar'):
        source(folder)
    data = source(folder, broken_limit=0.2)
    assert 4 * EACH < len(data) < 5 * EACH and 'train-03.tar' in data.notes[0]
    assert data.load(len(data) - 1).shape == (3, 10, 12)


def test_shards_are_indexed_before_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['prepare', 'shards', 'train-{00..04}.tar', '--root', str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith('5 shards with 35 images') and json.loads(lines[-1])['classes'] == 3
    assert len(list(folder.glob('train-*.tar.index.npz'))) == SHARDS


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r'2 of 7 shards are missing: \(.*train-05.tar, .*train-06.tar\)'):
        source(folder, shards='train-{00..06}.tar')
    (folder / 'x.tar').write_text('no tar')
    with pytest.raises(ValueError, match=r'x.tar. is not an uncompressed tar file'):
        source(folder, shards='x.tar')
    with pytest.raises(ValueError, match='twice'):
        source(folder, shards=['train-{00..03}.tar', 'train-01.tar'])
    write_shard(folder / 'x.tar', [('a.txt', b'x')])
    with pytest.raises(ValueError, match='no sample with a picture'):
        source(folder, shards='x.tar')
    for wrong in ({'window': 0}, {'broken_limit': 2}):
        with pytest.raises(ValueError, match='allowed: a window'):
            source(folder, **wrong)


def test_a_shard_lost_during_the_run_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = source(folder)
    (folder / 'train-02.tar').rename(folder / 'gone')
    with pytest.raises(LostShardError, match=r"train-02.tar' was lost"):
        ImageReader(data).sample(2 * EACH)
    assert data.name(2 * EACH).endswith('train-02.tar@512')
    write_shard(folder / 'train-04.tar', samples(4, 2))
    with pytest.raises(LostShardError, match=r"train-04.tar' changed since it was indexed"):
        data.load(4 * EACH)
    monkeypatch.setattr('pinas_zoo.data.shards.OPEN', 1)
    before = len(os.listdir('/proc/self/fd'))
    assert [data.load(index).shape for index in (0, 8, 0, 24)] == [(3, 10, 12)] * 4
    assert len(os.listdir('/proc/self/fd')) <= before + 1


# ---- the order -------------------------------------------------------------------------------------------------------


@pytest.mark.mm
@pytest.mark.parametrize('ranks', [1, 2, 8, 64])
def test_ranks_read_every_sample_once_per_epoch(ranks: int) -> None:
    """200 shards of unequal length, three epochs; a stopped run continues with the same samples."""
    pytest.importorskip('mmengine')
    from pinas_zoo.data.sources import Source
    from pinas_zoo.mm.engine.batches import StatelessSampler

    lengths = np.random.default_rng(1).integers(5, 60, 200)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    size, window = int(starts[-1]), 4

    class Shards(Source):
        labels = np.zeros(size, np.int8)

        def epoch_order(self, seed: int, epoch: int, world_size: int) -> ShardOrder:
            return ShardOrder(starts, seed, epoch, world_size, window)

    dataset = type('View', (), {'source': Shards(), '__len__': lambda self: size})()
    epochs: list[list[int]] = [[], [], []]
    opened: list[int] = []
    for rank in range(ranks):
        sampler = StatelessSampler(dataset, seed=3)
        sampler.rank, sampler.world_size = rank, ranks
        count = len(range(rank, 3 * size, ranks))
        iterator = iter(sampler)
        drawn = [next(iterator) for _ in range(count)]
        assert [draw for _, draw in drawn] == list(range(rank, 3 * size, ranks))
        for index, draw in drawn:
            epochs[draw // size].append(index)
        sampler.start = count // 3 + rank
        resumed = iter(sampler)
        left = drawn[sampler.start :][:200]
        assert [next(resumed) for _ in left] == left
        shards = np.searchsorted(starts, [index for index, draw in drawn if draw < size], side='right') - 1
        opened.append(len(set(shards.tolist())))
        # Within any run of samples, only the shards of one or two windows are read.
        assert all(len(set(shards[i : i + 20].tolist())) <= 2 * window for i in range(0, len(shards), 20))
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs) and epochs[0] != epochs[1]
    # Every shard is read by one rank, except those at which two ranks meet.
    assert sum(opened) <= 200 + ranks - 1


def test_views_of_a_part_fall_back_to_any_order(folder: Path) -> None:
    pytest.importorskip('mmengine')
    from pinas_zoo.mm.engine.batches import StatelessSampler

    whole, half = FourViews(source(folder)), FourViews(source(folder, part='train', holdout=10))
    for view in (whole, half):
        iterator = iter(StatelessSampler(view, seed=0))
        assert sorted(next(iterator)[0] for _ in range(len(view))) == list(range(len(view)))
    assert isinstance(StatelessSampler(whole, seed=0)._order(0, len(whole)), ShardOrder)
    assert isinstance(StatelessSampler(half, seed=0)._order(0, len(half)), np.ndarray)


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from pinas_zoo.data import shard_index
from pinas_zoo.data.shards import ShardSource

def anonymous():
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon'))

folder, each = Path(sys.argv[1]), 10_000
content = np.zeros(each, shard_index.ROW)
content['label'] = np.arange(each) % 1000
facts = {'count': each, 'cut': [], 'left_out': {}, 'first': ''}
def scan(pair, **_):
    return index
index = folder / 'one.npz'
np.savez(index, rows=content, facts=np.array(__import__('json').dumps(facts)))
for number in range(1000):
    (folder / f'{number:04}.tar').touch()
shard_index._index_file, shard_index.cores = scan, lambda: 1
for shards in (100, 1000):
    before = anonymous()
    source = ShardSource(f'{{0000..{shards - 1:04}}}.tar', folder)
    order = source.epoch_order(0, 0, 8)
    for position in range(0, len(source), 8 * 97):
        source.label(order[position])
    print(len(source), anonymous() - before)
"""


def test_memory_does_not_grow_with_the_entries(tmp_path: Path) -> None:
    """One million and ten million entries: opened, merged and read through in the order of an epoch."""
    command = [sys.executable, '-c', MEASURE, str(tmp_path)]
    lines = subprocess.check_output(command, text=True, env=dict(os.environ, OMP_NUM_THREADS='1')).splitlines()
    grown = {int(size): int(kilobytes) for size, kilobytes in map(str.split, lines)}
    assert set(grown) == {10**6, 10**7}
    # In memory the index alone would take 160,000; the first opening also warms things up.
    assert max(grown.values()) < 32_000, f'kB of anonymous memory by entries: {grown}'
    print('kB of anonymous memory by number of entries:', grown)
