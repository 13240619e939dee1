"""Scenes as files, in COCO, ADE20K and Cityscapes format."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pinas_zoo.data.scenes.images import FLOOR, RIM, SPLITS, VERSION, WALL, Scene

# Cityscapes: items use its ten countable classes, in the order of the table in docs/data.md; wall, floor and rim (out
# of roi) follow.
CITYSCAPES_IDS = np.array([24, 25, 26, 27, 28, 31, 32, 33, 19, 20, 12, 7, 3], dtype=np.uint8)
CITYSCAPES_TRAIN_IDS = np.array([11, 12, 13, 14, 15, 16, 17, 18, 6, 7, 3, 0, 255], dtype=np.uint8)
Files = list[tuple[str, bytes]]


def label_table(items: Sequence[int], wall: int, floor: int, rim: int) -> np.ndarray:
    """A format's label by a scene's label. Shape: (256,) uint8"""
    table = np.zeros(256, dtype=np.uint8)
    table[: len(items)] = items
    table[[WALL, FLOOR, RIM]] = wall, floor, rim
    return table


def ade20k_table(classes: int) -> np.ndarray:
    """ADE20K's labels: 0 is "other" and ignored (reduce_zero_label), items start at 1, then wall and floor."""
    return label_table(range(1, classes + 1), classes + 1, classes + 2, 0)


_CITYSCAPES_TABLES = [
    label_table(ids[:-3].tolist(), *ids[-3:].tolist()) for ids in (CITYSCAPES_IDS, CITYSCAPES_TRAIN_IDS)
]


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run-length code of a mask: column by column, starting with zeros.

    Shape: bool (H, W).
    """
    flat = mask.ravel(order='F')
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = [0, 0] if flat[0] else [0]
    return {'size': list(mask.shape), 'counts': np.diff([*starts, *edges.tolist(), flat.size]).tolist()}


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    options = {'quality': 95, 'subsampling': 0} if kind == 'JPEG' else {'compress_level': 3}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def coco_annotations(scene: Scene, split: str, number: int, first: int) -> list[dict[str, Any]]:
    """A scene's instances as entries of COCO's file, with ids starting at `first`."""
    annotations = []
    for instance, (category, name) in enumerate(zip(scene.categories, scene.names)):
        mask = scene.ids == instance
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        annotations.append(
            {
                'id': first + instance,
                'image_id': _coco_image_id(split, number),
                'category_id': category + 1,
                'segmentation': run_lengths(mask),
                'area': int(mask.sum()),
                'bbox': [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                'iscrowd': 0,
                'item': name,
            }
        )
    return annotations


def coco_document(
    annotations: list[dict[str, Any]], split: str, count: int, size: int, classes: Sequence[str]
) -> dict[str, Any]:
    """COCO's annotation file of a split with `count` square scenes of `size` px."""
    ids = [_coco_image_id(split, n) for n in range(count)]
    images = [{'id': i, 'file_name': f'{i:012d}.jpg', 'height': size, 'width': size} for i in ids]
    categories = [{'id': i + 1, 'name': c, 'supercategory': 'item'} for i, c in enumerate(classes)]
    info = {'description': f'pinas_zoo scenes, {split}', 'version': str(VERSION)}
    return {'info': info, 'licenses': [], 'images': images, 'annotations': annotations, 'categories': categories}


def _coco_image_id(split: str, number: int) -> int:
    return number + 1 + 1_000_000 * SPLITS.index(split)


def _coco_files(scene: Scene, split: str, number: int) -> Files:
    return [(f'{split}2017/{_coco_image_id(split, number):012d}.jpg', _encode(scene.image, 'JPEG'))]


def _ade20k_files(scene: Scene, split: str, number: int) -> Files:
    folder = {'train': 'training', 'val': 'validation'}[split]
    stem = f'{folder}/ADE_{split}_{number + 1:08d}'
    return [
        (f'images/{stem}.jpg', _encode(scene.image, 'JPEG')),
        (f'annotations/{stem}.png', _encode(ade20k_table(scene.classes)[scene.labels], 'PNG')),
    ]


def _cityscapes_files(scene: Scene, split: str, number: int) -> Files:
    stem = f'{split}/scenes/scenes_{number:06d}_000019'
    ids, train_ids = (table[scene.labels] for table in _CITYSCAPES_TABLES)
    return [
        (f'leftImg8bit/{stem}_leftImg8bit.png', _encode(scene.image, 'PNG')),
        (f'gtFine/{stem}_gtFine_labelIds.png', _encode(ids, 'PNG')),
        (f'gtFine/{stem}_gtFine_labelTrainIds.png', _encode(train_ids, 'PNG')),
    ]


#: By format: from (scene, split, number) to its files, each a path within the format's folder and its bytes.
WRITERS: dict[str, Callable[[Scene, str, int], Files]] = {
    'coco': _coco_files,
    'ade20k': _ade20k_files,
    'cityscapes': _cityscapes_files,
}
