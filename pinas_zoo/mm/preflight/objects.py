"""Checks of a COCO file's annotations: boxes, crowds and masks, and whether any object is left to learn from."""

import math
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import repeat
from operator import eq, itemgetter
from typing import Any

import numpy as np

from pinas_zoo.data.trees import shorten
from pinas_zoo.mm.preflight.annotation_file import AnnotationFile, brief
from pinas_zoo.mm.preflight.coco_json import opened
from pinas_zoo.mm.preflight.findings import Findings
from pinas_zoo.mm.preflight.masks import mask_fault, plain_masks, usable_polygons, wrong_counts

__all__ = ['Objects', 'check_masks', 'check_objects', 'left_over', 'unseen_classes']

_OPENED = 1000  # masks that are opened to see whether coordinates are pixels


class Objects:
    """Annotations of known images, with their boxes as arrays.

    Args:
        file: The file, without errors.
        annotations: Those of images and categories in the file.

    Attributes:
        sizes: float64 (N, 2), width and height of each annotation's image.
        boxes: float64 (N, 4) as x, y, width, height; None if one is not a box.
        flags: iscrowd of each; None if it has none.
        crowd: bool (N,).
    """

    def __init__(self, file: AnnotationFile, annotations: list[dict[str, Any]]) -> None:
        self.file, self.annotations = file, annotations
        place = {image['id']: number for number, image in enumerate(file.images)}
        sizes = np.array([(image['width'], image['height']) for image in file.images], np.float64).reshape(-1, 2)
        owners = map(place.__getitem__, map(itemgetter('image_id'), annotations))
        self.sizes = sizes[np.fromiter(owners, np.int64, len(annotations))]
        self.boxes = _boxes(list(map(itemgetter('bbox'), annotations)))
        self.flags = [annotation.get('iscrowd') for annotation in annotations]
        self.crowd = np.array(list(map(eq, self.flags, repeat(1))), bool)

    def describe(self, mask: np.ndarray) -> str:
        """The first annotation of a mask, its image and its box, and how many more there are."""
        index = int(np.flatnonzero(mask)[0])
        annotation, (width, height) = self.annotations[index], self.sizes[index]
        more = f'; {int(mask.sum()) - 1:,} more' if mask.sum() > 1 else ''
        return (
            f'of annotation {annotation["id"]} in image {annotation["image_id"]} ({width:.0f}x{height:.0f} px): '
            f'bbox {annotation["bbox"]}{more}'
        )

    @cached_property
    def read(self) -> np.ndarray:
        """Which ones mmdet does not leave out because of their box or area.

        Shape: bool (N,)
        """
        assert self.boxes is not None
        starts, ends = np.maximum(self.boxes[:, :2], 0), np.minimum(self.boxes[:, :2] + self.boxes[:, 2:], self.sizes)
        ignored = np.array([bool(annotation.get('ignore')) for annotation in self.annotations], bool)
        return (ends > starts).all(1) & (self.boxes[:, 2:] >= 1).all(1) & (self.areas > 0) & ~ignored

    @cached_property
    def areas(self) -> np.ndarray:
        """Their areas, infinite if they exceed what a float holds.

        Shape: float64 (N,)
        """
        values = list(map(itemgetter('area'), self.annotations))
        try:
            return np.array(values, np.float64)
        except OverflowError:  # an integer of hundreds of digits
            return np.array([float(v) if abs(v) < 1e300 else math.inf if v > 0 else -math.inf for v in values])


