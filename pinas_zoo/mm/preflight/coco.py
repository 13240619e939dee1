"""Checks of a detection set in COCO's format as mmdet reads it: one pass over the annotation file."""

import os
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from pinas_zoo.data.images import spaced
from pinas_zoo.data.trees import Listing, shorten
from pinas_zoo.mm.preflight.annotation_file import AnnotationFile, brief
from pinas_zoo.mm.preflight.bad_input import read_image
from pinas_zoo.mm.preflight.coco_json import load, uncollected
from pinas_zoo.mm.preflight.findings import (
    BadInputError,
    Findings,
    lacks,
    names_own_classes,
    repeated,
    warn_of_orientation,
)
from pinas_zoo.mm.preflight.objects import Objects, check_masks, check_objects, left_over, unseen_classes


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
        with uncollected():
            # In a separate function, so that the file's objects are gone when collection starts again.
            _check_file(dataset, node, folder, evaluators, listing, findings)
    except BadInputError as error:
        findings.errors.append(str(error))


def _check_file(
    dataset: Any,
    node: ConfigDict,
    folder: str,
    evaluators: Sequence[dict[str, Any]],
    listing: Listing,
    findings: Findings,
) -> None:
    file = AnnotationFile(dataset.ann_file)
    if file.errors:
        findings.errors += file.errors
        return
    _check_images(file, folder, listing, findings)
    _check_annotations(file, dataset, node, evaluators, findings)


def check_evaluator(
    evaluators: Sequence[dict[str, Any]], nodes: Sequence[ConfigDict], dataset: Any, findings: Findings
) -> None:
    """Check that COCO metrics read the annotations of the set that they evaluate.

    Args:
        evaluators: Those of a loader.
        nodes: Configs of the loader's data sets.
        dataset: One of them, a CocoDataset that has not read anything yet; None if they are others.
        findings: Receives the lines.
    """
    files = {os.path.realpath(os.path.join(n.get('data_root') or '', n.get('ann_file') or '')) for n in nodes}
    for path in [evaluator['ann_file'] for evaluator in evaluators if evaluator.get('ann_file')]:
        if '://' in path:
            continue
        if not os.path.isfile(path):
            findings.errors.append(f'{path}: no such file (ann_file of the evaluator)')
        elif os.path.realpath(path) not in files and all(map(os.path.isfile, files)):
            read = AnnotationFile(path)
            findings.errors += read.errors
            if read.errors:
                continue
            shown = [load(file) for file in files]
            evaluated = {image.get('id') for document in shown for image in document['images']}
            if lost := evaluated - read.image_ids:
                findings.errors.append(
                    f'{path}: the evaluator reads this file, which lacks {len(lost):,} of the {len(evaluated):,} '
                    f'images of {shorten(sorted(files))}, such as image {min(lost, key=str)}'
                )
            elif dataset is not None:
                _check_annotations(read, dataset, nodes[0], evaluators, findings)
                common, compared = (0, 0) if findings.errors else _agreement(read, shown)
                if 2 * common < compared:
                    findings.errors.append(
                        f'{path}: the evaluator reads this file, whose boxes in {compared - common:,} of {compared:,} '
                        f'images are not those of {shorten(sorted(files))}: its image ids belong to other pictures'
                    )


