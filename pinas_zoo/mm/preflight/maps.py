"""Checks of a segmentation set as mmseg reads it: images and label maps in two folders."""

import os
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict

from pinas_zoo.data.images import spaced
from pinas_zoo.data.trees import Listing, shorten
from pinas_zoo.mm.preflight.bad_input import IGNORED_LABEL, BadInputError, label_problem, read_image, read_map
from pinas_zoo.mm.preflight.findings import Findings, lacks, warn_of_orientation


def check_maps(dataset: Any, classes: int | None, listing: Listing, findings: Findings) -> None:
    """Check files, and the content of a few images and label maps.

    Args:
        dataset: A BaseSegDataset that has not read anything yet.
        classes: Classes of the head; None takes the data set's.
        listing: Listing of folders.
        findings: Receives the lines.
    """
    images, maps = dataset.data_prefix.get('img_path') or '', dataset.data_prefix.get('seg_map_path')
    listed = bool(dataset.ann_file) and not os.path.isdir(dataset.ann_file)
    if lacks(dataset, [path for path in (images, maps, dataset.ann_file) if path], findings):
        return
    entries = dataset.load_data_list()
    if not entries:
        source = dataset.ann_file if listed else images
        findings.errors.append(f'{source}: no image {"named" if listed else f"*{dataset.img_suffix}"}')
        return
    if missing := listing.missing(entry['img_path'] for entry in entries):
        findings.errors.append(f'{dataset.ann_file}: {len(missing):,} of its images are missing: {shorten(missing)}')
    if maps is not None:
        missing += _missing_maps(dataset, entries, listing, findings)
    if missing:
        return
    for entry in (entries[index] for index in spaced(len(entries))):
        try:
            image = read_image(entry['img_path'])
            warn_of_orientation(entry['img_path'], 'label maps', findings)
            if maps is not None:
                _check_map(entry, image.shape[:2], classes or _count(dataset), findings)
        except BadInputError as error:
            findings.errors.append(str(error))


def check_crop(cfg: Config, node: ConfigDict, findings: Findings) -> None:
    """Check that a batch of crops can be stacked.

    A crop that is larger than its image is legal: mmseg uses the whole image and pads it to data_preprocessor.size,
    with ignored labels. So that size must not be smaller than the crop.

    Args:
        cfg: Config of the run.
        node: Config of its training set.
        findings: Receives the lines.
    """
    for step in node.get('pipeline', ()):
        if step.get('type') not in ('RandomCrop', 'mmseg.RandomCrop'):
            continue
        crop = step['crop_size']
        crop = (crop, crop) if isinstance(crop, int) else tuple(crop)
        size = (cfg.model.get('data_preprocessor') or {}).get('size')
        if size is not None and (size[0] < crop[0] or size[1] < crop[1]):
            findings.errors.append(
                f'crop_size {crop} of the training pipeline is larger than model.data_preprocessor.size {tuple(size)}, '
                'to which smaller images are padded: set both to one size'
            )


def _missing_maps(dataset: Any, entries: list[dict[str, Any]], listing: Listing, findings: Findings) -> list[str]:
    missing = listing.missing(entry['seg_map_path'] for entry in entries)
    if missing:
        made = dataset.seg_map_suffix.endswith('_labelTrainIds.png')
        hint = f'; make them: python tools/prepare_data.py cityscapes --root {dataset.data_root}' if made else ''
        findings.errors.append(
            f'{dataset.data_prefix["seg_map_path"]}: {len(missing):,} of {len(entries):,} images have no label map '
            f'there: {shorten(missing)}{hint}'
        )
    return missing


def _count(dataset: Any) -> int | None:
    names = dataset.metainfo.get('classes')
    return None if names is None else len(names)


def _check_map(entry: dict[str, Any], image: tuple[int, int], classes: int | None, findings: Findings) -> None:
    path = entry['seg_map_path']
    labels = read_map(path)
    if labels.shape != image:
        findings.errors.append(f'{path}: the label map is {_size(labels.shape)}, its image {_size(image)}')
    values = np.unique(labels)
    if classes is None:
        return
    reduce_zero_label, mapping = bool(entry['reduce_zero_label']), entry['label_map'] or {}
    for value in values.tolist():
        label = value - 1 if reduce_zero_label and value != IGNORED_LABEL else value
        label = mapping.get(label, label)
        if label != IGNORED_LABEL and not -int(reduce_zero_label) <= label < classes:
            findings.errors.append(label_problem(path, label, classes, reduce_zero_label))
            return


def _size(shape: tuple[int, ...]) -> str:
    return f'{shape[1]}x{shape[0]} px'
