"""Checks of a segmentation set as mmseg reads it: images and label maps in two folders."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from pinas_zoo.data.images import find_images, spaced
from pinas_zoo.data.trees import Listing, shorten
from pinas_zoo.mm.preflight.bad_input import label_problem, read_image, read_map
from pinas_zoo.mm.preflight.findings import (
    BadInputError,
    Findings,
    lacks,
    names_own_classes,
    repeated,
    warn_of_orientation,
)

__all__ = ['check_maps']

#: Label maps that are opened if a few do not show every class, and if only one class was seen.
MORE, MANY = 64, 256


@dataclass
class _Labels:
    """What label maps are compared with, and what they contain.

    Args:
        classes: Those of the head, or of the data set; None if neither states them.
        ignored: The label that is not a class.
        seen: Labels as the network sees them.
        opened: Number of maps.
    """

    classes: int | None
    ignored: int | None
    seen: set[int] = field(default_factory=set)
    opened: int = 0


def check_maps(
    dataset: Any, node: ConfigDict, classes: int | None, ignored: int | None, listing: Listing, findings: Findings
) -> list[dict[str, Any]]:
    """Check files, and the content of a few images and label maps.

    Args:
        dataset: A BaseSegDataset that has not read anything yet.
        node: Its config.
        classes: Classes of the head; None takes the data set's.
        ignored: The label that its config ignores.
        listing: Listing of folders.
        findings: Receives the lines.

    Returns:
        The samples; none if something is missing.
    """
    images, maps = dataset.data_prefix.get('img_path') or '', dataset.data_prefix.get('seg_map_path')
    listed = bool(dataset.ann_file) and not os.path.isdir(dataset.ann_file)
    if lacks(dataset, [path for path in (images, maps, dataset.ann_file) if path], findings):
        return []
    entries = dataset.load_data_list()
    if not entries:
        source = dataset.ann_file if listed else images
        findings.errors.append(f'{source}: no image {"named" if listed else f"*{dataset.img_suffix}"}')
        return []
    if missing := listing.missing(entry['img_path'] for entry in entries):
        hint = _list_hint(dataset) if listed else ''
        findings.errors.append(
            f'{dataset.ann_file}: {len(missing):,} of its images are missing: {shorten(missing)}{hint}'
        )
    if twice := repeated(entry['img_path'] for entry in entries):
        findings.warnings.append(f'{dataset.ann_file}: names {len(twice):,} images more than once: {shorten(twice)}')
    if not listed and (hidden := _hidden(images, entries)):
        findings.warnings.append(
            f'{images}: {len(hidden):,} pictures are in hidden folders, and are read by mmseg: {shorten(hidden)}; '
            'delete them'
        )
    if maps is not None:
        missing += _missing_maps(dataset, entries, listing, findings)
    if missing:
        return []
    if not listed:
        _warn_of_left_out(dataset, images, maps, entries, findings)
    names = dataset.metainfo.get('classes')
    labels = _Labels(classes or (None if names is None else len(names)), ignored)
    before = len(findings.errors)
    for entry in (entries[index] for index in spaced(len(entries))):
        try:
            image = read_image(entry['img_path'])
            warn_of_orientation(entry['img_path'], 'label maps', findings)
            if maps is not None:
                _check_map(entry, image.shape[:2], labels, findings)
        except BadInputError as error:
            findings.errors.append(str(error))
    if maps is not None and len(findings.errors) == before and names_own_classes(node) and labels.classes:
        _check_seen(entries, names, labels, findings)
    return entries


def _missing_maps(dataset: Any, entries: list[dict[str, Any]], listing: Listing, findings: Findings) -> list[str]:
    missing = listing.missing(entry['seg_map_path'] for entry in entries)
    if missing:
        made = dataset.seg_map_suffix.endswith('_labelTrainIds.png')
        hint = f'; make them: pinas prepare cityscapes --root {dataset.data_root}' if made else ''
        if len(_hidden(dataset.data_prefix['img_path'] or '', entries)) >= len(missing):
            hint = '; mmseg reads hidden folders, too: delete them'
        findings.errors.append(
            f'{dataset.data_prefix["seg_map_path"]}: {len(missing):,} of {len(entries):,} images have no label map '
            f'there: {shorten(missing)}{hint}'
        )
    return missing


def _hidden(images: str, entries: list[dict[str, Any]]) -> list[str]:
    """Names of pictures in hidden folders, which mmseg enters."""
    names = [os.path.relpath(entry['img_path'], images) for entry in entries if '/.' in entry['img_path']]
    return [name for name in names if any(part[0] == '.' and part != '..' for part in name.split('/'))]


def _list_hint(dataset: Any) -> str:
    """What may be wrong with a list of images, which has a name without suffix per line."""
    with open(dataset.ann_file, encoding='utf-8', errors='replace') as file:
        lines = [line.strip() for line in file.read().split('\n')]
    if lines[0].startswith('\ufeff'):
        return '; the list begins with a byte order mark: save it as UTF-8 without'
    if any(line.endswith(dataset.img_suffix) for line in lines):
        return f'; names are listed without the suffix, which img_suffix {dataset.img_suffix!r} adds'
    blank = [number for number, line in enumerate(lines[:-1], 1) if not line]
    return f'; line {blank[0]} is blank' if blank else ''


def _warn_of_left_out(
    dataset: Any, images: str, maps: str | None, entries: list[dict[str, Any]], findings: Findings
) -> None:
    """Pictures of another suffix than the config's, which mmseg does not see, and label maps without a picture."""
    same = maps is not None and os.path.realpath(maps) == os.path.realpath(images)
    seen = (dataset.img_suffix, dataset.seg_map_suffix) if same else (dataset.img_suffix,)
    others = [name for name in find_images(images).paths if not name.endswith(seen)]
    if others:
        findings.warnings.append(
            f'{images}: {len(others):,} pictures are not read, since their names do not end with img_suffix '
            f'{dataset.img_suffix!r}: {shorten(others)}'
        )
    if maps is not None:
        used = {os.path.normpath(entry['seg_map_path']) for entry in entries}
        found = (name for name in find_images(maps).paths if name.endswith(dataset.seg_map_suffix))
        if alone := [name for name in found if os.path.normpath(os.path.join(maps, name)) not in used]:
            findings.warnings.append(
                f'{maps}: {len(alone):,} label maps have no picture in {images}, and are not read: {shorten(alone)}'
            )