def check_objects(objects: Objects, training: bool, findings: Findings) -> bool:
    """Check boxes, areas and crowds.

    Args:
        objects: Annotations.
        training: Whether mmdet learns from them; otherwise pycocotools compares with them.
        findings: Receives the lines.

    Returns:
        Whether they are reliable.
    """
    file, before = objects.file, len(findings.errors)
    _check_fields(objects, findings)
    if objects.boxes is None:
        wrong = [annotation for annotation in objects.annotations if not _is_box(annotation['bbox'])]
        text = f'has bbox {brief(wrong[0]["bbox"])}, which must be four numbers'
        findings.errors.append(file.say(wrong, 'annotation', text))
        return False
    boxes, limits = objects.boxes, objects.sizes
    with np.errstate(invalid='ignore', over='ignore'):
        ends = boxes[:, :2] + boxes[:, 2:]
    finite = np.isfinite(boxes).all(1)
    empty = ~(boxes[:, 2:] > 0).all(1)
    # A pixel of rounding is tolerated.
    outside = ~empty & ((boxes[:, :2] >= limits + 1) | (ends <= -1)).any(1)
    if not finite.all():
        findings.errors.append(f'{file.path}: a box that is not finite, {objects.describe(~finite)}')
    if outside.any():
        findings.errors.append(f'{file.path}: a box entirely outside the image, {objects.describe(outside)}')
    if (empty & finite).any():
        line = objects.describe(empty & finite)
        what = 'which mmdet leaves out' if training else 'which counts as an object that nothing can find'
        findings.warnings.append(f'{file.path}: a box without area, {what}, {line}')
    _check_areas(objects, np.asarray((boxes[:, 2:] > 0).all(1)), training, findings)
    beyond = (ends > limits + 1).any(1)
    if not outside.any() and beyond.sum() > len(boxes) // 2:
        findings.warnings.append(
            f'{file.path}: {int(beyond.sum()):,} of {len(boxes):,} boxes reach beyond their image; COCO writes x, y, '
            f'width, height, not two corners; the first is {objects.describe(beyond)}'
        )
    return len(findings.errors) == before


def _check_fields(objects: Objects, findings: Findings) -> None:
    """iscrowd, and areas that are not numbers."""
    file, annotations = objects.file, objects.annotations
    if not (set(map(type, objects.flags)) <= {int, bool} and set(objects.flags) <= {0, 1}):
        if wrong := [a for a in annotations if (flag := a.get('iscrowd', 0)) not in (0, 1) or type(flag) is float]:
            text = f'has iscrowd {brief(wrong[0]["iscrowd"])}, which must be 0 or 1'
            findings.errors.append(file.say(wrong, 'annotation', text))
        if wrong := [a for a in annotations if 'iscrowd' not in a]:
            text = f'has no iscrowd, which is taken as 0 ({len(wrong):,} of {len(annotations):,} annotations)'
            findings.warnings.append(file.say(wrong[:1], 'annotation', text))
    if not (finite := np.isfinite(objects.areas)).all():
        wrong = [annotations[index] for index in np.flatnonzero(~finite)]
        findings.errors.append(file.say(wrong, 'annotation', f'has area {brief(wrong[0]["area"])}'))


def _check_areas(objects: Objects, solid: np.ndarray, training: bool, findings: Findings) -> None:
    """Areas for which mmdet, or the metric, leaves an object with a box out."""
    small = solid & (objects.areas <= 0 if training else objects.areas < 0)
    if small.any():
        wrong = [objects.annotations[index] for index in np.flatnonzero(small)]
        text = f'has area {brief(wrong[0]["area"])}, and {"training" if training else "the metric"} leaves it out'
        findings.warnings.append(objects.file.say(wrong, 'annotation', text))


def check_masks(objects: Objects, training: bool, filled: bool, findings: Findings) -> np.ndarray:
    """Check the masks of annotations.

    Args:
        objects: Annotations with boxes.
        training: Only what mmdet reads for training counts; pycocotools reads all.
        filled: Whether masks become bitmaps (poly2mask); otherwise RLEs are left out in training.
        findings: Receives the lines.

    Returns:
        Which annotations have a mask that is used; bool (N,).
    """
    file, annotations = objects.file, objects.annotations
    looked = objects.read.copy() if training else np.ones(len(annotations), bool)
    missing, faults, partial, dropped = [], [], [], []
    coded: dict[int, dict[str, Any]] = {}
    first = ''
    masks = [annotation.get('segmentation') for annotation in annotations]
    polygons = plain_masks(masks, objects.sizes.max(1, initial=0))
    for index in np.flatnonzero(looked & ~polygons).tolist():
        annotation, mask, (width, height) = annotations[index], opened(masks[index]), objects.sizes[index].tolist()
        polygons[index] = type(mask) is list
        if not mask:
            missing.append(annotation)
        elif fault := mask_fault(mask, height, width):
            first = first or fault
            faults.append(annotation)
        elif type(mask) is dict:
            if type(mask['counts']) is str:
                coded[index] = mask
        elif left_out := [polygon for polygon in mask if len(polygon) < 6 or len(polygon) % 2]:
            dropped.append(len(left_out[0]))
            partial.append(annotation)
    if missing:
        more = f' (and {len(missing) - 1:,} others)' if len(missing) > 1 else ''
        findings.errors.append(
            f'{file.path}: annotation {missing[0]["id"]}{more} has no segmentation, but the pipeline loads masks '
            '(with_mask=True) or the evaluator compares them: a detector without masks can learn from it'
        )
    if faults:
        findings.errors.append(file.say(faults, 'annotation', first))
    if coded:
        _check_counts(objects, coded, findings)
    if partial:
        text = f'has a polygon of {dropped[0]} numbers, which is left out; its other polygons are kept'
        findings.warnings.append(file.say(partial, 'annotation', text))
    if not faults and not missing and (relative := _relative(objects, looked & polygons, masks)):
        text = f'has polygons within the first pixel, as most do: {brief(opened(relative[0]["segmentation"]))}; '
        text += 'coordinates are pixels, not shares of the size'
        findings.errors.append(file.say(relative, 'annotation', text))
    if training and not filled:
        looked &= polygons
    return looked


