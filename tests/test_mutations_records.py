"""Readers of sets on disk, shards, records and checkpoints against 200 damaged copies of a good file."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import refusals
from PIL import Image

from pinas_zoo.data import open_source
from pinas_zoo.data.imports.camvid import check_camvid
from pinas_zoo.data.scenes.prepare import _read_manifest
from pinas_zoo.data.trees.coco import COCO
from pinas_zoo.data.trees.label_maps import _classes_in
from pinas_zoo.data.trees.layout import MINI_FILE
from pinas_zoo.data.trees.mini import _read_mini
from pinas_zoo.data.trees.train_ids import convert
from pinas_zoo.files import read_json
from pinas_zoo.models.latency import Check, Conditions, Interval, LatencyTable
from pinas_zoo.ranking.macro import FIELDS, read_table
from pinas_zoo.report.curves import read_run
from pinas_zoo.space import PINAS_TINY

Read = Callable[[], object]
SIZE = (12, 10)


def labels(path: Path, values: int) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, values, SIZE[::-1], dtype=np.uint8)).save(path)


def latency_json(path: Path) -> Read:
    width, height = Interval(1.0, 0.9, 1.1), len(PINAS_TINY.candidates)
    conditions = Conditions('a cpu', 'cpu', 1, '2', 'float32', 1, (28, 28), False, 10)
    positions = sum(PINAS_TINY.depths)
    arch = PINAS_TINY.format((0,) * positions)
    row = (width,) * height
    table = LatencyTable(
        PINAS_TINY, conditions, {'stem': width, 'head': width}, (row,) * positions, (Check(arch, width, 1.0),), 1.0
    )
    table.save(path)
    return lambda: LatencyTable.read(path)


def best_json(path: Path) -> Read:
    path.write_text(json.dumps({'arch': '30-32-20-03', 'top1': 50.0}, indent=1))
    return lambda: read_json(path, 'arch')


def scalars_json(path: Path) -> Read:
    path.write_text(''.join(json.dumps({'loss': 1 / i, 'lr': 0.1, 'step': i}) + '\n' for i in range(1, 6)))
    return lambda: read_run(path)


def table_json(path: Path) -> Read:
    archs = [PINAS_TINY.format((index,) * sum(PINAS_TINY.depths)) for index in range(2)]
    path.write_text(json.dumps({arch: {key: [90.0] for key in FIELDS} for arch in archs}, indent=1))
    return lambda: read_table(path, PINAS_TINY, None)


def manifest_json(path: Path) -> Read:
    path.write_text(json.dumps({'settings': {'size': 128, 'train': 10}, 'files': 3}, indent=1))
    return lambda: _read_manifest(path.parent, {'size': 128, 'train': 10}, False)


def mini_json(path: Path) -> Read:
    path.write_text(json.dumps({'counts': [4, 4], 'seed': 0}, indent=1))
    return lambda: (COCO.expecting(path.parent), _read_mini(path.parent, {'seed': 0}, False))


def coco_json(path: Path) -> Read:
    images = [{'id': i, 'file_name': f'{i}.jpg', 'height': 9, 'width': 9} for i in (1, 2)]
    box = {'category_id': 1, 'bbox': [1, 1, 5, 5], 'area': 25, 'iscrowd': 0}
    annotations = [{'id': i, 'image_id': 1 + i % 2, **box} for i in range(1, 5)]
    content = {'images': images, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'cat'}]}
    path.write_text(json.dumps(content, indent=1))
    tree = COCO.expecting(path.parents[1], (2, 2))

    def read() -> None:
        if found := tree.annotation_problems(path.parents[1], {part: ['1.jpg', '2.jpg'] for part in tree.parts}):
            raise ValueError(str(found[0]))
        tree.presence(path.parents[1], 'train', 1, None)

    return read


def camvid_map(path: Path) -> Read:
    for split in ('train', 'val'):
        for folder in (split, f'{split}annot'):
            (path.parents[1] / folder).mkdir(exist_ok=True)
        Image.new('RGB', SIZE).save(path.parents[1] / split / path.name)
        labels(path.parents[1] / f'{split}annot' / path.name, 12)
    return lambda: check_camvid(path.parents[1], '')


def camvid_picture(path: Path) -> Read:
    read = camvid_map(path)
    return read


def label_ids(path: Path) -> Read:
    labels(path, 34)
    return lambda: convert(path)


def ade_map(path: Path) -> Read:
    labels(path, 150)
    return lambda: _classes_in(path, 1, 150)


def shard(path: Path, folder: Path | None = None) -> Read:
    """Reads pictures and labels; with the cache as `folder`, the index files stay and the merged ones do not."""
    with tarfile.open(path, 'w') as tar:
        for number in range(4):
            picture = io.BytesIO()
            Image.new('RGB', (4, 4), (number, 0, 0)).save(picture, 'PNG')
            for end, content in (('png', picture.getvalue()), ('cls', b'%d' % number)):
                member = tarfile.TarInfo(f'{number:03d}.{end}')
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    def read() -> None:
        if folder is None:
            Path(f'{path}.index.npz').unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        source = open_source({'kind': 'shards', 'shards': str(path), 'broken_limit': 0.9})
        found = [(int(source.load(index)[0, 0, 0]), source.label(index)) for index in range(len(source))]
        assert folder is None or found == [(number, number) for number in range(4)]

    return read


#: The file, what makes it, and its readers: those of an index read the shard again, so none is refused.
CASES: dict[str, Callable[[Path], Read]] = {
    'latency.json': latency_json,
    'best.json': best_json,
    'scalars.json': scalars_json,
    'table.json': table_json,
    'manifest.json': manifest_json,
    MINI_FILE: mini_json,
    'annotations/instances_train2017.json': coco_json,
    'trainannot/map.png': camvid_map,
    'train/picture.png': camvid_picture,
    'x_labelIds.png': label_ids,
    'ade.png': ade_map,
    'shard.tar': shard,
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', CASES)
def test_damaged_sets_and_records_are_read_or_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('PINAS_CACHE_DIR', str(tmp_path / 'cache'))
    path = tmp_path / 'set' / name
    path.parent.mkdir(parents=True)
    read = CASES[name](path)
    assert refusals(path, read, lambda line: path.stem in line or str(path.parent) in line) > 0


@pytest.mark.parametrize('name', ['shard.tar.index.npz', 'cache/shards/*.json'])
def test_damaged_indices_are_made_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv('PINAS_CACHE_DIR', str(tmp_path / 'cache'))
    read = shard(tmp_path / 'shard.tar', tmp_path / ('cache' if name.endswith('.npz') else 'none'))
    read()
    (file,) = tmp_path.glob(name)
    assert refusals(file, read, bool, name.replace('*', 'merged')) == 0
    (rows,) = (tmp_path / 'cache/shards').glob('*.npy')
    rows.write_bytes(rows.read_bytes()[:-20])
    read()


@pytest.mark.mm
def test_damaged_checkpoints(tmp_path: Path):
    """Those that mmengine loads, to resume or to start from, and those whose config and seed are read before."""
    pytest.importorskip('mmengine')
    from mmengine.runner.checkpoint import CheckpointLoader

    from pinas_zoo.mm.engine.checkpoint_content import saved_seed
    from pinas_zoo.mm.preflight.findings import BadInputError

    path = tmp_path / 'iter_3.pth'
    engine = {'seed': 0, 'config': json.dumps({'a': 1})}
    torch.save({'state_dict': {'a': torch.arange(12.0)}, 'meta': {'iter': 3}, 'engine': engine}, path)

    def read() -> None:
        kinds = []
        for load in (partial(CheckpointLoader.load_checkpoint, logger='silent'), saved_seed):
            try:
                load(str(path))
            except BadInputError as error:
                kinds.append(str(error))
        if kinds:
            raise BadInputError(kinds[0])

    assert refusals(path, read, lambda line: line.startswith(str(path)) and '\n' not in line) > 100
    for content, reason in ((b'', 'it is empty'), (b'<html>no such page</html>', "it begins with b'<html>no such pa'")):
        path.write_bytes(content)
        with pytest.raises(BadInputError, match=f'not a readable torch archive: .*{reason}'):
            saved_seed(path)


SEARCH, NETWORK = 'configs/quickstart/pinas-nano-tree_128_fmnist.py', 'checkpoints/pinas_nano_a.fmnist.py'
COMMANDS = (
    ('derive', SEARCH, '--checkpoint', 'no.pth', '--arch', 'FILE.json', '--out', 'o.safetensors'),
    ('derive', SEARCH, '--checkpoint', 'FILE.pth', '--arch', '30-32-20-03', '--out', 'o.safetensors'),
    ('search', SEARCH, '--checkpoint', 'FILE.pth'),
    ('test', SEARCH, 'FILE.pth', '--cfg-options', 'arch=30-32-20-03'),
    ('test', NETWORK, 'FILE.pth'),
    ('train', NETWORK, '--resume', 'FILE.pth'),
)


@pytest.mark.mm
@pytest.mark.parametrize('words', COMMANDS, ids=' '.join)
def test_a_missing_or_damaged_file_is_one_line(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip('mmengine')
    from pinas_cli.main import main

    monkeypatch.chdir(Path(__file__).parents[1])
    file = str(tmp_path / 'FILE')
    words = tuple(word.replace('FILE', file) for word in words)
    more = () if words[0] == 'derive' else ('--work-dir', str(tmp_path / 'run'))
    for content in (None, b'{'):
        if content is not None:
            for end in ('json', 'pth'):
                Path(f'{file}.{end}').write_bytes(content)
        assert main([*words, *more]) == 1
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.startswith(f'pinas {words[0]}: error: ') and f'{file}.' in line