def _check_map(entry: dict[str, Any], image: tuple[int, int], known: _Labels, findings: Findings) -> None:
    path = entry['seg_map_path']
    labels = read_map(path)
    if labels.shape != image:
        findings.errors.append(f'{path}: the label map is {_size(labels.shape)}, its image {_size(image)}')
    if known.classes is None:
        return
    reduced = bool(entry['reduce_zero_label'])
    for label in _learnt(labels, entry):
        if label != known.ignored and not -int(reduced) <= label < known.classes:
            findings.errors.append(label_problem(path, label, known.classes, reduced, known.ignored))
            return
        known.seen.add(label)
    known.opened += 1


def _learnt(labels: np.ndarray, entry: dict[str, Any]) -> list[int]:
    """The labels of a map as the network sees them; -1 for a zero label that is removed."""
    reduced, mapping = bool(entry['reduce_zero_label']), entry['label_map'] or {}
    values = [value - 1 if reduced and value != 255 else value for value in np.unique(labels).tolist()]
    return [mapping.get(value, value) for value in values]


def _check_seen(entries: Sequence[dict[str, Any]], names: Sequence[str], known: _Labels, findings: Findings) -> None:
    """Whether the label maps show the classes; opens more of them if the first do not."""
    classes = known.classes
    assert classes is not None
    for limit in (MORE, MANY):
        shown = {label for label in known.seen if 0 <= label < classes and label != known.ignored}
        alone = len(shown) <= 1 < classes and known.ignored in known.seen
        if len(shown) == classes - (known.ignored in range(classes)) or (limit == MANY and not alone):
            break
        taken = min(limit, len(entries))
        for index in [number * len(entries) // taken for number in range(taken)]:
            try:
                known.seen.update(_learnt(read_map(entries[index]['seg_map_path']), entries[index]))
            except BadInputError as error:
                findings.errors.append(str(error))
                return
        known.opened = max(known.opened, taken)
    shown = {label for label in known.seen if 0 <= label < classes and label != known.ignored}
    folder, opened = os.path.dirname(entries[0]['seg_map_path']), f'{known.opened:,} of {len(entries):,}'
    if len(shown) <= 1 < classes and known.ignored in known.seen:
        only = f'class {names[min(shown)]!r}' if shown else 'no class'
        hint = '; in masks of 0 and 255 the second class has to become 1' if known.ignored == 255 else ''
        findings.errors.append(
            f'{folder}: {opened} label maps were checked and show {only} and the ignored label {known.ignored} '
            f'only, of {classes} classes{hint}'
        )
    elif unseen := [name for label, name in enumerate(names) if label not in shown and label != known.ignored]:
        findings.warnings.append(
            f'{folder}: no pixel of class {shorten(map(repr, unseen), 10)} in the {opened} label maps that were '
            'looked at'
        )


def _size(shape: tuple[int, ...]) -> str:
    return f'{shape[1]}x{shape[0]} px'
