"""Fashion-MNIST: where it is searched, how it is downloaded, and what replaces it. The files are small fakes."""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from faulty_server import FaultyServer
from torchvision.datasets import FashionMNIST

from pinas_zoo import data
from pinas_zoo.data import FashionMNISTSource, fashion_mnist, resolve_fashion_mnist, small_sets

COUNTS = {'train': 7, 'test': 4}
NOBODY = 65534


def pack(values: np.ndarray) -> bytes:
    sizes = b''.join(int(n).to_bytes(4, 'big') for n in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four files by name, whose hashes count as the originals'; files of the machine cannot be reached."""
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


# ---- nothing available -----------------------------------------------------------------------------------------------


def test_digits_where_everything_failed(toys: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place({name: toys[name] for name in list(toys)[:3]}, tmp_path / 'own')
    info = resolve_fashion_mnist(tmp_path / 'own')
    assert (info.name, info.folder, info.classes) == ('digits', None, tuple('0123456789'))
    assert info.sizes == {'train': 1437, 'test': 360} and info.environment == {'PINAS_FASHION_MNIST': 'digits'}
    fetching, line = capsys.readouterr().out.splitlines()
    assert 'downloading Fashion-MNIST (31 MB) into' in fetching
    assert line.startswith("Fashion-MNIST could not be obtained, scikit-learn's digits replace it. Tried: ")
    for reason in (
        f'{tmp_path}/own: no t10k-labels-idx1-ubyte.gz; ',
        f'{tmp_path}/debian: none of the files; ',
        f'{tmp_path}/cache/fashion-mnist: none of the files; ',
        'package dataset-fashion-mnist: no apt-get on this machine',
    ):
        assert reason in line
    source = FashionMNISTSource('test', root=tmp_path / 'own')
    assert source.name(0) == 'digits/test/0' and source.mean == small_sets.DIGITS_MEAN
    assert source.load(0).shape == (3, 28, 28)
    assert source.classes == info.classes and capsys.readouterr().out == ''  # said once, tried once


def test_counts_are_those_of_the_real_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PINAS_FASHION_MNIST', 'digits')
    spec = {'kind': 'fashion-mnist', 'split': 'train'}
    held, trained = (data.open_source({**spec, 'part': part, 'holdout': 6000}) for part in ('holdout', 'train'))
    assert (len(held), len(held) + len(trained)) == (143, 1437)
    assert len(data.open_source({**spec, 'part': 'holdout', 'holdout': 0.2})) == 287
    assert len(data.open_source({**spec, 'start': 30_000, 'limit': None})) == 1437 - 718
    first, second = (data.open_source({**spec, 'start': start, 'limit': 20_000}) for start in (0, 40_000))
    assert len(first) == len(second) == 479 and second.name(0) == 'digits/train/958'


def test_digits_on_demand(toys: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that began with digits keeps using them."""
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


# ---- fetching --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(toys: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A mirror on loopback."""
    with FaultyServer(toys) as server:
        monkeypatch.setattr(FashionMNIST, 'mirrors', [f'{server.url}/some/folder/'])
        yield server


def assert_whole(cache: Path) -> None:
    """The four original files and the lock, nothing partial."""
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        ['.lock', *(file.name for file in fashion_mnist.FILES.values())]
    )
    assert fashion_mnist._inspect(cache) == ([], '')


def test_a_mirror_fills_the_cache(server: FaultyServer, tmp_path: Path) -> None:
    cache = tmp_path / 'cache/fashion-mnist'
    info = resolve_fashion_mnist()
    assert info.folder == cache and info.origin == f'{server.url}/some/folder/, now in {cache}'
    assert_whole(cache)
    assert len(server.requests) == 4
    assert resolve_fashion_mnist().origin == f'the cache, {cache}' and len(server.requests) == 4


@pytest.mark.parametrize(
    ('fault', 'reason'),
    [
        (404, 'HTTP 404'),
        (503, 'HTTP 503 Service Unavailable (tried 2 times)'),
        ('dies', 'the connection ended after'),
        ('corrupted', 'train-images-idx3-ubyte.gz cannot be read: Not a gzipped file'),
        ('truncated', 'train-images-idx3-ubyte.gz cannot be read: '),
        ('stalls', 'gave up after 0.5 s without progress'),
    ],
)
def test_a_bad_mirror(
    fault: int | str, reason: str, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault = fault
    if fault == 'stalls':
        monkeypatch.setattr(fashion_mnist, 'MIRROR_PATIENCE', 0.5)
    info = resolve_fashion_mnist()
    assert info.name == 'digits' and f'{server.url}/some/folder/: {reason}' in '; '.join(info.problems)
    cache = tmp_path / 'cache/fashion-mnist'
    assert [path.name for path in cache.iterdir()] == ['.lock']
    fashion_mnist._given_up.clear()  # as another process would begin
    monkeypatch.setattr(fashion_mnist, 'MIRROR_PATIENCE', 30.0)
    server.fault = None
    assert resolve_fashion_mnist().folder == cache
    assert_whole(cache)


def test_a_mirror_with_another_set(server: FaultyServer, toys: dict[str, bytes], tmp_path: Path) -> None:
    server.content = {**toys, 't10k-labels-idx1-ubyte.gz': gzip.compress(pack(np.zeros(4, np.uint8)))}
    info = resolve_fashion_mnist()
    assert info.name == 'digits'
    assert '/some/folder/: t10k-labels-idx1-ubyte.gz is not the original: its content has' in '; '.join(info.problems)
    assert [path.name for path in (tmp_path / 'cache/fashion-mnist').iterdir()] == ['.lock']


def test_a_damaged_cache_is_fetched_anew(server: FaultyServer, toys: dict[str, bytes], tmp_path: Path) -> None:
    cache = place(toys, tmp_path / 'cache/fashion-mnist')
    (cache / 'train-images-idx3-ubyte.gz').write_bytes(toys['train-images-idx3-ubyte.gz'][:99])
    info = resolve_fashion_mnist()
    assert info.name == 'fashion-mnist' and f'{cache}/train-images-idx3-ubyte.gz cannot be read' in info.problems[1]
    assert_whole(cache)


def test_a_cache_that_cannot_be_written(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / 'cache').write_text('a file')
    info = resolve_fashion_mnist()
    assert info.name == 'digits' and server.requests == []
    assert 'the cache cannot be used' in info.problems[-1] and 'set $PINAS_CACHE_DIR' in info.problems[-1]


# ---- the distribution's package --------------------------------------------------------------------------------------

APT_GET = """#!/bin/sh
# Stands in for apt-get: lists are known only after an update, unless `known` is there.
here={here}
echo "$@" >> $here/calls
case "$*" in
*update)
    [ -e $here/slow ] && { /bin/sleep 60 & echo $$ $! > $here/processes; wait; }
    [ -e $here/no-network ] && { echo 'E: Some index files failed to download.'; exit 100; }
    : > $here/updated ;;
*download*dataset-fashion-mnist)
    case "$*" in
    *Dir::State::Lists=*) [ -e $here/updated ] || [ -e $here/known ] ;;
    *) [ -e $here/known ] ;;
    esac || { echo 'E: Unable to locate package dataset-fashion-mnist'; exit 100; }
    /bin/cp $here/package.deb dataset-fashion-mnist_1_all.deb ;;
*) exit 2 ;;
esac
"""


class Apt:
    """A fake apt-get, and the calls that it received."""

    def __init__(self, folder: Path, package: bytes) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / 'package.deb').write_bytes(package)
        (folder / 'apt-get').write_text(APT_GET.replace('{here}', str(folder)))
        (folder / 'apt-get').chmod(0o755)

    def set(self, name: str) -> None:
        (self.folder / name).touch()

    @property
    def calls(self) -> list[str]:
        return (self.folder / 'calls').read_text().splitlines()


def make_deb(files: dict[str, bytes], compression: str = 'xz') -> bytes:
    def tar(members: dict[str, bytes], mode: str) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    data = {f'./usr/share/datasets/fashion-mnist/{name}': content for name, content in files.items()}
    data = {'../../escape': b'never looked at', './usr/share/doc/README.md.gz': b'x', **data}
    members = {
        'debian-binary': b'2.0\n',
        'control.tar.gz': tar({'./control': b'Package: dataset-fashion-mnist\nVersion: 1\n'}, 'w:gz'),
        f'data.tar.{compression}': tar(data, f'w:{compression}'),
    }
    result = b'!<arch>\n'
    for name, content in members.items():
        result += f'{name:<16}{0:<12}{0:<6}{0:<6}{"100644":<8}{len(content):<10}`\n'.encode()
        result += content + b'\n' * (len(content) % 2)
    return result


@pytest.fixture
def apt(toys: dict[str, bytes], tmp_path: Path) -> Apt:
    return Apt(tmp_path / 'bin', make_deb(toys))


@pytest.mark.parametrize('unpacker', ['dpkg-deb', 'python'])
def test_the_package_fills_the_cache(unpacker: str, apt: Apt, tmp_path: Path) -> None:
    if unpacker == 'dpkg-deb':
        if not Path('/usr/bin/dpkg-deb').is_file():
            pytest.skip('no dpkg-deb on this machine')
        (apt.folder / 'dpkg-deb').symlink_to('/usr/bin/dpkg-deb')
    cache = tmp_path / 'cache/fashion-mnist'
    info = resolve_fashion_mnist()
    assert info.folder == cache and info.origin == f'package dataset-fashion-mnist, now in {cache}'
    assert_whole(cache)
    first, update, second = apt.calls
    assert first.endswith('download dataset-fashion-mnist') and 'Dir::State::Lists' not in first  # the machine's lists
    assert update.endswith(' update') and second.endswith('download dataset-fashion-mnist')
    for call in (first, update, second):
        assert f'-o Dir::Cache={cache}/.part-' in call
    for call in (update, second):
        assert f'-o Dir::State::Lists={cache}/.part-' in call
    assert not list(tmp_path.rglob('escape'))


def test_the_lists_of_the_machine_are_enough(apt: Apt) -> None:
    apt.set('known')
    assert resolve_fashion_mnist().name == 'fashion-mnist' and len(apt.calls) == 1


def test_the_package_comes_after_the_mirrors(apt: Apt, server: FaultyServer) -> None:
    server.fault = 404
    info = resolve_fashion_mnist()
    assert info.name == 'fashion-mnist' and info.problems[-1].endswith('/some/folder/: HTTP 404 Not Found')


def test_no_network_for_apt(apt: Apt, capsys: pytest.CaptureFixture) -> None:
    apt.set('no-network')
    info = resolve_fashion_mnist()
    assert info.problems[-1] == (
        'package dataset-fashion-mnist: E: Unable to locate package dataset-fashion-mnist '
        '(apt-get update: E: Some index files failed to download.)'
    )
    assert info.problems[-1] in capsys.readouterr().out


@pytest.mark.parametrize('damage', ['not an ar archive', 'no data', 'cut off', 'another set'])
def test_a_bad_package(damage: str, apt: Apt, toys: dict[str, bytes], tmp_path: Path) -> None:
    whole = make_deb(toys)
    content, reason = {
        'not an ar archive': (b'nothing', 'cannot be unpacked: it is not an ar archive'),
        'no data': (whole[: whole.index(b'data.tar')], 'cannot be unpacked: it has no data.tar'),
        'cut off': (whole[:-200], 'cannot be unpacked: '),
        'another set': (make_deb({**toys, 'train-labels-idx1-ubyte.gz': gzip.compress(b'x')}), 'is not the original'),
    }[damage]
    (apt.folder / 'package.deb').write_bytes(content)
    info = resolve_fashion_mnist()
    assert info.name == 'digits' and reason in info.problems[-1]
    assert [path.name for path in (tmp_path / 'cache/fashion-mnist').iterdir()] == ['.lock']


def test_an_apt_that_hangs_is_ended(apt: Apt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, 'APT_PATIENCE', 1.0)
    apt.set('slow')
    info = resolve_fashion_mnist()
    assert info.problems[-1] == 'package dataset-fashion-mnist: gave up after 1 s without progress'
    for number in (apt.folder / 'processes').read_text().split():
        status = Path('/proc', number, 'stat')
        assert not status.exists() or status.read_text().rsplit(')', 1)[1].split()[0] == 'Z'


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    path = Path(__file__).parent.parent / 'tools' / 'prepare_data.py'
    spec = importlib.util.spec_from_file_location('prepare_data', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prepare(
    tool: ModuleType, apt: Apt, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tool.main(['fashion-mnist']) == 0
    cache = tmp_path / 'cache/fashion-mnist'
    *_, line, result = capsys.readouterr().out.splitlines()
    assert line == f'Fashion-MNIST: {cache} (from package dataset-fashion-mnist, now in {cache})'
    assert json.loads(result)['folder'] == str(cache)
    assert tool.main(['fashion-mnist', '--root', str(tmp_path / 'stick')]) == 0
    shutil.rmtree(cache)
    monkeypatch.setenv('PINAS_OFFLINE', '1')
    monkeypatch.setenv('PINAS_FASHION_MNIST', str(tmp_path / 'stick'))
    assert resolve_fashion_mnist().folder == tmp_path / 'stick'
    monkeypatch.delenv('PINAS_FASHION_MNIST')
    assert tool.main(['fashion-mnist']) == 1
    error = capsys.readouterr().err
    assert 'network: not asked, $PINAS_OFFLINE is set. By hand: put train-images' in error and str(cache) in error


# ---- several processes, and other users ------------------------------------------------------------------------------


class Child:
    """A forked process that resolves the set, with everything that the test has patched."""

    def __init__(self, answer: Path, user: int | None = None) -> None:
        self.answer = answer
        self.number = os.fork()
        if self.number:
            return
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            info = resolve_fashion_mnist()
            answer.write_text(json.dumps([info.name, info.origin, *info.problems]))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    def result(self) -> list[str]:
        os.waitpid(self.number, 0)
        return json.loads(self.answer.read_text())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_fetches_and_the_others_wait(server: FaultyServer, tmp_path: Path) -> None:
    server.fault = 'slow'
    children = [Child(tmp_path / f'answer{i}') for i in range(3)]
    origins = sorted(child.result()[1] for child in children)
    cache = tmp_path / 'cache/fashion-mnist'
    waited = (f'fetched by another process into {cache}', f'the cache, {cache}')  # the latter where it came late
    assert [origin for origin in origins if origin not in waited] == [f'{server.url}/some/folder/, now in {cache}']
    assert len(server.requests) == 4
    assert_whole(cache)


def test_who_waited_takes_the_failure_too(server: FaultyServer, tmp_path: Path) -> None:
    """Otherwise ten processes would wait ten times as long, and some might have other data."""
    server.fault = 'stop'
    lock = tmp_path / 'cache/fashion-mnist/.lock'
    children = [Child(tmp_path / 'answer0')]
    wait_for(lambda: server.requests)
    children.append(Child(tmp_path / 'answer1'))
    wait_for(lambda: waits_for_a_lock(children[1].number))
    server.release.set()
    results = [child.result() for child in children]
    assert [result[0] for result in results] == ['digits', 'digits'] and len(server.requests) == 1
    assert 'HTTP 404' in results[1][-1] and results[1][-1] == '; '.join(results[0][4:]) == lock.read_text()
    server.fault = None  # what failed before a process began does not keep it from trying
    assert resolve_fashion_mnist().name == 'fashion-mnist' and lock.read_text() == ''


def waits_for_a_lock(process: int) -> bool:
    return any(f' {process} ' in line for line in Path('/proc/locks').read_text().splitlines() if '->' in line)


def test_a_killed_fetch_leaves_nothing_half(server: FaultyServer, tmp_path: Path) -> None:
    server.fault = 'stop'
    cache = tmp_path / 'cache/fashion-mnist'
    child = Child(tmp_path / 'answer')
    wait_for(lambda: server.requests)
    os.kill(child.number, signal.SIGKILL)
    os.waitpid(child.number, 0)
    server.release.set()
    left = [path.name for path in cache.iterdir()]
    assert len(left) == 2 and '.lock' in left and not list(cache.glob('*.gz'))
    server.fault = None
    assert resolve_fashion_mnist().folder == cache
    assert_whole(cache)


@pytest.fixture
def nobody(toys: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that an ordinary user owns, the home folder; tmp_path is root's alone."""
    if os.getuid():
        pytest.skip('only root can become another user; all other tests here run as an ordinary one')
    home = Path(tempfile.mkdtemp(prefix='pinas-nobody-'))
    Apt(home / 'bin', make_deb(toys))
    for path in (home, *home.rglob('*')):
        os.chown(path, NOBODY, NOBODY)
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('PATH', str(home / 'bin'))
    monkeypatch.delenv('PINAS_CACHE_DIR')
    yield home
    shutil.rmtree(home)


def test_an_ordinary_user(nobody: Path) -> None:
    name, origin, *problems = Child(nobody / 'answer', NOBODY).result()
    cache = nobody / '.cache/pinas_zoo/fashion-mnist'
    assert 'cannot be read: [Errno 13] Permission denied' in problems[0]  # pytest's folders are root's alone
    assert name == 'fashion-mnist' and origin == f'package dataset-fashion-mnist, now in {cache}'
    assert_whole(cache)
    assert {path.stat().st_uid for path in cache.iterdir()} == {NOBODY}


def test_a_user_without_a_home(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', '/nonexistent')
    name, _, *problems = Child(nobody / 'answer', NOBODY).result()
    assert name == 'digits' and 'the cache cannot be used' in problems[-1] and '$PINAS_CACHE_DIR' in problems[-1]


# ---- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.net
@pytest.mark.parametrize('user', ['this one', 'nobody'])
def test_the_real_package(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the distribution's servers, where the machine's package lists are empty."""
    if shutil.which('apt-get') is None or (user == 'nobody' and os.getuid()):
        pytest.skip('needs apt-get, and root to become nobody')
    home = Path(tempfile.mkdtemp(prefix='pinas-net-'))
    (home / 'lists/partial').mkdir(parents=True)
    (home / 'apt.conf').write_text(f'Dir::State::Lists "{home}/lists";')
    for path in (home, *home.rglob('*')):
        os.chown(path, NOBODY, NOBODY) if user == 'nobody' else None
    for name in ('PINAS_OFFLINE', 'HF_HUB_OFFLINE', 'PINAS_FASHION_MNIST'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('APT_CONFIG', str(home / 'apt.conf'))
    monkeypatch.setenv('PINAS_CACHE_DIR', str(home / 'cache'))
    monkeypatch.setattr(fashion_mnist, 'DEBIAN_FOLDER', home / 'none')
    monkeypatch.setattr(fashion_mnist, '_given_up', {})
    monkeypatch.setattr(FashionMNIST, 'mirrors', [])
    try:
        name, origin, *_ = Child(home / 'answer', NOBODY if user == 'nobody' else None).result()
        assert name == 'fashion-mnist' and origin.startswith('package dataset-fashion-mnist')
        assert list((home / 'lists').rglob('*Packages*')) == []  # the machine's lists stay as they were
        source = FashionMNISTSource('train')
        assert len(source) == 60_000 and source.images.float().mean().item() / 255 == pytest.approx(0.2860, abs=1e-4)
    finally:
        shutil.rmtree(home)
