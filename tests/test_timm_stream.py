"""timm's streams as a source: split over ranks and workers, continued, and refused where images need an index."""

from __future__ import annotations

import io
import json
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pinas_zoo.data import SupervisedView, open_source

SHARDS, EACH = 4, 6
wds = pytest.mark.skipif(find_spec('webdataset') is None, reason='webdataset is not installed')


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    """Four shards of six pictures; the shade of each is its number, its label the number modulo 3."""
    folder = tmp_path_factory.mktemp('wds')
    names = [f'train-{shard}.tar' for shard in range(SHARDS)]
    for shard, name in enumerate(names):
        with tarfile.open(folder / name, 'w') as tar:
            for number in range(shard * EACH, (shard + 1) * EACH):
                file = io.BytesIO()
                Image.new('RGB', (8, 8), (number, 0, 0)).save(file, 'PNG')
                for key, content in (('png', file.getvalue()), ('cls', b'%d' % (number % 3))):
                    member = tarfile.TarInfo(f'{number:04}.{key}')
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    split = dict(name='train', num_samples=SHARDS * EACH, filenames=names, shard_lengths=[EACH] * SHARDS)
    (folder / '_info.json').write_text(json.dumps({'splits': {'train': split}}))
    return folder


def spec(root: Path, **settings: Any) -> dict[str, Any]:
    return dict(kind='timm', name='wds/numbers', root=str(root), **settings)


def read(source: Any, batches: int, workers: int = 0, start: int = 0, seed: int = 5, batch_size: int = 3) -> np.ndarray:
    """(batches, batch_size): the shades that a training reads from batch `start` on."""
    from pinas_zoo.mm.engine.batches import StatelessSampler, start_batches
    from pinas_zoo.mm.engine.loop import SeededDataset

    view = SeededDataset(SupervisedView(source, size=8, finish=False, crop_pct=1.0), seed=seed)
    loader = DataLoader(
        view, batch_size, sampler=StatelessSampler(view, seed=seed), num_workers=workers, generator=torch.Generator()
    )
    start_batches(loader, start)
    rows = []
    for batch, _ in zip(loader, range(batches), strict=False):
        shades = batch['image'][:, 0, 0, 0]
        assert torch.equal(batch['label'], shades.long() % 3)
        rows.append(shades.tolist())
    return np.array(rows)


@wds
@pytest.mark.mm
class TestReading:
    @pytest.mark.parametrize('ranks, workers', [(1, 0), (1, 2), (2, 2)])
    def test_every_image_once_per_epoch_over_ranks_and_workers(self, root, monkeypatch, ranks, workers):
        monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: ranks > 1)
        monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: ranks)
        monkeypatch.setattr('pinas_zoo.mm.engine.batches.get_dist_info', lambda: (0, ranks))
        epochs: list[list[int]] = [[], []]
        for rank in range(ranks):
            monkeypatch.setattr(torch.distributed, 'get_rank', lambda rank=rank: rank)
            found = read(open_source(spec(root)), 2 * SHARDS * EACH // 3 // ranks, workers)
            for epoch, part in enumerate(np.array_split(found, 2)):
                epochs[epoch] += part.ravel().tolist()
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(SHARDS * EACH))
        assert epochs[0] != epochs[1]

    @pytest.mark.parametrize('workers, start', [(0, 3), (0, 11), (2, 6), (2, 10)])
    def test_a_continued_run_reads_the_same_images(self, root, workers, start):
        source = open_source(spec(root))
        whole = read(source, 14, workers)
        assert np.array_equal(read(source, 14 - start, workers, start), whole[start:])
        assert not np.array_equal(read(source, 14, workers, seed=6), whole)

    def test_a_place_that_is_not_exact_is_told(self, root, caplog):
        read(open_source(spec(root)), 2, workers=2, start=3)
        assert 'iteration 3 is not a multiple of 2 workers' in caplog.text

    def test_more_workers_than_shards(self, root):
        with pytest.raises(ValueError, match='worker 0 of rank 0 got no image of wds/numbers: are there fewer shards'):
            read(open_source(spec(root, split='train-9.tar', num_samples=8)), 1, workers=1)


@wds
class TestSource:
    def test_what_it_says(self, root):
        source = open_source(spec(root))
        assert len(source) == SHARDS * EACH and source.description['images'] == SHARDS * EACH and source.look() == []
        part = open_source(spec(root, split='train-{0..1}.tar', num_samples=12))
        assert len(part) == 12 and part.look() == []

    def test_where_images_need_an_index(self, root):
        source = open_source(spec(root))
        with pytest.raises(ValueError, match='is a stream, which only a training with StatelessSampler reads'):
            source.load(0)
        source.begin(0, 0)
        source.load(0)
        with pytest.raises(ValueError, match='only the label of the image that was read last is known'):
            source.label(1)
        with pytest.raises(ValueError, match='a stream has no parts'):
            open_source(spec(root, part='train', holdout=4))

    def test_faults(self, root, tmp_path):
        with pytest.raises(ValueError, match="kind='timm', 'wds/numbers' in .*split val not found"):
            open_source(spec(root, split='val'))
        with pytest.raises(ValueError, match="does not say how many images 'train-0.tar' has: give num_samples"):
            open_source(spec(root, split='train-0.tar'))
        with pytest.raises(ValueError, match='needs the root'):
            open_source(dict(kind='timm', name='wds/numbers'))
        (tmp_path / 'bad.tar').write_bytes(b'no tar')
        with pytest.raises(ValueError, match='no image of wds/numbers can be read'):
            open_source(spec(tmp_path, split='bad.tar', num_samples=3)).look()


def test_without_webdataset(root, monkeypatch):
    import timm.data.readers.reader_wds as reader

    monkeypatch.setattr(reader, 'wds', None)
    with pytest.raises(ImportError, match='needs the package webdataset: pip install webdataset'):
        open_source(spec(root))


@pytest.mark.mm
@pytest.mark.skipif(find_spec('datasets') is None, reason='datasets is not installed')
def test_a_hugging_face_stream(tmp_path):
    for number in range(6):
        path = tmp_path / 'set' / 'train' / 'abc'[number % 3] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (number, 0, 0)).save(path)
    wanted = dict(kind='timm', name=f'hfids/{tmp_path}/set', root=str(tmp_path / 'cache'), num_samples=6)
    source = open_source(wanted)
    assert len(source) == 6 and source.look() == []
    whole = read(source, 4)
    assert sorted(whole[:2].ravel()) == sorted(whole[2:].ravel()) == list(range(6))
    assert np.array_equal(read(source, 1, start=3), whole[3:])
