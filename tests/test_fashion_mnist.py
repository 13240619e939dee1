"""Fashion-MNIST: where it is looked for, how it is fetched, and what takes its place. The files are toys."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import FashionMNIST

from pinas_zoo import data
from pinas_zoo.data import FashionMNISTSource, fashion_mnist, resolve_fashion_mnist, small_sets

COUNTS = {'train': 7, 'test': 4}


def pack(values: np.ndarray) -> bytes:
    sizes = b''.join(int(n).to_bytes(4, 'big') for n in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four files by name, made known as the original ones; nothing of the machine's is in reach."""
    rng, files, known = np.random.default_rng(1), {}, {}
    for (split, kind), file in fashion_mnist.FILES.items():
        shape = (COUNTS[split], *file.shape[1:])
        content = pack(rng.integers(0, 256 if kind == 'images' else 10, shape, dtype=np.uint8))
        known[split, kind] = replace(file, sha256=hashlib.sha256(content).hexdigest(), shape=shape)
        files[file.name] = gzip.compress(content)
    for module in (fashion_mnist, small_sets):
        monkeypatch.setattr(module, 'FILES', known)
    monkeypatch.setattr(fashion_mnist, 'DEBIAN_FOLDER', tmp_path / 'debian')
    monkeypatch.setattr(fashion_mnist, '_given_up', {})
    monkeypatch.setattr(FashionMNIST, 'mirrors', [])
    monkeypatch.setenv('PINAS_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))
    for name in ('PINAS_OFFLINE', 'HF_HUB_OFFLINE', 'PINAS_FASHION_MNIST'):
        monkeypatch.delenv(name, raising=False)
    small_sets._print_once.cache_clear()
    return files


def place(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# ---- places on the machine -------------------------------------------------------------------------------------------


def test_the_source_reads_the_files(toys: dict[str, bytes], tmp_path: Path) -> None:
    place(toys, tmp_path / 'own')
    source = FashionMNISTSource('test', root=tmp_path / 'own')
    pixels = np.frombuffer(gzip.decompress(toys['t10k-images-idx3-ubyte.gz']), np.uint8, offset=16).reshape(-1, 28, 28)
    labels = gzip.decompress(toys['t10k-labels-idx1-ubyte.gz'])[8:]
    assert len(source) == 4 and source.classes[9] == 'Ankle boot' and source.label(3) == labels[3]
    assert source.load(2)[1].equal(torch.from_numpy(pixels[2].copy()))
    assert FashionMNISTSource('train', root=tmp_path / 'own', limit=2, start=3).name(1) == 'fashion-mnist/train/4'
    assert source.description['data'] == 'fashion-mnist' and str(tmp_path / 'own') in source.description['origin']
    with pytest.raises(ValueError, match="split='val'; allowed: train, test"):
        FashionMNISTSource('val', root=tmp_path / 'own')


def test_the_order_of_the_places(toys: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, variable = tmp_path / 'given', tmp_path / 'variable'
    for folder in (tmp_path / 'cache/fashion-mnist', tmp_path / 'debian', given):  # each comes before the last
        place(toys, folder)
        info = resolve_fashion_mnist(given)
        assert info.folder == folder and info.environment == {'PINAS_FASHION_MNIST': str(folder)}
    assert info.problems == ()
    place(toys, variable)
    monkeypatch.setenv('PINAS_FASHION_MNIST', str(variable))
    assert resolve_fashion_mnist().folder == variable and resolve_fashion_mnist(given).folder == given


def test_what_the_answer_says(toys: dict[str, bytes], tmp_path: Path) -> None:
    info = resolve_fashion_mnist(place(toys, tmp_path / 'own'))
    assert (info.name, info.title, info.sizes, info.image_size) == ('fashion-mnist', 'Fashion-MNIST', COUNTS, 28)
    assert info.classes == data.FASHION_MNIST_CLASSES and (info.mean, info.std) == ((0.2860,), (0.3530,))
    assert str(info).startswith('Fashion-MNIST (7 train + 4 test images of 28 px, 10 classes; from the given folder ')
    packed = {name: gzip.compress(gzip.decompress(content), 1) for name, content in toys.items()}
    again = resolve_fashion_mnist(place(packed, tmp_path / 'packed anew'))
    assert again.fingerprint == info.fingerprint != data.resolve_digits().fingerprint


def test_a_given_folder_with_other_files_is_refused(toys: dict[str, bytes], tmp_path: Path) -> None:
    own = place(toys, tmp_path / 'own')
    file = own / 'train-labels-idx1-ubyte.gz'
    file.write_bytes(gzip.compress(pack(np.zeros(7, np.uint8))))
    with pytest.raises(ValueError, match=r'train-labels-idx1-ubyte\.gz is not the original: .* sha256 .* expected is'):
        resolve_fashion_mnist(own)
    file.write_bytes(toys[file.name][:-9])
    with pytest.raises(ValueError, match=r'train-labels-idx1-ubyte\.gz cannot be read: .*'):
        resolve_fashion_mnist(own)


def test_a_file_that_changes_is_checked_again(toys: dict[str, bytes], tmp_path: Path) -> None:
    own = place(toys, tmp_path / 'own')
    assert resolve_fashion_mnist(own).name == 'fashion-mnist'
    (own / 't10k-labels-idx1-ubyte.gz').write_bytes(gzip.compress(pack(np.ones(4, np.uint8)), 0))
    with pytest.raises(ValueError, match='is not the original'):
        resolve_fashion_mnist(own)


# ---- nothing to be had -----------------------------------------------------------------------------------------------


def test_digits_where_everything_failed(toys: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place({name: toys[name] for name in list(toys)[:3]}, tmp_path / 'own')
    info = resolve_fashion_mnist(tmp_path / 'own')
    assert (info.name, info.folder, info.classes) == ('digits', None, tuple('0123456789'))
    assert info.sizes == {'train': 1437, 'test': 360} and info.environment == {'PINAS_FASHION_MNIST': 'digits'}
    fetching, line = capsys.readouterr().out.splitlines()
    assert 'is fetched (31 MB) into' in fetching
    assert line.startswith("Fashion-MNIST could not be had, scikit-learn's digits take its place. Tried: ")
    for reason in (
        f'{tmp_path}/own: no t10k-labels-idx1-ubyte.gz; ',
        f'{tmp_path}/debian: not there; ',
        f'{tmp_path}/cache/fashion-mnist: not there; ',
        'package dataset-fashion-mnist: no apt-get on this machine',
    ):
        assert reason in line
    source = FashionMNISTSource('test', root=tmp_path / 'own')
    assert source.name(0) == 'digits/test/0' and source.mean == data.DIGITS_MEAN and source.load(0).shape == (3, 28, 28)
    assert source.classes == info.classes and capsys.readouterr().out == ''  # said once, tried once


def test_digits_on_demand(toys: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that began with digits stays with them."""
    place(toys, tmp_path / 'debian')
    assert resolve_fashion_mnist().name == 'fashion-mnist'
    for name, value in data.resolve_digits().environment.items():
        monkeypatch.setenv(name, value)
    assert FashionMNISTSource('train').description['data'] == 'digits'


@pytest.mark.parametrize('how', ['PINAS_OFFLINE', 'HF_HUB_OFFLINE', 'download=False'])
def test_offline(
    how: str, toys: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(fashion_mnist, '_fetch', lambda: pytest.fail('asks the network'))
    if how != 'download=False':
        monkeypatch.setenv(how, '1')
    info = resolve_fashion_mnist(download='=' not in how)
    assert info.name == 'digits' and f'network: not asked, {how if "=" in how else f"${how} is set"}' in info.problems
    assert len(capsys.readouterr().out.splitlines()) == 1
