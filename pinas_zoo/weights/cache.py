"""The cache of downloaded weights: its folder, and the hashes that its files are checked against."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from pinas_zoo.files import file_sha256, write_text

__all__ = ['cache_dir', 'hash_of', 'is_good', 'record', 'record_path', 'recorded', 'set_aside']

_logger = logging.getLogger('pinas_zoo')
#: Hashes that this process has computed, by path, size and modification time.
_hashes: dict[tuple[str, int, int], str] = {}


def cache_dir() -> Path:
    """The folder of downloaded weights; it need not exist."""
    if home := os.environ.get('PINAS_ZOO_HOME'):
        return Path(home).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'pinas_zoo' / 'weights'


def hash_of(path: Path) -> str:
    """The sha256 of a file, computed once per process."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = file_sha256(path)
    return _hashes[key]


def record_path(path: Path) -> Path:
    """The file beside a weight file that records its hash and origin."""
    return path.with_name(f'{path.name}.json')


def recorded(path: Path) -> str | None:
    """The hash that was recorded when the file was first downloaded."""
    try:
        return json.loads(record_path(path).read_text(encoding='utf-8'))['sha256']
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record(path: Path, origin: dict[str, Any], digest: str | None = None, size: int | None = None) -> None:
    """Writes the record of a file: its hash, its size and where it comes from."""
    content = {'sha256': digest or hash_of(path), 'size': path.stat().st_size if size is None else size, **origin}
    write_text(record_path(path), json.dumps(content, indent=1) + '\n')


def is_good(path: Path, sha256: str | None, record: bool = False) -> bool:
    """Whether a file exists and has the recorded hash, or that of the manifest.

    Args:
        path: File in the cache.
        sha256: The manifest's hash; None if unknown.
        record: Record the hash of a file that was placed by hand.
    """
    if not path.is_file():
        return False
    expected = sha256 or recorded(path)
    if expected is None:
        _logger.warning('%s was placed by hand and its sha256 is not published: %s', path, hash_of(path))
        if record:
            record(path, {'from': 'placed by hand'})
        return True
    return hash_of(path) == expected


def set_aside(path: Path) -> None:
    """Renames a damaged file to `.bad`."""
    if path.is_file():
        _logger.warning('%s is damaged (its sha256 is not the recorded one): renamed to %s.bad', path, path.name)
        path.replace(path.with_name(f'{path.name}.bad'))
