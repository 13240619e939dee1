"""Checks of a detection set in COCO's format as mmdet reads it: one pass over the annotation file."""

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from pinas_zoo.data.images import spaced
from pinas_zoo.data.trees import Listing, shorten
from pinas_zoo.mm.preflight.bad_input import BadInputError, read_image
from pinas_zoo.mm.preflight.findings import Findings, lacks, warn_of_orientation

_ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
_IMAGE_KEYS = ('id', 'file_name', 'height', 'width')


class AnnotationFile:
    """A COCO annotation file, read once.

    Args:
        path: JSON file.

    Raises:
        BadInputError: It is not such a file, or an entry lacks what mmdet reads.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        document = _load(path)
        self.images, self.annotations = document['images'], document['annotations']
        self.categories = document['categories']
        for entries, keys, what in (
            (self.images, _IMAGE_KEYS, 'image'),
            (self.annotations, _ANNOTATION_KEYS, 'annotation'),
        ):
            for entry in entries:
                if not all(key in entry for key in keys):
                    missing = [key for key in keys if key not in entry]
                    raise BadInputError(f'{path}: {what} {entry.get("id", "without id")} has no {", ".join(missing)}')
        self.image_ids = {image['id'] for image in self.images}


def check_coco(
    dataset: Any, node: ConfigDict, evaluators: Sequence[dict[str, Any]], listing: Listing, findings: Findings
) -> None:
    """Check an annotation file and the images that it names.

    Args:
        dataset: A CocoDataset that has not read anything yet.
        node: Its config.
        evaluators: Those of its loader; without boxes they have nothing to compare with.
        listing: Listing of folders.
        findings: Receives the lines.
    """
    folder = dataset.data_prefix.get('img') or dataset.data_prefix.get('img_path') or ''
    if lacks(dataset, [path for path in (dataset.ann_file, folder) if path], findings):
        return
    try:
        with _uncollected():
            file = AnnotationFile(dataset.ann_file)
            _check_images(file, folder, listing, findings)
            boxes_needed = not any(evaluator.get('format_only') for evaluator in evaluators)
            _check_annotations(file, dataset, _wants_masks(node), boxes_needed, findings)
    except BadInputError as error:
        findings.errors.append(str(error))


def check_evaluator(evaluators: Sequence[dict[str, Any]], nodes: Sequence[ConfigDict], findings: Findings) -> None:
    """Check that COCO metrics read the annotations of the set that they evaluate.

    Args:
        evaluators: Those of a loader.
        nodes: Configs of the loader's data sets.
        findings: Receives the lines.
    """
    files = {os.path.realpath(os.path.join(n.get('data_root') or '', n.get('ann_file') or '')) for n in nodes}
    for path in [evaluator['ann_file'] for evaluator in evaluators if evaluator.get('ann_file')]:
        if '://' in path:
            continue
        if not os.path.isfile(path):
            findings.errors.append(f'{path}: no such file (ann_file of the evaluator)')
        elif os.path.realpath(path) not in files and all(map(os.path.isfile, files)):
            evaluated = {image['id'] for file in files for image in _load(file)['images']}
            if lost := evaluated - {image['id'] for image in _load(path)['images']}:
                findings.errors.append(
                    f'{path}: the evaluator reads this file, which lacks {len(lost):,} of the {len(evaluated):,} '
                    f'images of {shorten(sorted(files))}, such as image {min(lost)}'
                )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Disables garbage collection, which would traverse the millions of objects of COCO's file again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _load(path: str) -> dict[str, list[Any]]:
    try:
        with open(path, 'rb') as file, _uncollected():
            document = json.loads(file.read())
    except ValueError as error:
        raise BadInputError(f'{path}: not JSON ({error})') from None
    keys = ('images', 'annotations', 'categories')
    missing = [k for k in keys if not isinstance(document, dict) or not isinstance(document.get(k), list)]
    if missing == ['annotations'] and 'annotations' not in document:
        return {**document, 'annotations': []}  # test-dev has none
    if missing:
        raise BadInputError(f'{path}: has no list of {", ".join(missing)}, as annotation files of COCO have')
    return document


def _check_annotations(
    file: AnnotationFile, dataset: Any, masks_needed: bool, boxes_needed: bool, findings: Findings
) -> None:
    wanted = _check_categories(file, dataset.metainfo.get('classes'), findings)
    if not file.annotations:
        if boxes_needed:
            findings.errors.append(f'{file.path}: holds no annotation (0 for {len(file.images):,} images)')
        return
    known = _check_references(file, findings)
    if _check_boxes(file, known, findings) and masks_needed:
        _check_masks(file, findings)
    if not dataset.test_mode:
        _check_filter(file, wanted, dataset.filter_cfg or {}, findings)


def _check_categories(file: AnnotationFile, classes: Sequence[str] | None, findings: Findings) -> set[int]:
    """Category ids that the data set keeps."""
    named = [category['name'] for category in file.categories]
    if classes is None:
        return {category['id'] for category in file.categories}
    if missing := [name for name in classes if name not in named]:
        findings.errors.append(
            f'{file.path}: no category {shorten(map(repr, missing))}; its {len(named)} categories are '
            f'{shorten(map(repr, named))}, metainfo.classes names {len(classes)}'
        )
    elif [name for name in named if name in set(classes)] != list(classes):
        findings.warnings.append(
            f'{file.path}: its categories come in another order than metainfo.classes, and mmdet numbers them in the '
            f"file's: what it calls {classes[0]!r} in pictures and tables is {named[0]!r}"
        )
    return {category['id'] for category in file.categories if category['name'] in set(classes)}


def _check_images(file: AnnotationFile, folder: str, listing: Listing, findings: Findings) -> None:
    if not file.images:
        findings.errors.append(f'{file.path}: names no image')
        return
    paths = [os.path.join(folder, image['file_name']) for image in file.images]
    if missing := listing.missing(paths):
        findings.errors.append(
            f'{file.path}: {len(missing):,} of its {len(paths):,} images are missing: {shorten(missing)}'
        )
        return
    for index in spaced(len(paths)):
        try:
            height, width = read_image(paths[index]).shape[:2]
        except BadInputError as error:
            findings.errors.append(str(error))
            continue
        warn_of_orientation(paths[index], 'boxes and masks', findings)
        image = file.images[index]
        if (height, width) != (image['height'], image['width']):
            findings.warnings.append(
                f'{paths[index]}: is {width}x{height} px, {file.path} says {image["width"]}x{image["height"]}'
            )


def _check_references(file: AnnotationFile, findings: Findings) -> list[dict[str, Any]]:
    """Annotations whose image is known."""
    categories = {category['id'] for category in file.categories}
    for annotation in file.annotations:
        if annotation['category_id'] not in categories:
            findings.errors.append(
                f'{file.path}: annotation {annotation["id"]} has category_id {annotation["category_id"]}, the '
                f'{len(categories)} categories are {min(categories, default=0)} to {max(categories, default=0)}'
            )
            break
    seen: set[int] = set()
    for annotation in file.annotations:
        if annotation['id'] in seen:
            findings.errors.append(f'{file.path}: annotation id {annotation["id"]} occurs twice')
            break
        seen.add(annotation['id'])
    known = [annotation for annotation in file.annotations if annotation['image_id'] in file.image_ids]
    if lost := len(file.annotations) - len(known):
        first = next(a for a in file.annotations if a['image_id'] not in file.image_ids)
        findings.warnings.append(
            f'{file.path}: {lost:,} annotation(s) belong to images that it does not name, such as image_id '
            f'{first["image_id"]} of annotation {first["id"]}: they are not used'
        )
    return known


def _check_boxes(file: AnnotationFile, annotations: list[dict[str, Any]], findings: Findings) -> bool:
    """Returns whether every box consists of four numbers."""
    try:
        boxes = np.array([annotation['bbox'] for annotation in annotations], np.float64).reshape(-1, 4)
    except (ValueError, TypeError):
        wrong = next(a for a in annotations if not _is_box(a['bbox']))
        findings.errors.append(
            f'{file.path}: annotation {wrong["id"]} has bbox {wrong["bbox"]}, four numbers are a box'
        )
        return False
    sizes = {image['id']: (image['width'], image['height']) for image in file.images}
    limits = np.array([sizes[annotation['image_id']] for annotation in annotations], np.float64).reshape(-1, 2)
    ends = boxes[:, :2] + boxes[:, 2:]
    finite = np.isfinite(boxes).all(1)
    empty = ~(boxes[:, 2:] > 0).all(1)
    # A pixel of rounding is tolerated.
    outside = ~empty & ((boxes[:, :2] >= limits + 1) | (ends <= -1)).any(1)

    def describe(mask: Any) -> str:
        index = int(np.flatnonzero(mask)[0])
        annotation = annotations[index]
        more = f'; {int(mask.sum()) - 1:,} more' if mask.sum() > 1 else ''
        width, height = sizes[annotation['image_id']]
        return (
            f'of annotation {annotation["id"]} in image {annotation["image_id"]} ({width}x{height} px): '
            f'bbox {annotation["bbox"]}{more}'
        )

    if not finite.all():
        findings.errors.append(f'{file.path}: a box that is not finite, {describe(~finite)}')
    if outside.any():
        findings.errors.append(f'{file.path}: a box wholly outside the image, {describe(outside)}')
    if (empty & finite).any():
        findings.warnings.append(f'{file.path}: a box without area, which mmdet leaves out, {describe(empty & finite)}')
    beyond = (ends > limits + 1).any(1)
    if not outside.any() and beyond.sum() > len(boxes) // 2:
        findings.warnings.append(
            f'{file.path}: {int(beyond.sum()):,} of {len(boxes):,} boxes reach beyond their image; COCO writes x, y, '
            f'width, height, not two corners; the first is {describe(beyond)}'
        )
    return True


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(v, (int, float)) for v in value)


def _wants_masks(node: ConfigDict) -> bool:
    return any(step.get('with_mask') for step in node.get('pipeline', ()))


def _check_masks(file: AnnotationFile, findings: Findings) -> None:
    read = (a for a in file.annotations if a['area'] > 0 and min(a['bbox'][2:]) >= 1)  # mmdet leaves out the others
    if without := [annotation['id'] for annotation in read if not annotation.get('segmentation')]:
        more = f' (and {len(without) - 1:,} others)' if len(without) > 1 else ''
        findings.errors.append(
            f'{file.path}: annotation {without[0]}{more} has no segmentation, but the pipeline loads masks '
            '(with_mask=True): a detector without masks can learn from it'
        )


def _check_filter(file: AnnotationFile, wanted: set[int], filter_cfg: dict[str, Any], findings: Findings) -> None:
    """Whether mmdet's filter leaves anything to train on."""
    smallest = filter_cfg.get('min_size', 0)
    left = {image['id'] for image in file.images if min(image['width'], image['height']) >= smallest}
    if filter_cfg.get('filter_empty_gt', False):
        left &= {a['image_id'] for a in file.annotations if a['category_id'] in wanted}
    if file.images and not left:
        findings.errors.append(
            f'{file.path}: none of its {len(file.images):,} images is left to train on: filter_cfg '
            f'{dict(filter_cfg)} keeps those of that size with an annotation of metainfo.classes'
        )
