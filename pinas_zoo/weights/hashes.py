"""Hashes of weight files: computed, recorded beside the file, and pinned by the user.

The authors of Pi-NAS publish no hashes, and this project never obtained their files. Such a file is trusted on first
use: the log says so at its download, its hash is recorded, and another file is refused from then on. Whoever knows
the hash pins it, for one call (`fetch(name, sha256=...)`, ``pretrained_sha256=`` of timm's entry points,
``pinas download --sha256``, ``pinas://NAME#sha256=HEX``) or for all (``$PINAS_ZOO_SHA256``).
"""

import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from pinas_zoo.files import file_sha256, write_text
from pinas_zoo.weights.manifest import Entry, find_entry

__all__ = [
    'VARIABLE',
    'is_good',
    'record_origin',
    'record_path',
    'recorded_sha256',
    'recorded_source',
    'set_aside',
    'sha256_of',
    'warn_of_first_use',
    'with_pin',
]

#: NAME=HEX, separated by spaces or commas.
VARIABLE = 'PINAS_ZOO_SHA256'

_logger = logging.getLogger('pinas_zoo')
#: Hashes that this process has computed, by path, size and modification time.
_hashes: dict[tuple[str, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """The hash of a file, computed once per process while the file does not change."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = file_sha256(path)
    return _hashes[key]


# ---- pins ------------------------------------------------------------------------------------------------------------


def with_pin(entry: Entry, sha256: str | None) -> Entry:
    """An entry whose downloaded file must have a hash that the user gave.

    Args:
        entry: The entry; for one of the authors' files the hash is that of their file.
        sha256: The hash; None takes that of ``$PINAS_ZOO_SHA256``, if there is one.

    Raises:
        ValueError: The hash is malformed, or the manifest has another one.
    """
    origin = 'the given sha256'
    if sha256 is None:
        sha256, origin = _environment().get(entry.name), f'${VARIABLE}'
        if sha256 is None:
            return entry
    if not re.fullmatch(r'[0-9a-fA-F]{64}', sha256):
        raise ValueError(f'{entry.name}: {origin} must have 64 hexadecimal digits, got {sha256!r}')
    pin, released = sha256.lower(), entry.released
    known = entry.sha256 if released is None else released.sha256
    if known not in (None, pin):
        raise ValueError(f'{entry.name}: {origin} is {pin}, the manifest has {known}')
    if released is None:
        return replace(entry, sha256=pin)
    return replace(entry, released=replace(released, sha256=pin))


def _environment() -> dict[str, str]:
    pins = {}
    for item in re.split(r'[\s,]+', os.environ.get(VARIABLE, '').strip()):
        if item:
            name, separator, digest = item.partition('=')
            if not separator:
                raise ValueError(f'${VARIABLE} must be NAME=HEX, separated by spaces or commas; it has {item!r}')
            pins[find_entry(name).name] = digest
    return pins


def warn_of_first_use(entry: Entry, file: str, sha256: str | None = None) -> None:
    """Says that a file of unknown hash is fetched, or with a hash, that it was fetched and is trusted from now on.

    Args:
        entry: The weights.
        file: The file that is fetched.
        sha256: Its hash, once it is there.
    """
    if sha256 is None:
        _logger.warning(
            '%s: no sha256 of %s is published and this project never had the file, so the first download is trusted. '
            'If you know its hash, pin it: --sha256 HEX, pretrained_sha256=HEX or %s=%s=HEX.',
            entry.name,
            file,
            VARIABLE,
            entry.name,
        )
    else:
        _logger.warning(
            '%s: %s has sha256 %s; it is recorded, and another file will be refused', entry.name, file, sha256
        )


# ---- records ---------------------------------------------------------------------------------------------------------


def record_path(path: Path) -> Path:
    """The record beside a file."""
    return path.with_name(f'{path.name}.json')


def recorded_sha256(path: Path) -> str | None:
    """The hash that was recorded when the file was first downloaded."""
    return _read(path, 'sha256')


def recorded_source(path: Path) -> str | None:
    """The hash of the authors' file that a file was converted from."""
    return _read(path, 'source_sha256')


def _read(path: Path, key: str) -> str | None:
    try:
        return json.loads(record_path(path).read_text(encoding='utf-8'))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record_origin(path: Path, origin: dict[str, Any], digest: str | None = None, size: int | None = None) -> None:
    """Writes the record of a file.

    Args:
        path: The file.
        origin: Where it came from.
        digest: Its hash; None computes it.
        size: Its bytes; None reads them.
    """
    content = {'sha256': digest or sha256_of(path), 'size': path.stat().st_size if size is None else size, **origin}
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
    expected = sha256 or recorded_sha256(path)
    if expected is None:
        _logger.warning('%s was placed by hand and its sha256 is not published: %s', path, sha256_of(path))
        if record:
            record_origin(path, {'from': 'placed by hand'})
        return True
    return sha256_of(path) == expected


def set_aside(path: Path) -> None:
    """Renames a file, if it exists, to `.bad`."""
    if path.is_file():
        _logger.warning('%s does not have the expected sha256: renamed to %s.bad', path, path.name)
        path.replace(path.with_name(f'{path.name}.bad'))
