"""Instance masks of COCO's format: lists of polygons, and run lengths (RLE), compressed or not."""

import math
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

from pinas_zoo.mm.preflight.annotation_file import brief
from pinas_zoo.mm.preflight.coco_json import opened_numbers

__all__ = ['mask_fault', 'plain_masks', 'usable_polygons', 'wrong_counts']

_POINTS = 'at least three points (6 numbers, x and y in turn)'
_CHUNK = 10_000  # masks whose run lengths are unpacked together
_FEW = 250  # masks whose coordinates are looked at together: as many as a processor's cache holds


def usable_polygons(mask: list[Any]) -> list[Any]:
    """The polygons of a mask that mmdet keeps: an even number of coordinates, at least six."""
    return [polygon for polygon in mask if len(polygon) >= 6 and not len(polygon) % 2]


def plain_masks(masks: Sequence[Any], sides: np.ndarray) -> np.ndarray:
    """Which masks are certainly valid: polygons of numbers from 0 on that do not exceed the image by far.

    Fast, for files with a million of them: `mask_fault` checks the others.

    Args:
        masks: Segmentations of annotations, or their texts.
        sides: Longer sides of their images, (N,).

    Returns:
        bool (N,)
    """
    plain = np.zeros(len(masks), bool)
    for start in range(0, len(masks), _FEW):
        chunk = list(map(opened_numbers, masks[start : start + _FEW]))
        places = np.flatnonzero([type(mask) is list and bool(mask) for mask in chunk])
        found = [chunk[place] for place in places.tolist()]
        polygons = list(chain.from_iterable(found))
        if not set(map(type, polygons)) <= {list} or not all(polygons):
            kept = [all(type(polygon) is list and polygon for polygon in mask) for mask in found]
            places, found = places[kept], list(compress(found, kept))
            polygons = list(chain.from_iterable(found))
        if polygons:
            owners = np.repeat(places, np.fromiter(map(len, found), np.int64, len(found)))
            wrong = owners[~_plain_polygons(polygons, 2 * sides[start + owners])]
            plain[start + places] = True
            plain[start + wrong] = False
    return plain


def _plain_polygons(polygons: Sequence[list[Any]], limits: np.ndarray) -> np.ndarray:
    """Which polygons, none of them empty, have an even number of coordinates, at least six, from 0 to a limit."""
    numbers = array('d')
    try:
        deque(map(numbers.fromlist, polygons), maxlen=0)  # refuses texts
    except (TypeError, OverflowError):  # one of them has something else: mask_fault finds it
        return np.zeros(len(polygons), bool)
    values = np.frombuffer(numbers)
    sizes = np.fromiter(map(len, polygons), np.int64, len(polygons))
    starts = np.cumsum(sizes) - sizes
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)  # NaN if one is NaN
    return (sizes >= 6) & (sizes % 2 == 0) & (low >= 0) & (high <= limits)


def mask_fault(mask: Any, height: float, width: float) -> str:
    """Why a mask cannot be used; '' if it can.

    The run lengths of compressed masks are left to `wrong_counts`.

    Args:
        mask: An annotation's segmentation.
        height: Height of its image in px, according to the file.
        width: Width, likewise.
    """
    if type(mask) is list:
        try:
            return _polygons_fault(mask, max(height, width))
        except (TypeError, OverflowError):
            return f'has a polygon with a coordinate that is not a number: {brief(mask)}'
    if type(mask) is not dict or 'counts' not in mask or 'size' not in mask:
        return f'has segmentation {brief(mask)}, which must be a list of polygons or an RLE with counts and size'
    if mask['size'] != [height, width]:
        return f'has an RLE of size {brief(mask["size"])}, its image is [{height:.0f}, {width:.0f}] (height, width)'
    counts = mask['counts']
    if type(counts) is str:
        return ''
    if type(counts) is not list or not all(type(count) is int and count >= 0 for count in counts):
        return f'has an RLE with counts {brief(counts)}, which must be a text or a list of run lengths'
    if sum(counts) != height * width:
        return f'has an RLE of {sum(counts):,} px, its image has {int(height * width):,}'
    return ''


