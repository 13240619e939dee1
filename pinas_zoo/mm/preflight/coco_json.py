"""Reads annotation files of COCO's format: JSON with three lists, of up to half a gigabyte."""

import codecs
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, reduce
from operator import or_
from typing import Any, NotRequired, TypedDict

from pinas_zoo.mm.preflight.findings import BadInputError, repeated

try:
    import msgspec
except ImportError:  # optional: the standard library reads the same, but takes four times as long
    msgspec = None  # type: ignore[assignment]

__all__ = ['load', 'load_used', 'opened', 'opened_numbers', 'read_categories', 'uncollected']

_LISTS = ('images', 'annotations', 'categories')
#: Keys of an annotation that need not be there; any value is taken.
_OPTIONAL = ('iscrowd', 'ignore')
#: Fields of an entry, and the types of their values.
Fields = Mapping[str, tuple[type, ...]]
#: What msgspec raises for what it does not read.
_UNREAD = (ValueError, RecursionError)
_UTF8_BOM, _GZIP = b'\xef\xbb\xbf', b'\x1f\x8b'


class _Categories(TypedDict):
    categories: list[Any]


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
    return _load(path, None)[0]


def load_used(path: str, fields: Mapping[str, Fields]) -> tuple[dict[str, Any], bool]:
    """What the checks use of an annotation file: `load` in half of its time and memory.

    Args:
        path: As for `load`.
        fields: Keys that every 'image', 'annotation' and 'category' must have.

    Returns:
        The three lists, and whether all entries are known to have these fields. If so, the entries have no others
        except the optional ones, and masks are texts that `opened` reads.

    Raises:
        BadInputError: As for `load`.
    """
    return _load(path, fields)


def read_categories(content: bytes) -> list[Any]:
    """The categories of an annotation file, without the time that the rest of it takes.

    Raises:
        ValueError: The content is not JSON.
        KeyError: It has no categories.
        TypeError: It is not an object.
    """
    if msgspec is not None:
        with suppress(*_UNREAD):
            found: list[Any] = msgspec.json.decode(content, type=_Categories)['categories']
            return found
    return json.loads(content)['categories']


def opened(mask: Any) -> Any:
    """The value of a mask that may still be a text of the file."""
    if msgspec is None or type(mask) is not msgspec.Raw:
        return mask
    try:
        return msgspec.json.decode(mask)
    except msgspec.MsgspecError:
        return json.loads(bytes(mask))  # a number that only the standard library takes, as infinite


def opened_numbers(mask: Any) -> Any:
    """As `opened`, but all numbers of polygons are floats, which is faster."""
    if msgspec is None or type(mask) is not msgspec.Raw:
        return mask
    try:
        return _polygons()(mask)
    except msgspec.MsgspecError:
        return opened(mask)


@cache
def _polygons() -> Callable[[Any], Any]:
    return msgspec.json.Decoder(list[list[float]] | dict[str, Any]).decode


def _load(path: str, fields: Mapping[str, Fields] | None) -> tuple[dict[str, Any], bool]:
    try:
        with open(path, 'rb') as file, uncollected():
            document, typed, doubtful = _parse(file.read(), fields)
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
        return {**document, 'annotations': []}, typed  # test-dev has none
    if missing:
        raise BadInputError(f'{path}: has no list of {", ".join(missing)}, as annotation files of COCO have')
    return document, typed


def _parse(content: bytes, fields: Mapping[str, Fields] | None) -> tuple[Any, bool, bool]:
    """The document, whether it has the fields, and whether a list may be in it twice."""
    doubtful = any(content.count(f'"{key}"'.encode()) > 1 for key in _LISTS)
    if msgspec is not None:
        text = memoryview(content)[len(_UTF8_BOM) if content.startswith(_UTF8_BOM) else 0 :]
        # What is left out is not decoded, so its characters are checked here.
        if fields is not None and (content.isascii() or _is_utf8(content)):
            with suppress(*_UNREAD):
                return _decoder(fields)(text), True, doubtful
        with suppress(*_UNREAD):  # NaN, UTF-16, or not JSON: the standard library knows, and says where
            return msgspec.json.decode(text), False, doubtful
        del text
    decoded = content.decode(json.detect_encoding(content), 'surrogatepass')
    del content  # a file of COCO's size would be held twice
    return json.loads(decoded), False, doubtful


def _decoder(fields: Mapping[str, Fields]) -> Callable[[memoryview], Any]:
    """Reads a document whose entries have fields of these types; refuses any other."""
    typed: Any = TypedDict  # mypy wants literals
    many: Any = list
    entries: dict[str, Any] = {
        what: {key: reduce(or_, types) for key, types in found.items()} for what, found in fields.items()
    }
    entries['annotation'] |= {**dict.fromkeys(_OPTIONAL, NotRequired[Any]), 'segmentation': NotRequired[msgspec.Raw]}
    image, annotation, category = (typed(what, entries[what]) for what in ('image', 'annotation', 'category'))
    lists = {'images': many[image], 'annotations': NotRequired[many[annotation]], 'categories': many[category]}
    return msgspec.json.Decoder(typed('document', lists)).decode


def _is_utf8(content: bytes) -> bool:
    decoder = codecs.getincrementaldecoder('utf-8')()
    try:
        for start in range(0, len(content), 1 << 20):
            decoder.decode(content[start : start + (1 << 20)])
        decoder.decode(b'', True)
    except UnicodeDecodeError:
        return False
    return True


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
