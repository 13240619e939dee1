"""Reads annotation files of COCO's format: JSON with three lists, of up to half a gigabyte."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pinas_zoo.mm.preflight.findings import BadInputError, repeated

try:
    import msgspec
except ImportError:  # optional: the standard library reads the same, but takes four times as long
    msgspec = None  # type: ignore[assignment]

__all__ = ['load', 'uncollected']

_LISTS = ('images', 'annotations', 'categories')
_UTF8_BOM, _GZIP = b'\xef\xbb\xbf', b'\x1f\x8b'


@contextmanager
def uncollected() -> Iterator[None]:
    """Disables garbage collection, which would traverse the millions of objects of COCO's file again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def load(path: str) -> dict[str, Any]:
    """The document of an annotation file, with its three lists.

    Args:
        path: JSON file, in UTF-8, UTF-16 or UTF-32, with or without byte order mark.

    Raises:
        BadInputError: It is not JSON, lacks a list, or contains one twice.
    """
    try:
        with open(path, 'rb') as file, uncollected():
            document, doubtful = _parse(file.read())
            twice = _repeated_lists(path) if doubtful else []
    except (ValueError, RecursionError) as error:
        raise BadInputError(f'{path}: not JSON ({error}){_hint(path)}') from None
    except OSError as error:
        raise BadInputError(f'{path}: {error.strerror}') from None
    if twice:
        raise BadInputError(
            f'{path}: has the key {", ".join(twice)} twice, of which readers keep the last: merge the lists'
        )
    missing = [k for k in _LISTS if not isinstance(document, dict) or not isinstance(document.get(k), list)]
    if missing == ['annotations'] and 'annotations' not in document:
        return {**document, 'annotations': []}  # test-dev has none
    if missing:
        raise BadInputError(f'{path}: has no list of {", ".join(missing)}, as annotation files of COCO have')
    return document


def _parse(content: bytes) -> tuple[Any, bool]:
    """The document, and whether a list may be in it twice."""
    doubtful = any(content.count(f'"{key}"'.encode()) > 1 for key in _LISTS)
    if msgspec is not None:
        start = len(_UTF8_BOM) if content.startswith(_UTF8_BOM) else 0
        try:
            return msgspec.json.decode(memoryview(content)[start:]), doubtful
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass  # NaN, UTF-16, or not JSON: the standard library knows, and says where
    text = content.decode(json.detect_encoding(content), 'surrogatepass')
    del content  # a file of COCO's size would be held twice
    return json.loads(text), doubtful


def _repeated_lists(path: str) -> list[str]:
    """Keys of the lists that the document itself, not an object within it, has twice."""
    keys: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        keys[:] = [key for key, _ in pairs]  # the outermost object ends last

    with open(path, 'rb') as file:
        json.loads(file.read(), object_pairs_hook=note)
    return [key for key in dict.fromkeys(repeated(keys)) if key in _LISTS]


def _hint(path: str) -> str:
    """What a file that is not JSON may be."""
    with open(path, 'rb') as file:
        start = file.read(1 << 16)
    if start.startswith(_GZIP):
        return ': it is compressed; unpack it with gunzip'
    first = start.splitlines()[0] if start.strip() else b''
    try:
        alone = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return ''
    return ': it looks like JSON Lines, an object per line; COCO is one object for the whole file' if alone else ''