def _agreement(file: AnnotationFile, documents: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """In how many images two sets of valid annotations share a box, up to rounding, and in how many both have one."""
    boxes: dict[Any, list[Any]] = {}
    for entry in (entry for document in documents for entry in document['annotations']):
        boxes.setdefault(entry['image_id'], []).append(entry['bbox'])
    common, compared = set(), set()
    for entry in file.annotations:
        for box in boxes.get(number := entry['image_id'], ()):
            compared.add(number)
            if number not in common and all(abs(a - b) <= 1 for a, b in zip(entry['bbox'], box, strict=True)):
                common.add(number)
    return len(common), len(compared)


def _check_annotations(
    file: AnnotationFile, dataset: Any, node: ConfigDict, evaluators: Sequence[dict[str, Any]], findings: Findings
) -> None:
    classes = dataset.metainfo.get('classes')
    wanted = file.category_ids(classes)
    findings.errors += file.errors
    training = not dataset.test_mode
    compared = training or not any(evaluator.get('format_only') for evaluator in evaluators)
    if not file.annotations:
        if compared:
            findings.errors.append(f'{file.path}: contains no annotation (0 for {len(file.images):,} images)')
        return
    if file.errors:
        return
    if classes is not None and not hasattr(type(dataset), 'FOLLOWS_CLASSES'):
        _warn_of_order(file, classes, findings)
    before = len(findings.errors)
    objects = Objects(file, _known(file, wanted, findings))
    if not check_objects(objects, training, findings) or not compared:
        return
    if not objects.annotations and before < len(findings.errors):
        return
    used = np.ones(len(objects.annotations), bool)
    if _wants_masks(node) or any('segm' in (e.get('metric') or ()) for e in evaluators):
        used = check_masks(objects, training, _fills_masks(node), findings)
    if reason := left_over(objects, used, training) if len(used) else 'none belongs to an image and a class':
        findings.errors.append(
            f'{file.path}: no object to {"learn from" if training else "compare with"}: of its '
            f'{len(objects.annotations):,} annotations {reason}'
        )
    elif names_own_classes(node) and (unseen := unseen_classes(file, objects.annotations, classes)):
        findings.warnings.append(f'{file.path}: no annotation of class {shorten(map(repr, unseen))}')
    if training:
        _check_filter(file, wanted, dataset.filter_cfg or {}, findings)


def _known(file: AnnotationFile, wanted: set[Any], findings: Findings) -> list[dict[str, Any]]:
    """Annotations whose image and category are known and whose category is used."""
    categories = {category['id'] for category in file.categories}
    used, shown = (
        set(map(itemgetter('category_id'), file.annotations)),
        set(map(itemgetter('image_id'), file.annotations)),
    )
    if not used <= categories:
        strange = [a for a in file.annotations if a['category_id'] not in categories]
        ids = [brief(value) for value in sorted(categories, key=lambda value: (str(type(value)), value))]
        span = f'{ids[0]} to {ids[-1]}' if ids else 'none'
        text = f'has category_id {brief(strange[0]["category_id"])}, the {len(ids)} categories are {span}'
        findings.errors.append(file.say(strange, 'annotation', text))
    if not shown & file.image_ids and file.image_ids:
        first, image = file.annotations[0], file.images[0]
        findings.errors.append(
            f'{file.path}: none of its {len(file.annotations):,} annotations belongs to one of its images: annotation '
            f'{first["id"]} has image_id {brief(first["image_id"])}, the first image has id {brief(image["id"])}'
        )
    elif not shown <= file.image_ids:
        lost = [a for a in file.annotations if a['image_id'] not in file.image_ids]
        findings.warnings.append(
            f'{file.path}: {len(lost):,} annotation(s) belong to images that it does not name, such as image_id '
            f'{brief(lost[0]["image_id"])} of annotation {lost[0]["id"]}: they are not used'
        )
    elif used <= wanted:
        return file.annotations
    return [a for a in file.annotations if a['category_id'] in wanted and a['image_id'] in file.image_ids]


def _warn_of_order(file: AnnotationFile, classes: Sequence[str], findings: Findings) -> None:
    """mmdet's own data set numbers labels in the file's order; ours in the order of `classes`."""
    named = [category['name'] for category in file.categories if category['name'] in set(classes)]
    if named != list(classes):
        findings.warnings.append(
            f'{file.path}: its categories have another order than metainfo.classes, and this data set numbers them '
            f"in the file's: what it calls {classes[0]!r} in pictures and tables is {named[0]!r}"
        )


def _check_images(file: AnnotationFile, folder: str, listing: Listing, findings: Findings) -> None:
    if not file.images:
        findings.errors.append(f'{file.path}: names no image')
        return
    names = list(map(itemgetter('file_name'), file.images))
    paths = [os.path.join(folder, name) for name in names]
    if missing := listing.missing(paths):
        findings.errors.append(
            f'{file.path}: {len(missing):,} of its {len(paths):,} images are missing: {shorten(missing)}'
            + _missing_hint(names, folder)
        )
        return
    if twice := repeated(os.path.normpath(name) if './' in name else name for name in names):
        findings.warnings.append(f'{file.path}: {len(twice):,} images occur twice, under two ids: {shorten(twice)}')
    for index in spaced(len(paths)):
        try:
            height, width = read_image(paths[index]).shape[:2]
        except BadInputError as error:
            findings.errors.append(str(error))
            continue
        warn_of_orientation(paths[index], 'boxes and masks', findings)
        image = file.images[index]
        if (height, width) != (image['height'], image['width']):
            findings.errors.append(
                f'{paths[index]}: is {width}x{height} px, {file.path} says {image["width"]}x{image["height"]}: its '
                'boxes and masks do not belong to this picture'
            )


def _missing_hint(names: Sequence[str], folder: str) -> str:
    first, last = names[0], os.path.basename(folder.rstrip('/'))
    if '://' in first:
        return f'; file_name {first!r} is an address: download the images, and write names relative to data_prefix'
    if '\\' in first:
        return f'; file_name {first!r} is a path of Windows: write / for \\'
    return f'; data_prefix and file_name both contain {last!r}' if last and first.startswith(f'{last}/') else ''


def _wants_masks(node: ConfigDict) -> bool:
    return any(step.get('with_mask') for step in node.get('pipeline', ()))


def _fills_masks(node: ConfigDict) -> bool:
    return all(step.get('poly2mask', True) for step in node.get('pipeline', ()))


def _check_filter(file: AnnotationFile, wanted: set[Any], filter_cfg: dict[str, Any], findings: Findings) -> None:
    """Whether mmdet's filter leaves anything to train on."""
    smallest = filter_cfg.get('min_size', 0)
    left = {image['id'] for image in file.images if min(image['width'], image['height']) >= smallest}
    if filter_cfg.get('filter_empty_gt', False):
        left.intersection_update(a['image_id'] for a in file.annotations if a['category_id'] in wanted)
    if file.images and not left:
        findings.errors.append(
            f'{file.path}: none of its {len(file.images):,} images is left to train on: filter_cfg '
            f'{dict(filter_cfg)} keeps those of that size with an annotation of metainfo.classes'
        )
