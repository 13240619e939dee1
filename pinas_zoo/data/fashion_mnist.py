"""Fashion-MNIST as four files: where they are looked for, how they are downloaded, and whether they are the originals.

Debian repacks the files, so the hashes are those of the unpacked content, which is the same for every source.
"""

import gzip
import hashlib
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from pinas_zoo.data.fetching import FetchError, fetch_package_files, fetch_urls
from pinas_zoo.files import file_lock, write_atomic
from pinas_zoo.weights.fetch import offline

__all__ = [
    'CLASSES',
    'DEBIAN_FOLDER',
    'FILES',
    'IdxFile',
    'Located',
    'cache_folder',
    'copy_files',
    'locate',
    'read_idx',
]

CLASSES = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip
DEBIAN_FOLDER = Path('/usr/share/datasets/fashion-mnist')
DEBIAN_PACKAGE = 'dataset-fashion-mnist'
#: A folder with the four files, or the word digits.
VARIABLE = 'PINAS_FASHION_MNIST'
#: Seconds without progress after which a source is abandoned; apt also needs some of them to read its lists.
MIRROR_PATIENCE, APT_PATIENCE = 15.0, 30.0


@dataclass(frozen=True)
class IdxFile:
    """One gzip idx file of bytes.

    Args:
        name: Its file name.
        sha256: Hash of the unpacked content.
        shape: Shape of its array.
    """

    name: str
    sha256: str
    shape: tuple[int, ...]


#: By split and kind.
FILES: dict[tuple[str, str], IdxFile] = {
    ('train', 'images'): IdxFile(
        'train-images-idx3-ubyte.gz',
        'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
        (60_000, 28, 28),
    ),
    ('train', 'labels'): IdxFile(
        'train-labels-idx1-ubyte.gz', 'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9', (60_000,)
    ),
    ('test', 'images'): IdxFile(
        't10k-images-idx3-ubyte.gz',
        '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
        (10_000, 28, 28),
    ),
    ('test', 'labels'): IdxFile(
        't10k-labels-idx1-ubyte.gz', '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34', (10_000,)
    ),
}
#: Files that this process has checked, by path, size and modification time.
_checked: set[tuple[str, int, int]] = set()
#: Caches that this process could not fill, and why: a data set is opened many times, and waiting once is enough.
_given_up: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Located:
    """Where the four files are, or that they were not found.

    Args:
        folder: None if they could not be obtained.
        origin: How they were found.
        problems: Why each earlier place did not have them.
    """

    folder: Path | None
    origin: str
    problems: tuple[str, ...] = ()


def cache_folder(name: str = 'fashion-mnist') -> Path:
    """Where downloaded files, or others of that name, are kept; the folder need not exist.

    Raises:
        OSError: The home folder is unknown, and $PINAS_CACHE_DIR is not set.
    """
    if folder := os.environ.get('PINAS_CACHE_DIR'):
        return Path(folder).expanduser() / name
    try:
        return Path.home() / '.cache' / 'pinas_zoo' / name
    except RuntimeError as error:
        raise OSError('the home folder is unknown: set $PINAS_CACHE_DIR') from error


