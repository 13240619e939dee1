"""Files: atomic writes, hashes, locks and JSON lines.

Everything that the package writes goes through `write_atomic` or `append_lines`, so that a killed process leaves either
the old content or the new, and at most one incomplete last line, which readers skip.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = [
    'append_lines',
    'file_lock',
    'file_sha256',
    'numbered_lines',
    'read_json',
    'read_lines',
    'sync_folder',
    'write_atomic',
    'write_bytes',
    'write_text',
]


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, fsyncs it and renames it: the complete file, or nothing.

    Args:
        path: Final name; missing folders are created.
        write: Writes the content to the temporary path that it gets.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp')
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Flushes a folder's entries to disk: a new or renamed file is durable only after that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes bytes, atomically."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: str | Path, text: str) -> None:
    """Writes a text, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding='utf-8'))


@contextmanager
def file_lock(path: str | Path, on_wait: Callable[[], None] | None = None) -> Iterator[IO[str]]:
    """Holds an exclusive lock; the system releases it when a process dies, so no stale lock remains.

    Args:
        path: File of the lock; it is created if missing and never removed. Its text may be read and written inside.
        on_wait: Called once if another process holds the lock.
    """
    import fcntl  # not available on every system that can import the package

    with open(path, 'a+', encoding='utf-8') as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle


def read_json(path: str | Path, *keys: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        keys: Keys that it must have.

    Raises:
        ValueError: It is not JSON or not an object, or lacks a key; the message names the file.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path}: not JSON ({error})') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} contains a {type(content).__name__}, not an object')
    if missing := [key for key in keys if key not in content]:
        raise ValueError(f'{path} has no {", ".join(missing)}')
    return content


def numbered_lines(path: str | Path) -> Iterator[tuple[int, bytes, Any]]:
    """The number, the bytes and the value of each line of a JSON-lines file; nothing if it does not exist.

    A last line that a killed process left incomplete is omitted.

    Raises:
        ValueError: A line before the last is unreadable.
    """
    path = Path(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f'{path}: line {number} is unreadable: {line[:80]!r}') from error
        yield number, line, value


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The readable records of a JSON-lines file; none if it does not exist.

    Unreadable lines are skipped wherever they are: a process that was killed while it appended leaves one, and later
    processes append after it. The work of such a line is done again.
    """
    path, records = Path(path), []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append_lines(path: str | Path, records: Sequence[dict[str, Any]]) -> None:
    """Appends records to a JSON-lines file, and waits until they are on disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a+b') as file:
        if file.tell() and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b'\n':
            file.write(b'\n')  # ends the incomplete line of a killed run
        for record in records:
            file.write(json.dumps(record, allow_nan=False).encode() + b'\n')
        file.flush()
        os.fsync(file.fileno())
