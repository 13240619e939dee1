"""ADE20K and Cityscapes: an image and a map of labels, side by side under the same name."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pinas_zoo.data.labels import read_labels
from pinas_zoo.data.trees.layout import Part, Problem, Progress, Tree
from pinas_zoo.data.trees.listing import shorten
from pinas_zoo.data.trees.parallel import in_processes


@dataclass(frozen=True)
class LabelMapTree(Tree):
    """A set of images with label maps.

    Args:
        maps: Suffix of the maps that training reads.
        first_class: Label of the first class.
        classes: Number of consecutive classes starting there.
    """

    maps: str = '.png'
    first_class: int = 0
    classes: int = 0

    def annotation_problems(self, root: Path, found: dict[Part, list[str]]) -> list[Problem]:
        lines: list[Problem] = []
        for part, names in found.items():
            images = self.image_part(part.split)
            if part == images or not names or not found[images]:
                continue
            with_image = {name.removesuffix(images.suffix) for name in found[images]}
            with_map = {name.removesuffix(part.suffix) for name in names}
            if missing := sorted(with_image - with_map):
                line = f'{part.pattern}: {len(missing):,} images have none: {shorten(missing)}'
                lines.append(Problem(line, part.download))
            if missing := sorted(with_map - with_image):
                line = f'{images.pattern}: {len(missing):,} files of {part.pattern} have none: {shorten(missing)}'
                lines.append(Problem(line, images.download))
        return lines

    def presence(
        self, root: Path, split: str, workers: int, progress: Progress | None
    ) -> tuple[list[str], np.ndarray, list[str]]:
        names, _ = self.image_part(split).scan(root)
        maps = [root / self.map_part(split).folder / self._map_name(split, name) for name in names]
        read = partial(_classes_in, first=self.first_class, count=self.classes)
        rows = in_processes(read, maps, workers, f'{split} classes', progress)
        labels = [f'label {self.first_class + number}' for number in range(self.classes)]
        return names, np.array(rows, bool).reshape(len(names), self.classes), labels

    def subset(self, root: Path, split: str, names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        images = self.image_part(split)
        stems = [name.removesuffix(images.suffix) for name in names]
        parts = [part for part in self.parts if part.split == split]
        return [f'{part.folder}/{stem}{part.suffix}' for part in parts for stem in stems], {}

    def map_part(self, split: str) -> Part:
        """The label maps of a split that training reads."""
        (part,) = (p for p in self.parts if p.split == split and p.suffix == self.maps)
        return part

    def _map_name(self, split: str, image: str) -> str:
        return image.removesuffix(self.images) + self.maps


def _classes_in(file: Path, first: int, count: int) -> np.ndarray:
    """Which classes occur in a label map. Shape: bool (count,)."""
    pixels = np.bincount(read_labels(file).astype(np.uint8).ravel(), minlength=256)
    return pixels[first : first + count] > 0


def _ade20k_part(split: str, folder: str, suffix: str, count: int) -> Part:
    return Part(split, folder, suffix, count, 'ADEChallengeData2016.zip')


def _cityscapes_parts(split: str, count: int) -> list[Part]:
    images = Part(split, f'leftImg8bit/{split}', '_leftImg8bit.png', count, 'leftImg8bit_trainvaltest.zip', True)
    ids = Part(split, f'gtFine/{split}', '_gtFine_labelIds.png', count, 'gtFine_trainvaltest.zip', True)
    return [images, ids, Part(split, ids.folder, '_gtFine_labelTrainIds.png', count, '', True)]


ADE20K = LabelMapTree(
    name='ade20k',
    root='data/ade/ADEChallengeData2016',
    page='the page of the MIT Scene Parsing Benchmark, sceneparsing.csail.mit.edu',
    parts=(
        _ade20k_part('train', 'images/training', '.jpg', 20_210),
        _ade20k_part('val', 'images/validation', '.jpg', 2_000),
        _ade20k_part('train', 'annotations/training', '.png', 20_210),
        _ade20k_part('val', 'annotations/validation', '.png', 2_000),
    ),
    images='.jpg',
    first_class=1,  # 0 is "other", which mmseg removes
    classes=150,
)
CITYSCAPES = LabelMapTree(
    name='cityscapes',
    root='data/cityscapes',
    page='the download page of cityscapes-dataset.com (it asks for an account)',
    parts=(*_cityscapes_parts('train', 2_975), *_cityscapes_parts('val', 500)),
    images='_leftImg8bit.png',
    maps='_gtFine_labelTrainIds.png',
    classes=19,
)
