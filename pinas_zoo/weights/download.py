"""From a name to a verified file: `fetch('pinas_a.in1k')`. The only place where weights are downloaded.

timm's ``pretrained=True``, ``pinas://NAME`` in mmdet's and mmseg's configs and tools/download.py all use it.

- ``$PINAS_ZOO_HOME``: the cache; default ``~/.cache/pinas_zoo/weights``.
- ``$PINAS_ZOO_MIRROR``: an http(s) address or a folder with the files by name; tried first.
- ``$PINAS_OFFLINE=1``: nothing but the mirror and the package itself is used.

- ``$PINAS_ZOO_SHA256``: hashes that files must have, ``NAME=HEX`` separated by spaces or commas (`hashes.py`).

An incomplete file never has a final name. The hash of a file is checked when it is downloaded and when a process first
uses it. If neither the manifest nor the user has a hash (the authors' files), the first one seen is recorded beside the
file (`.json`) and checked from then on; the log says so. A bad file is renamed to `.bad` and downloaded again.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist

from pinas_zoo.dist import rank_and_world
from pinas_zoo.files import file_lock
from pinas_zoo.space import get_space
from pinas_zoo.weights.fetch import Policy, TransferError, copy_file, from_drive, from_url, offline
from pinas_zoo.weights.hashes import (
    is_good,
    record_origin,
    record_path,
    recorded_sha256,
    recorded_source,
    set_aside,
    sha256_of,
    warn_of_first_use,
    with_pin,
)
from pinas_zoo.weights.manifest import Entry, find_entry, package_file
from pinas_zoo.weights.released.convert import convert_file

__all__ = ['SCHEME', 'DownloadError', 'cache_dir', 'fetch', 'find_weights']

SCHEME = 'pinas://'

_logger = logging.getLogger('pinas_zoo')


class DownloadError(RuntimeError):
    """Weights could not be obtained. The message says what was tried, where they are looked for and what to do."""


def cache_dir() -> Path:
    """The folder of downloaded weights; it need not exist."""
    if home := os.environ.get('PINAS_ZOO_HOME'):
        return Path(home).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'pinas_zoo' / 'weights'


def find_weights(checkpoint: str | Path) -> Path:
    """The file for a `checkpoint=` argument: a path, or ``pinas://NAME``, which is downloaded.

    ``pinas://NAME#sha256=HEX`` pins the hash of the file that is downloaded.
    """
    if isinstance(checkpoint, str) and checkpoint.startswith(SCHEME):
        name, _, pin = checkpoint.removeprefix(SCHEME).partition('#sha256=')
        return fetch(name, sha256=pin or None)
    return Path(checkpoint)


def fetch(name: str, policy: Policy | None = None, sha256: str | None = None) -> Path:
    """The verified file of some weights, downloaded and converted if necessary.

    In a distributed run every rank has to call it: the first rank downloads, the others then find the file (or download
    it if they do not share a disk), and the failure of one is raised by all.

    Args:
        name: Name in the manifest.
        policy: Retries and time-outs, see `Policy`.
        sha256: Hash that the downloaded file must have: the authors' file if it is one of theirs, which is converted
            afterwards. None takes that of ``$PINAS_ZOO_SHA256``, if it has one for this name.

    Raises:
        ValueError: The manifest has no weights of that name, or the given hash is malformed or not the manifest's.
        DownloadError: They could not be obtained.
    """
    entry, policy = with_pin(find_entry(name), sha256), policy or Policy()
    rank, ranks = rank_and_world()
    if ranks == 1:
        return _fetch(entry, policy)
    first = rank == 0
    path, fault = _attempt(entry, policy) if first else (None, None)
    faults = [fault]
    dist.broadcast_object_list(faults, src=0)
    if faults[0] is None and not first:
        path, fault = _attempt(entry, policy)
    faults = [None] * ranks
    dist.all_gather_object(faults, fault)
    for failed, text in enumerate(faults):
        if text is not None:
            raise DownloadError(f'on rank {failed}: {text}')
    assert path is not None
    return path


def _attempt(entry: Entry, policy: Policy) -> tuple[Path | None, str | None]:
    try:
        return _fetch(entry, policy), None
    except Exception as error:  # must reach the other ranks, whatever it is
        return None, str(error) or type(error).__name__


# ---- one process ----------------------------------------------------------------------------------------------------


def _fetch(entry: Entry, policy: Policy) -> Path:
    problems: list[str] = []
    for source in entry.sources:
        if 'package' in source and (path := package_file(source['package'])) is not None:
            if entry.sha256 is None or sha256_of(path) == entry.sha256:
                return path
            problems.append(f'{path}, which is part of the package, is damaged')
    final = cache_dir() / entry.file
    if _is_current(final, entry):
        return final
    with _locked(final):
        if _is_current(final, entry):  # another process was faster
            return final
        set_aside(final)
        if entry.released is None:
            if _bring(entry, final, entry.file, entry.size, entry.sha256, policy, problems):
                return final
        elif _bring_released(entry, final, policy, problems):
            return final
    raise DownloadError(_advice(entry, final, problems))


def _bring_released(entry: Entry, final: Path, policy: Policy, problems: list[str]) -> bool:
    """The authors' file, from the cache or its sources, converted; a file that cannot be converted counts as bad."""
    released = entry.released
    assert released is not None
    source = final.parent / 'released' / released.file

    def convert() -> None:
        convert_file(source, final, released.kind, entry.arch, get_space(entry.space))
        record_origin(final, {'converted from': source.name, 'source_sha256': sha256_of(source)})

    if source.is_file():  # placed by hand, or from an earlier conversion
        try:
            if is_good(source, released.sha256, record=True):
                convert()
                return True
        except ValueError as error:
            problems.append(f'{source} was refused: {error}')
        set_aside(source)
    return _bring(entry, source, released.file, released.size, released.sha256, policy, problems, convert)


