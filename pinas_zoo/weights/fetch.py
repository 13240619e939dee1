"""Bytes from a URL, a folder or a Google Drive folder into a partial file: resumed, retried, with limits."""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from torch.hub import tqdm  # the installed one, or a plain replacement

__all__ = ['Policy', 'TransferError', 'check_space', 'copy_file', 'from_drive', 'from_url', 'offline']

CHUNK = 1 << 20
#: Free disk space that must remain besides the file itself.
HEADROOM = 64 << 20


class TransferError(RuntimeError):
    """A source did not give the file; the message says why in one line."""


class _BrokenBodyError(Exception):
    """The connection ended before the body was complete."""


@dataclass(frozen=True)
class Policy:
    """Retries and time-outs of a download.

    Args:
        attempts: Tries at one URL, at least 1. Only 5xx answers, time-outs and bodies that broke off are retried; each
            try continues the partial file.
        pause: Seconds before the second try; doubled for each further one.
        timeout: Seconds to wait without receiving a byte.
    """

    attempts: int = 4
    pause: float = 1.0
    timeout: float = 30.0


def offline() -> str | None:
    """Why the network may not be used: '$PINAS_OFFLINE is set', or Hugging Face's $HF_HUB_OFFLINE; else None."""
    for name in ('PINAS_OFFLINE', 'HF_HUB_OFFLINE'):
        if os.environ.get(name, '').lower() not in ('', '0', 'off', 'no', 'false'):
            return f'${name} is set'
    return None


def check_space(folder: Path, need: int) -> None:
    """Refuses to fill the disk.

    Raises:
        TransferError: Less than `need` bytes and some headroom are free.
    """
    free = shutil.disk_usage(folder).free
    if free < need + HEADROOM:
        raise TransferError(
            f'the disk of {folder} is too full: {free >> 20} MB free, {(need + HEADROOM) >> 20} MB needed'
        )


@contextmanager
def _disk_errors(part: Path) -> Iterator[None]:
    """Deletes the partial file when the disk is full, and reports it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        part.unlink(missing_ok=True)
        raise TransferError(f'the disk of {part.parent} became full') from error


def copy_file(source: Path, part: Path) -> None:
    """Copies a file of a mirror folder.

    Raises:
        TransferError: It does not exist, cannot be read, or the disk is full.
    """
    if not source.is_file():
        raise TransferError(f'{source} does not exist')
    check_space(part.parent, source.stat().st_size)
    with _disk_errors(part):
        try:
            shutil.copyfile(source, part)
        except PermissionError as error:
            raise TransferError(f'{source} cannot be copied: {error}') from error


def from_drive(folder: str, file: str, part: Path) -> None:
    """Downloads a file by its name from a public Google Drive folder. Never run: Drive could not be reached here.

    Raises:
        TransferError: gdown is not installed, or it failed.
    """
    try:
        import gdown
    except ImportError as error:
        raise TransferError("gdown is not installed: pip install 'pinas-zoo[download]'") from error
    try:
        listing = gdown.download_folder(id=folder, skip_download=True, quiet=True) or []
        match = next((item for item in listing if Path(item.path).name == file), None)
        if match is None:
            raise TransferError(f'the folder does not list {file}, only {[item.path for item in listing]}')
        gdown.download(id=match.id, output=str(part), quiet=False)
    except TransferError:
        raise
    except Exception as error:  # types of gdown and requests, neither of which is imported here
        raise TransferError(
            f'gdown: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
        ) from error
    if not part.is_file():
        raise TransferError('gdown returned no file')


def from_url(url: str, part: Path, size: int | None, policy: Policy) -> None:
    """Downloads a URL, continuing what `part` already contains.

    Args:
        url: http or https URL.
        part: Partial file; its validator (ETag) is kept beside it.
        size: Expected number of bytes; None if unknown.
        policy: Retries and time-outs.

    Raises:
        TransferError: The server does not have it, keeps failing, or announces another size; or the disk is full.
    """
    if not url.startswith(('http://', 'https://')):
        raise TransferError(f'only http and https URLs are supported, got {url}')
    for attempt in range(1, policy.attempts + 1):
        before = _length(part)
        try:
            _request(url, part, size, policy)
            return
        except HTTPError as error:
            if error.code == 416 and before:  # our part is not the beginning of this file
                _forget(part)
                continue
            reason, again = f'HTTP {error.code} {error.reason}', error.code >= 500
        except _BrokenBodyError as error:
            reason, again = str(error), True
            if _length(part) > before and attempt < policy.attempts:
                continue  # there was progress: no pause
        except (URLError, OSError, HTTPException) as error:
            cause = getattr(error, 'reason', error)
            reason, again = f'{type(cause).__name__}: {cause}', isinstance(cause, TimeoutError)
        if not again or attempt == policy.attempts:
            tries = f' (tried {attempt} times)' if attempt > 1 else ''
            raise TransferError(f'{reason}{tries}')
        time.sleep(policy.pause * 2 ** (attempt - 1))
    raise TransferError('the server refuses every range of it')


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator(part: Path) -> Path:
    return part.with_name(part.name + '.etag')


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator(part).unlink(missing_ok=True)


def _request(url: str, part: Path, size: int | None, policy: Policy) -> None:
    offset, headers = _length(part), {'Accept-Encoding': 'identity', 'User-Agent': 'pinas_zoo'}
    if offset:
        headers['Range'] = f'bytes={offset}-'
        if _validator(part).is_file():
            headers['If-Range'] = _validator(part).read_text()
    with urlopen(Request(url, headers=headers), timeout=policy.timeout) as answer:
        if answer.status != 206:
            offset = 0  # the whole file, either requested or because Range was ignored
        elif (match := re.match(r'bytes (\d+)-', answer.headers.get('Content-Range', ''))) is None or (
            int(match[1]) != offset
        ):
            _forget(part)
            raise _BrokenBodyError(
                f'the server sent another range than requested: {answer.headers.get("Content-Range")}'
            )
        announced = answer.headers.get('Content-Length')
        total = None if announced is None else offset + int(announced)
        if size is not None and total is not None and total != size:
            _forget(part)
            raise TransferError(f'the server announces {total} bytes, the manifest has {size}')
        known = total if total is not None else size
        check_space(part.parent, (known or 0) - offset)
        etag = answer.headers.get('ETag') or answer.headers.get('Last-Modified')
        if etag and not etag.startswith('W/'):
            _validator(part).write_text(etag)
        else:
            _validator(part).unlink(missing_ok=True)
        _write(answer, part, offset, known)
    if known is not None and _length(part) != known:
        raise _BrokenBodyError(f'the connection ended after {_length(part)} of {known} bytes')


def _write(answer: HTTPResponse, part: Path, offset: int, total: int | None) -> None:
    bar = tqdm(total=total, initial=offset, unit='B', unit_scale=True, desc=part.name.strip('.'), disable=None)
    with _disk_errors(part), bar, open(part, 'ab' if offset else 'wb') as file:
        while True:
            try:
                chunk = answer.read(CHUNK)
            except TimeoutError:
                raise
            except (OSError, HTTPException) as error:
                raise _BrokenBodyError(f'the connection broke: {type(error).__name__}') from error
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