def read_idx(folder: Path, split: str, kind: str) -> np.ndarray:
    """The array of a file in a checked folder."""
    content = gzip.decompress((folder / FILES[split, kind].name).read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, '>u4', axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def locate(root: str | Path | None = None, download: bool | None = None) -> Located:
    """Find Fashion-MNIST: the given folder, Debian's, the cache, torchvision's mirrors, the distribution's package.

    Args:
        root: Folder with the four files; default ``$PINAS_FASHION_MNIST``, if it names one.
        download: False never uses the network; nor does anything if PINAS_OFFLINE or HF_HUB_OFFLINE is set.

    Raises:
        ValueError: The given folder has other files with these names.
    """
    problems = []
    root = Path(root).expanduser() if root is not None else _variable_folder()
    if root is not None:
        missing, fault = _inspect(root)
        if fault:
            raise ValueError(f'{fault}: give the folder of the four original files, or leave it out')
        if not missing:
            return Located(root, f'the given folder {root}')
        problems.append(f'{root}: {_no(missing)}')
    for folder, origin in ((DEBIAN_FOLDER, "Debian's package"), (_cache_or_none(), 'the cache')):
        missing, fault = _inspect(folder) if folder else (['home folder'], '')
        if folder and not missing and not fault:
            return Located(folder, f'{origin}, {folder}', tuple(problems))
        problems.append(fault or f'{folder or "cache"}: {_no(missing)}')
    reason = 'download=False' if download is False else offline()
    if reason:
        return Located(None, '', (*problems, f'network: not asked, {reason}'))
    cache = str(_cache_or_none())
    if cache in _given_up:
        return Located(None, '', (*problems, *_given_up[cache]))
    found = _fetch()
    if found.folder is None:
        _given_up[cache] = found.problems
    return Located(found.folder, found.origin, (*problems, *found.problems))


def _variable_folder() -> Path | None:
    value = os.environ.get(VARIABLE, '')
    return Path(value).expanduser() if value not in ('', 'digits') else None


def _cache_or_none() -> Path | None:
    try:
        return cache_folder()
    except OSError:
        return None


def _no(missing: list[str]) -> str:
    return 'none of the files' if len(missing) == len(FILES) else f'no {", no ".join(missing)}'


def _inspect(folder: Path) -> tuple[list[str], str]:
    """Names of the files that a folder does not have, and what is wrong with the first bad one ('': nothing)."""
    missing, faults = [], []
    for file in FILES.values():
        try:
            faults.append(_fault(folder / file.name, file))
        except (FileNotFoundError, NotADirectoryError):
            missing.append(file.name)
    return missing, next(filter(None, faults), '')


def _fault(path: Path, file: IdxFile) -> str:
    """Why a file is not the original one; '' if it is.

    Raises:
        FileNotFoundError, NotADirectoryError: The file does not exist.
    """
    try:
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if key in _checked:
            return ''
        found = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, EOFError, zlib.error) as error:
        return f'{path} cannot be read: {error}'
    if found != file.sha256:
        return f'{path} is not the original: its content has the sha256 {found}, expected is {file.sha256}'
    _checked.add(key)
    return ''


# ---- fetching -------------------------------------------------------------------------------------------------------


def _fetch() -> Located:
    """Download into the cache; one process does it, others that ask meanwhile wait and use its result."""
    began = time.time()
    try:
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(
            cache / '.lock', lambda: print('another process is downloading Fashion-MNIST: waiting for it')
        ) as lock:
            if _inspect(cache) == ([], ''):
                return Located(cache, f'fetched by another process into {cache}')
            if failure := _failure_since(lock, began):
                return Located(None, '', (failure,))
            for left in cache.glob('.part-*'):  # left by a killed process: nobody else is here
                shutil.rmtree(left, ignore_errors=True)
            found = _fetch_into(cache)
            lock.truncate(0)
            if found.folder is None:
                lock.write('; '.join(found.problems))
            return found
    except OSError as error:
        return Located(None, '', (f'the cache cannot be used ({error}); set $PINAS_CACHE_DIR to a writable folder',))


def _failure_since(lock: IO[str], began: float) -> str:
    """The failure that another process recorded while this one waited."""
    if os.fstat(lock.fileno()).st_mtime < began:
        return ''
    lock.seek(0)
    return lock.read()


def _fetch_into(cache: Path) -> Located:
    print(f'downloading Fashion-MNIST (31 MB) into {cache}', flush=True)
    problems = []
    for origin, get in _sources():
        with tempfile.TemporaryDirectory(dir=cache, prefix='.part-', ignore_cleanup_errors=True) as part:
            folder = Path(part)
            try:
                get(folder)
                _accept(folder, cache)
            except FetchError as error:
                problems.append(f'{origin}: {error}')
                continue
        return Located(cache, f'{origin}, now in {cache}', tuple(problems))
    return Located(None, '', tuple(problems))


def _sources() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """The sources in order: a label, and the function that fills a folder."""
    from torchvision.datasets import FashionMNIST

    names = [file.name for file in FILES.values()]
    for mirror in FashionMNIST.mirrors:
        urls = [f'{mirror.rstrip("/")}/{name}' for name in names]
        yield mirror, partial(fetch_urls, urls, patience=MIRROR_PATIENCE)
    yield f'package {DEBIAN_PACKAGE}', partial(fetch_package_files, DEBIAN_PACKAGE, names, patience=APT_PATIENCE)


def _accept(folder: Path, cache: Path) -> None:
    """Move four original files into the cache.

    Raises:
        FetchError: They are not the originals.
    """
    missing, fault = _inspect(folder)
    if missing or fault:
        raise FetchError(fault.replace(f'{folder}/', '') or _no(missing))
    copy_files(folder, cache)


def copy_files(source: Path, target: Path) -> None:
    """Copy the four files of a checked folder; each is copied completely or not at all."""
    for file in FILES.values():
        write_atomic(target / file.name, partial(shutil.copyfile, source / file.name))
