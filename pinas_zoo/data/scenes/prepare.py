"""Detection and segmentation sets composed from real pixels, in COCO, ADE20K and Cityscapes format.

Items of a labelled grey source (Fashion-MNIST) are tinted and put on a background (`images`) and written in
each format (`files`). A scene depends only on (seed, format, split, number); train and val use different items.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pinas_zoo.data.scenes.files import (
    CITYSCAPES_IDS,
    CITYSCAPES_TRAIN_IDS,
    WRITERS,
    coco_annotations,
    coco_document,
    run_lengths,
)
from pinas_zoo.data.scenes.images import (
    FLOOR,
    FORMATS,
    RIM,
    SPLITS,
    VERSION,
    WALL,
    Items,
    Scene,
    SceneSettings,
    compose,
    cut_items,
    paint_background,
    solid_masks,
)
from pinas_zoo.files import file_lock, read_json, write_text

if TYPE_CHECKING:
    from pinas_zoo.data import Source


__all__ = [
    'CITYSCAPES_IDS',
    'CITYSCAPES_TRAIN_IDS',
    'CLASS_NAMES',
    'FLOOR',
    'FORMATS',
    'RIM',
    'SPLITS',
    'VERSION',
    'WALL',
    'Items',
    'Progress',
    'Scene',
    'SceneSettings',
    'compose',
    'cut_items',
    'paint_background',
    'prepare_scenes',
    'run_lengths',
    'solid_masks',
]

Progress = Callable[[str, int, int], None]
CLASS_NAMES = 'classes.txt'


def prepare_scenes(
    root: str | Path,
    settings: SceneSettings,
    train: Source,
    val: Source,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], bool]:
    """Write the sets under root/coco, root/ade20k, root/cityscapes, and root/manifest.json.

    Everything is written into a temporary folder beside root, which is renamed at the end: a killed run leaves nothing
    incomplete. A second call with the same settings and data does nothing.

    Args:
        root: Folder to create.
        settings: Settings of the scenes.
        train, val: Labelled sources with the same classes and no image in common.
        overwrite: Replace a set that was made with other settings.
        progress: Called with (step, done, total).

    Returns:
        The manifest, and whether anything was written.

    Raises:
        ValueError: root contains a set with other settings, or something that is not a scene set; or the sources do
            not match each other or a format.
    """
    _check_classes(train, val, settings)
    root = Path(root).absolute()
    wanted = json.loads(json.dumps({'version': VERSION, **asdict(settings), 'data': _describe(train, val)}))
    root.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(root.with_name(f'.{root.name}.lock')):
        if (found := _read_manifest(root, wanted, overwrite)) is not None:
            _write_class_names(root, found)
            return found, False
        partial = root.with_name(f'.{root.name}.partial')
        shutil.rmtree(partial, ignore_errors=True)
        hashes: dict[str, str] = {}
        for split, source in zip(SPLITS, (train, val)):
            items = cut_items(source, settings.pool, settings.seed)
            for name in settings.formats:
                _write_split(partial, name, split, items, settings, hashes, progress)
        listing = ''.join(f'{h}  {p}\n' for p, h in sorted(hashes.items()))
        classes = list(train.classes)
        manifest = {
            'settings': wanted,
            'classes': classes,
            'ade20k_classes': [*classes, 'wall', 'floor'],
            'files': len(hashes),
            'sha256': hashlib.sha256(listing.encode()).hexdigest(),
        }
        _write(partial, 'manifest.json', json.dumps(manifest, indent=1).encode(), {})
        _write_class_names(partial, manifest)
        _replace(partial, root)
    return manifest, True


def _check_classes(train: Source, val: Source, settings: SceneSettings) -> None:
    if train.classes != val.classes:
        raise ValueError(f'the sources for train and val have different classes: {train.classes} and {val.classes}')
    countable = len(CITYSCAPES_IDS) - 3  # wall, floor and rim are the others
    if 'cityscapes' in settings.formats and len(train.classes) > countable:
        raise ValueError(
            f'formats={settings.formats!r}: Cityscapes has {countable} countable classes, the source has '
            f'{len(train.classes)}; leave cityscapes out'
        )


def _write_class_names(root: Path, manifest: dict[str, Any]) -> None:
    """One name per line beside the label maps, which have none; COCO's files include theirs. Earlier sets lack it."""
    folder = root / 'ade20k'
    if folder.is_dir() and not (folder / CLASS_NAMES).is_file():
        write_text(folder / CLASS_NAMES, '\n'.join(manifest['ade20k_classes']) + '\n')


def _describe(train: Source, val: Source) -> dict[str, Any]:
    # Without where the pixels were found (Debian package, download): the same pixels give the same set.
    keys = ('data', 'split', 'images', 'start', 'part', 'seed', 'part_start', 'root', 'list')
    pairs = zip(SPLITS, (train, val))
    return {split: {k: s.description[k] for k in keys if k in s.description} for split, s in pairs}


def _read_manifest(root: Path, wanted: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of an equal set; None if a set has to be written."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    file = root / 'manifest.json'
    if not file.is_file():
        raise ValueError(f'{root} exists and is not a scene set (no manifest.json); give another --root')
    manifest = read_json(file)
    settings = manifest.get('settings')
    if settings == wanted:
        return manifest
    if not overwrite:
        found = settings if isinstance(settings, dict) else {}
        differing = [(k, found.get(k), wanted.get(k)) for k in wanted | found if found.get(k) != wanted.get(k)]
        text = '; '.join(f'{k} is {old!r}, requested {new!r}' for k, old, new in differing)
        raise ValueError(f'{root} contains a scene set with other settings: {text}. Give --overwrite or another --root')
    return None


def _replace(partial: Path, root: Path) -> None:
    # One sync for thousands of files: after the rename the set must be complete even after a power failure.
    os.sync()
    old = root.with_name(f'.{root.name}.old')
    shutil.rmtree(old, ignore_errors=True)
    if root.exists():
        root.rename(old)
    partial.rename(root)
    shutil.rmtree(old, ignore_errors=True)


def _write_split(
    root: Path,
    name: str,
    split: str,
    items: Items,
    settings: SceneSettings,
    hashes: dict[str, str],
    progress: Progress | None,
) -> None:
    width = settings.size * (2 if name == 'cityscapes' else 1)
    count, write = getattr(settings, split), WRITERS[name]
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        seed = [settings.seed, FORMATS.index(name), SPLITS.index(split), number]
        scene = compose(items, np.random.default_rng(seed), settings.size, width, settings)
        for path, content in write(scene, split, number):
            _write(root, f'{name}/{path}', content, hashes)
        if name == 'coco':
            annotations += coco_annotations(scene, split, number, len(annotations) + 1)
        if progress:
            progress(f'{name} {split}', number + 1, count)
    if name == 'coco':
        document = coco_document(annotations, split, count, settings.size, items.classes)
        _write(root, f'coco/annotations/instances_{split}2017.json', json.dumps(document).encode(), hashes)


def _write(root: Path, path: str, content: bytes, hashes: dict[str, str]) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)
    hashes[path] = hashlib.sha256(content).hexdigest()
