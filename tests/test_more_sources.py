"""CIFAR's files and timm's readers as sources: what is read, what is refused, and the same order every time."""

import hashlib
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets

from pinas_zoo.data import BatchedViews, SupervisedView, open_source
from pinas_zoo.data.cifar import CIFAR10Source, CIFAR100Source

KINDS = {'cifar10': (CIFAR10Source, datasets.CIFAR10), 'cifar100': (CIFAR100Source, datasets.CIFAR100)}


def write_pickle(path: Path, value: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=KINDS)
def cifar(request, tmp_path, monkeypatch):
    """A folder with files of torchvision's names and small random images, whose hashes count as the originals'."""
    cls, real = KINDS[request.param]
    draw, pixels = np.random.default_rng(0), {}
    names = {'train': [name for name, _ in real.train_list], 'test': [name for name, _ in real.test_list]}
    stand_in = type('Files', (real,), {'meta': dict(real.meta), 'train_list': [], 'test_list': []})
    for split, files in names.items():
        for name in files:
            data, labels = draw.integers(0, 256, (4, 3072), dtype=np.uint8), [3, 1, 4, 1]
            md5 = write_pickle(tmp_path / real.base_folder / name, {'data': data, cls.label_key: labels})
            getattr(stand_in, f'{split}_list').append([name, md5])
            pixels.setdefault(split, []).append(data)
    classes = {real.meta['key']: [f'class {i}' for i in range(10)]}
    stand_in.meta['md5'] = write_pickle(tmp_path / real.base_folder / real.meta['filename'], classes)
    monkeypatch.setattr(cls, 'files', stand_in)
    return request.param, tmp_path, {split: np.concatenate(parts) for split, parts in pixels.items()}


def test_cifar(cifar, monkeypatch):
    kind, root, pixels = cifar
    source = open_source(dict(kind=kind, split='train', root=root))
    assert len(source) == len(pixels['train']) and source.classes[3] == 'class 3' and source.label(2) == 4
    assert np.array_equal(source.load(3).numpy(), pixels['train'][3].reshape(3, 32, 32))
    assert source.name(3) == f'{kind}/train/3' and source.description['images'] == len(source)
    part = open_source(dict(kind=kind, split='test', root=root, seed=1))
    images, labels = part.tensors()
    assert images.shape == (4, 3, 32, 32) and labels.tolist() == [part.label(i) for i in range(4)]
    assert torch.equal(images[2], part.load(2))
    assert SupervisedView(source, size=32).preprocess['crop_pct'] == 1.0
    assert BatchedViews(source, size=32)[0] is not None
    monkeypatch.setenv('PINAS_CACHE_DIR', str(root / 'cache'))
    (root / 'cache').mkdir()
    os.rename(root, moved := root.with_name('moved'))
    os.makedirs(root / 'cache')
    os.rename(moved, root / 'cache' / kind)
    assert torch.equal(open_source(dict(kind=kind, split='train', download=False)).load(3), source.load(3))


def test_cifar_that_is_not_the_original(cifar):
    kind, root, _ = cifar
    file = next(path for path in root.rglob('*') if path.is_file() and 'test' in path.name)
    original = file.read_bytes()
    file.write_bytes(original + b' ')
    with pytest.raises(ValueError, match=r'test\S* are not the originals \(md5\)'):
        open_source(dict(kind=kind, split='train', root=root))
    file.unlink()
    with pytest.raises(ValueError, match=r'lacks test\S*\. Give a root'):
        open_source(dict(kind=kind, split='train', root=root))


def test_cifar_executes_nothing(cifar):
    """Even with the right hash, a file that names a function is refused."""
    kind, root, _ = cifar
    cls = KINDS[kind][0]

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(root / 'executed'),)

    name = cls.files.test_list[0][0]
    cls.files.test_list[0][1] = write_pickle(root / cls.files.base_folder / name, Evil())
    with pytest.raises(ValueError, match='mkdir is not allowed'):
        open_source(dict(kind=kind, split='test', root=root))
    assert not (root / 'executed').exists()


def test_cifar_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv('PINAS_CACHE_DIR', str(tmp_path))
    monkeypatch.setenv('PINAS_OFFLINE', '1')
    with pytest.raises(ValueError, match=r'not downloaded, \$PINAS_OFFLINE is set'):
        open_source(dict(kind='cifar10', split='train'))
    with pytest.raises(ValueError, match="split='val'"):
        open_source(dict(kind='cifar10', split='val'))


# ---- timm ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def pictures(tmp_path_factory) -> Path:
    """Two classes of three pictures, as a folder, and as one tar beside it."""
    root = tmp_path_factory.mktemp('timm')
    for number in range(6):
        path = root / 'folder' / ('ant', 'bee')[number % 2] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (20, 16), (40 * number, number, 0)).save(path)
    with tarfile.open(root / 'all.tar', 'w') as archive:
        for path in sorted((root / 'folder').rglob('*.png')):
            archive.add(path, path.relative_to(root / 'folder'))
    return root


@pytest.mark.parametrize('form', ['folder', 'all.tar'])
def test_timm(pictures, form):
    """The same images as our own folder source, also from workers; the order is the same every time."""
    source = open_source(dict(kind='timm', root=str(pictures / form)))
    own = open_source(dict(kind='folder', root=str(pictures / 'folder')))
    assert source.classes == own.classes and source.labels.tolist() == own.labels.tolist()
    assert all(torch.equal(source.load(i), own.load(i)) for i in range(6))
    assert Path(own.name(4)).name == Path(source.name(4)).name
    assert source.look() == [] and source.description['images'] == 6
    loader = DataLoader(SupervisedView(source, size=16), batch_size=2, num_workers=2)
    workers = torch.cat([batch['image'] for batch in loader])
    assert torch.equal(workers, torch.stack([SupervisedView(own, size=16)[i]['image'] for i in range(6)]))
    again = open_source(dict(kind='timm', root=str(pictures / form), part='train', holdout=2, seed=3))
    other = open_source(dict(kind='folder', root=str(pictures / 'folder'), part='train', holdout=2, seed=3))
    assert again.labels.tolist() == other.labels.tolist() and torch.equal(again.load(1), other.load(1))
    assert not list(pictures.glob('*.pickle'))  # timm's index of a tar


def test_timm_faults(pictures, tmp_path):
    with pytest.raises(ValueError, match='tfds/ is not supported'):
        open_source(dict(kind='timm', name='tfds/x', root=str(pictures)))
    with pytest.raises(ValueError, match='num_samples=3 is for streams'):
        open_source(dict(kind='timm', root=str(pictures / 'folder'), num_samples=3))
    with pytest.raises(ValueError, match='needs an existing root'):
        open_source(dict(kind='timm', root=str(tmp_path / 'nothing')))
    with pytest.raises(ValueError, match="kind='timm'"):
        open_source(dict(kind='timm', root=str(tmp_path)))
    damaged = tmp_path / 'one' / 'a.png'
    damaged.parent.mkdir()
    damaged.write_bytes(b'no picture')
    with pytest.raises(ValueError, match=r"do not decode: cannot read image 'one/a.png'"):
        open_source(dict(kind='timm', root=str(tmp_path))).look()