def _polygons_fault(mask: list[Any], side: float) -> str:
    kept = 0
    for polygon in mask:
        if type(polygon) is not list:
            if type(polygon) in (int, float):
                return f'has a flat list of {len(mask)} numbers as segmentation, which must be a list of polygons'
            return f'has segmentation {brief(mask)}, which must be a list of polygons'
        if len(polygon) < 6 or len(polygon) % 2:
            continue
        kept += 1
        # pycocotools walks along every edge: a coordinate of 1e9 costs gigabytes.
        if not math.isfinite(sum(polygon)) or min(polygon) < -side or max(polygon) > 2 * side:
            return f'has a polygon that is not finite or exceeds its image by its full size: {brief(polygon)}'
    return '' if kept else f'has no polygon of {_POINTS}: {brief(mask)}'


def wrong_counts(masks: Sequence[dict[str, Any]], pixels: Sequence[float]) -> Iterator[int]:
    """Which compressed masks are damaged or do not have as many pixels as their image.

    pycocotools unpacks such a text beyond the end of its memory.

    Args:
        masks: RLEs whose counts are texts.
        pixels: Pixels of their images.

    Yields:
        Indices into `masks`.
    """
    for start in range(0, len(masks), _CHUNK):
        texts = [mask['counts'] for mask in masks[start : start + _CHUNK]]
        found = _totals(texts)
        for place, (total, wanted) in enumerate(zip(found, pixels[start : start + _CHUNK], strict=True)):
            if total != wanted:
                yield start + place


def _totals(texts: Sequence[str]) -> np.ndarray:
    """Number of pixels in each text of run lengths; -1 for a damaged one."""
    coded = [text.encode('utf-8', 'replace') for text in texts]
    sizes = np.array([len(text) for text in coded])
    totals = np.full(len(texts), -1, np.int64)
    # Of six bits in each character the highest says that the number continues.
    sound = np.array([bool(c) and min(c) >= 48 and max(c) < 112 and not (c[-1] - 48) & 32 for c in coded], bool)
    if not sound.any():
        return totals
    bits = np.frombuffer(b''.join(c for c, good in zip(coded, sound, strict=True) if good), np.uint8).astype(np.int64)
    bits -= 48
    owner = np.repeat(np.arange(int(sound.sum())), sizes[sound])
    last = (bits & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    number = np.cumsum(last) - last
    place = np.arange(len(bits)) - starts[number]
    values = np.bitwise_or.reduceat((bits & 31) << np.minimum(5 * place, 55), starts)
    ends = np.flatnonzero(last)
    values -= np.where(bits[ends] & 16, np.int64(1) << np.minimum(5 * (place[ends] + 1), 60), 0)
    totals[sound] = _sum_runs(values, owner[ends])
    return totals


def _sum_runs(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Sums of runs that are, from the fourth on, coded as differences to the last but one; -1 for a negative run."""
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(owner)) + 1])
    place = np.arange(len(values)) - firsts[owner]
    # The first run is absolute; the odd ones and the even ones from the third on form two chains.
    chain = np.where(place == 0, 0, 1 + place % 2) + 3 * owner
    order = np.argsort(chain, kind='stable')
    summed = np.cumsum(values[order])
    begins = np.concatenate([[0], np.flatnonzero(np.diff(chain[order])) + 1])
    before = np.where(begins > 0, summed[begins - 1], 0)
    runs = summed - np.repeat(before, np.diff([*begins, len(values)]))
    totals = np.zeros(int(owner[-1]) + 1, np.int64)
    np.add.at(totals, owner[order], runs)
    totals[np.unique(owner[order][runs < 0])] = -1
    return totals
