"""COCO 2017: two annotation files and two folders of images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinas_zoo.data.trees.layout import SPLITS, Part, Problem, Progress, Tree
from pinas_zoo.data.trees.listing import shorten

_KEYS = ('images', 'annotations', 'categories')


@dataclass(frozen=True)
class CocoTree(Tree):
    """A set in COCO's format."""

    def annotation_problems(self, root: Path, found: dict[Part, list[str]]) -> list[Problem]:
        lines: list[Problem] = []
        for split in SPLITS:
            name, images = _annotation_file(split), self.image_part(split)
            archive = next(part.download for part in self.parts if part.split == split and part.single)
            if not (root / name).is_file() or not (root / name).stat().st_size:
                continue  # already reported
            try:
                document = _read(root / name)
            except ValueError as error:
                lines.append(Problem(str(error), archive))
                continue
            named = [image['file_name'] for image in document['images']]
            if len(named) != images.count:
                lines.append(Problem(f'{name}: names {len(named):,} images, {images.count:,} are expected', archive))
            if not document['annotations']:
                lines.append(Problem(f'{name}: contains no annotation', archive))
            if missing := sorted(set(named) - set(found[images])) if found[images] else []:
                line = f'{images.folder}: {len(missing):,} images of {name} are missing: {shorten(missing)}'
                lines.append(Problem(line, images.download))
        return lines

    def presence(
        self, root: Path, split: str, workers: int, progress: Progress | None
    ) -> tuple[list[str], np.ndarray, list[str]]:
        document = _read(root / _annotation_file(split))
        if progress:
            progress(f'{split} classes', 1, 1)
        images = {image['id']: number for number, image in enumerate(document['images'])}
        categories = {category['id']: number for number, category in enumerate(document['categories'])}
        table = np.zeros((len(images), len(categories)), bool)
        for annotation in document['annotations']:
            if not annotation.get('iscrowd'):
                table[images[annotation['image_id']], categories[annotation['category_id']]] = True
        names = [image['file_name'] for image in document['images']]
        return names, table, [category['name'] for category in document['categories']]

    def subset(self, root: Path, split: str, names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        document, wanted = _read(root / _annotation_file(split)), set(names)
        document['images'] = [image for image in document['images'] if image['file_name'] in wanted]
        ids = {image['id'] for image in document['images']}
        document['annotations'] = [a for a in document['annotations'] if a['image_id'] in ids]
        folder = self.image_part(split).folder
        return [f'{folder}/{name}' for name in names], {_annotation_file(split): document}


def _annotation_file(split: str) -> str:
    return f'annotations/instances_{split}2017.json'


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f'{file}: not JSON ({error}); a broken download?') from None
    missing = [key for key in _KEYS if not isinstance(document, dict) or key not in document]
    if missing:
        raise ValueError(f'{file}: has no {", ".join(missing)}; COCO annotation files have {", ".join(_KEYS)}')
    return document


COCO = CocoTree(
    name='coco',
    root='data/coco',
    page="COCO's download page, cocodataset.org",
    parts=(
        Part('train', 'annotations', 'instances_train2017.json', 1, 'annotations_trainval2017.zip'),
        Part('val', 'annotations', 'instances_val2017.json', 1, 'annotations_trainval2017.zip'),
        Part('train', 'train2017', '.jpg', 118_287, 'train2017.zip'),
        Part('val', 'val2017', '.jpg', 5_000, 'val2017.zip'),
    ),
    images='.jpg',
)