def _relative(objects: Objects, looked: np.ndarray, masks: Sequence[Any]) -> list[dict[str, Any]]:
    """Annotations with a larger box whose polygons end within the first pixel, if most are such; some are opened."""
    assert objects.boxes is not None
    places = np.flatnonzero(looked & (objects.boxes[:, 2:].max(1, initial=0) > 2))
    places = places[:: len(places) // _OPENED + 1]
    found = []
    for index in places.tolist():
        mask = opened(masks[index])
        if type(mask) is list and max(map(max, usable_polygons(mask)), default=2) <= 1:
            found.append(objects.annotations[index])
    return found if 2 * len(found) > len(places) else []


def _check_counts(objects: Objects, coded: dict[int, dict[str, Any]], findings: Findings) -> None:
    indices = list(coded)
    if wrong := list(wrong_counts(list(coded.values()), objects.sizes[indices].prod(1).tolist())):
        found = [objects.annotations[indices[place]] for place in wrong]
        width, height = objects.sizes[indices[wrong[0]]]
        text = f'has an RLE that is damaged or has another number of pixels than its image, {width:.0f}x{height:.0f}'
        findings.errors.append(objects.file.say(found, 'annotation', text))


def left_over(objects: Objects, used: np.ndarray, training: bool) -> str:
    """Why no object is left to learn from, or to compare with; '' if there are some.

    Args:
        objects: Annotations with boxes, of the categories that the data set keeps.
        used: Those with a mask that is used, or all.
        training: Do not count what mmdet leaves out for training.
    """
    crowd, read = objects.crowd, objects.read if training else objects.areas >= 0
    if (used & read & ~crowd).any():
        return ''
    parts = [f'{int(crowd.sum()):,} are crowds (iscrowd 1)' if crowd.any() else '']
    if not read.all():
        what = 'have no box of a pixel in their image, no area, or "ignore"' if training else 'have a negative area'
        parts.append(f'{int((~read).sum()):,} {what}')
    if (read & ~used).any():
        parts.append(f'{int((read & ~used).sum()):,} have no polygons (RLE needs poly2mask=True in LoadAnnotations)')
    if objects.boxes is not None and objects.boxes.size and objects.boxes.max() <= 1:
        parts.append('all boxes are within one pixel: COCO has pixels, not shares of the size')
    return shorten(filter(None, parts), 4)


def _boxes(found: list[list[Any]]) -> np.ndarray | None:
    """Boxes as an array; None if one is not four numbers."""
    numbers = array('d')
    try:
        deque(map(numbers.fromlist, found), maxlen=0)  # refuses texts and lists
    except (TypeError, OverflowError):
        return None
    return None if set(map(len, found)) - {4} else np.frombuffer(numbers).reshape(-1, 4)


def _is_box(value: list[Any]) -> bool:
    return len(value) == 4 and _boxes([value]) is not None


def unseen_classes(file: AnnotationFile, annotations: Iterable[dict[str, Any]], classes: Sequence[str]) -> list[str]:
    """Classes without any annotation."""
    found = set(map(itemgetter('category_id'), annotations))
    seen = {category['name'] for category in file.categories if category['id'] in found}
    return [name for name in classes if name not in seen]
