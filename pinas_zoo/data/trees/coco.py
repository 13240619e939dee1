"""COCO 2017: two annotation files and two folders of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinas_zoo.data.trees.layout import SPLITS, Part, Problem, Progress, Tree
from pinas_zoo.data.trees.listing import shorten
from pinas_zoo.files import read_json

_ID = (int, str)
#: The lists of an annotation file, and what is used of their entries.
_ENTRIES: dict[str, dict[str, type | tuple[type, ...]]] = {
    'images': {'id': _ID, 'file_name': str},
    'annotations': {'image_id': _ID, 'category_id': _ID},
    'categories': {'id': _ID, 'name': str},
}


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
        table = np.zeros((len(document['images']), len(document['categories'])), bool)
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
        document = read_json(file)
    except ValueError as error:
        raise ValueError(f'{error}; a broken download?') from None
    missing = [key for key in _ENTRIES if not isinstance(document.get(key), list)]
    if missing:
        raise ValueError(f'{file}: has no {", ".join(missing)}; COCO annotation files have {", ".join(_ENTRIES)}')
    for key, needed in _ENTRIES.items():
        for entry in document[key]:
            for name, kinds in needed.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(name), kinds):
                    raise ValueError(f'{file}: an entry of {key} has no {name}, or one of another type: {entry!r:.120}')
    images, categories = ({entry['id'] for entry in document[key]} for key in ('images', 'categories'))
    for entry in document['annotations']:
        if entry['image_id'] not in images or entry['category_id'] not in categories:
            raise ValueError(f'{file}: an annotation of an image or a category that is not listed: {entry!r:.120}')
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