def _bring(
    entry: Entry,
    target: Path,
    file: str,
    size: int | None,
    sha256: str | None,
    policy: Policy,
    problems: list[str],
    accept: Callable[[], None] = lambda: None,
) -> bool:
    """Downloads a file from the first source that has a good one; `accept` may still refuse it with a ValueError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    expected = sha256 or recorded_sha256(target)
    warned = expected is not None
    part = target.with_name(f'.{target.name}.part')
    for label, get in _sources(entry, file, size, policy):
        for _ in range(2):  # a bad file is downloaded again
            if expected is None:  # without a hash, a wrong continuation could not be detected
                part.unlink(missing_ok=True)
            if not warned and get not in (_offline, _no_mirror):
                warn_of_first_use(entry, file)
                warned = True
            try:
                get(part)
                _check(part, size, expected)
            except TransferError as error:
                problems.append(f'{label}: {error}')
                break
            except ValueError as error:
                problems.append(f'{label}: {error}')
                part.replace(target.with_name(f'{target.name}.bad'))
                continue
            digest = sha256_of(part)
            known = recorded_sha256(target) is not None
            record_origin(target, {'from': label}, digest, part.stat().st_size)
            part.replace(target)
            part.with_name(part.name + '.etag').unlink(missing_ok=True)
            try:
                accept()
                if expected is None:
                    warn_of_first_use(entry, file, digest)
                return True
            except ValueError as error:
                problems.append(f'{label}: {error}')
                set_aside(target)
                if not known:
                    record_path(target).unlink(missing_ok=True)
    return False


def _sources(entry: Entry, file: str, size: int | None, policy: Policy) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """The sources in order: a label for messages, and the function that fills the partial file."""
    mirror = os.environ.get('PINAS_ZOO_MIRROR')
    if not mirror:
        yield 'the mirror', _no_mirror
    elif mirror.startswith(('http://', 'https://')):
        url = f'{mirror.rstrip("/")}/{file}'
        yield url, lambda part: from_url(url, part, size, policy)
    else:
        yield f'the mirror {mirror}', lambda part: copy_file(Path(mirror, file), part)
    forbidden = offline()
    for source in entry.sources:
        if 'url' in source:
            label, get = source['url'], lambda part, url=source['url']: from_url(url, part, size, policy)
        elif 'drive_folder' in source:
            label = f'the Google Drive folder {source["drive_folder"]}'
            get = lambda part, s=source: from_drive(s['drive_folder'], s['file'], part)  # noqa: E731
        else:
            continue
        yield label, _offline if forbidden else get


def _no_mirror(part: Path) -> None:
    raise TransferError('$PINAS_ZOO_MIRROR is not set')


def _offline(part: Path) -> None:
    raise TransferError(f'not asked, {offline()}')


def _check(part: Path, size: int | None, expected: str | None) -> None:
    if size is not None and part.stat().st_size != size:
        raise ValueError(f'received {part.stat().st_size} bytes, the manifest states {size}')
    if expected is not None and (came := sha256_of(part)) != expected:
        raise ValueError(f'received a file of sha256 {came}, expected {expected}')


# ---- what is in the cache -------------------------------------------------------------------------------------------


def _is_current(final: Path, entry: Entry) -> bool:
    """Whether the file is in the cache, and was converted from the released file of the known hash if there is one."""
    if not is_good(final, entry.sha256):
        return False
    wanted = entry.released and entry.released.sha256
    if wanted in (None, recorded_source(final)):
        return True
    _logger.warning('%s was not converted from the file of sha256 %s: it is converted again', final, wanted)
    return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a cache file; the system releases it when a process dies."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(path.with_name(f'.{path.name}.lock')))
        except OSError as error:
            raise DownloadError(
                f'{path} is missing or damaged, and the cache {path.parent} cannot be written ({error}); '
                'set $PINAS_ZOO_HOME to a writable folder'
            ) from error
        try:
            yield
        except OSError as error:
            raise DownloadError(f'the cache {path.parent} cannot be used: {error}') from error


def _advice(entry: Entry, final: Path, problems: list[str]) -> str:
    lines = [f'the weights {entry.name!r} could not be obtained. Tried:', *(f'  - {problem}' for problem in problems)]
    if entry.released is None:
        lines += [f'They are looked for at {final}.', f'By hand: take {entry.file} from {entry.url} and put it there.']
    else:
        place = final.parent / 'released' / entry.released.file
        lines += [
            f'They are looked for at {final} (converted) and at {place} (as released).',
            f'By hand: take {entry.released.file} from {entry.url} and put it there; it is converted at the next use.',
        ]
    lines.append('A folder of such files, or a URL, can also be given as $PINAS_ZOO_MIRROR.')
    return '\n'.join(lines)
