"""Pascal-VOC XML, labelme JSON and folders of masks, read into files of COCO's format."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from pinas_zoo.data.images import find_images
from pinas_zoo.data.imports.coco_file import AnnotationError, CocoFile, hold_out, picture_size

__all__ = ['read_labelme', 'read_masks', 'read_voc']

SPLITS = ('train', 'val', 'test')
_MOST = 20  # problems that are listed


def read_voc(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """Boxes of Pascal VOC: Annotations/NAME.xml, JPEGImages/, and ImageSets/Main/{train,val,test}.txt if there are any.

    VOC counts pixels from 1 and a box includes its last one: x1 is xmin - 1, x2 is xmax. Difficult objects become
    crowds, which neither training nor the metric counts.

    Args:
        root: With these folders.
        share: Of the images that are held out where there are no lists.

    Returns:
        Files by split; the folder of the images relative to the root.

    Raises:
        AnnotationError: One line per file that cannot be used.
    """
    lists = {split: root / 'ImageSets/Main' / f'{split}.txt' for split in SPLITS}
    splits = {s: [line.split()[0] for line in _lines(p)] for s, p in lists.items() if p.is_file()}
    if not {'train', 'val'} <= set(splits):
        splits = hold_out([path.stem for path in (root / 'Annotations').glob('*.xml')], share)
    return _collect(splits, lambda file, name: _voc(file, root, name)), 'JPEGImages'


def _voc(file: CocoFile, root: Path, name: str) -> None:
    path = root / 'Annotations' / f'{name}.xml'
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise AnnotationError(f'{path}: no such file') from None
    except ElementTree.ParseError as error:
        raise AnnotationError(f'{path}: no XML ({error})') from None
    picture = tree.findtext('filename') or f'{name}.jpg'
    if not (root / 'JPEGImages' / picture).is_file():
        picture = next((p.name for p in (root / 'JPEGImages').glob(f'{name}.*')), picture)
    file.add_image(picture, picture_size(root / 'JPEGImages' / picture))
    for number, found in enumerate(tree.iter('object'), 1):
        corners = [found.findtext(f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
        label = (found.findtext('name') or '').strip()
        try:
            x1, y1, x2, y2 = (float(text or '') for text in corners)
        except (TypeError, ValueError):
            raise AnnotationError(f'{path}: object {number} has the box {corners}, four numbers are wanted') from None
        if not label or not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
            raise AnnotationError(f'{path}: object {number} has the name {label!r} and the box {corners}')
        file.add_object(label, (x1 - 1, y1 - 1, x2, y2), crowd=(found.findtext('difficult') or '0').strip() == '1')


def read_labelme(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """Polygons, rectangles and circles of labelme: JSON beside its picture, in train/ and val/ or all in one folder.

    Shapes of one label and group are one object. Points and lines are counted and left out.

    Args:
        root: With these files.
        share: Of the images that are held out where there are no folders.

    Returns:
        Files by split; the folder of the images relative to the root.

    Raises:
        AnnotationError: One line per file that cannot be used.
    """
    splits = {s: sorted(str(p.relative_to(root)) for p in (root / s).glob('*.json')) for s in SPLITS}
    splits = {split: names for split, names in splits.items() if names}
    if not {'train', 'val'} <= set(splits):
        splits = hold_out([path.name for path in root.glob('*.json')], share)
    return _collect(splits, lambda file, name: _labelme(file, root, name)), ''


def _labelme(file: CocoFile, root: Path, name: str) -> None:
    path = root / name
    try:
        content = json.loads(path.read_text('utf-8-sig'))
        shapes, picture = content['shapes'], content['imagePath'].replace('\\', '/')
        groups: dict[Any, list[list[list[float]]]] = {}
        for number, shape in enumerate(shapes):
            if (points := _outline(shape)) is None:
                file.left_out[f'shapes of kind {shape.get("shape_type")}'] += 1
                continue
            group = shape.get('group_id')
            groups.setdefault((shape['label'], number if group is None else f'group {group}'), []).append(points)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AnnotationError(f'{path}: not as labelme writes it ({error!r})') from None
    place = path.parent / picture
    place = place if place.is_file() else path.parent / Path(picture).name
    file.add_image(Path(os.path.relpath(place, root)).as_posix(), picture_size(place))
    for (label, _), outlines in groups.items():
        if not isinstance(label, str) or not label:
            raise AnnotationError(f'{path}: a shape has the label {label!r}, a name is wanted')
        xs, ys = zip(*(point for points in outlines for point in points), strict=True)
        file.add_object(
            label,
            (min(xs), min(ys), max(xs), max(ys)),
            segmentation=[[value for point in points for value in point] for points in outlines],
            area=sum(map(_area, outlines)),
        )


def _outline(shape: dict[str, Any]) -> list[list[float]] | None:
    """Corners of a shape; None where it has no area."""
    points = [[float(x), float(y)] for x, y in shape['points']]
    kind = shape.get('shape_type') or 'polygon'
    if not all(math.isfinite(value) for point in points for value in point):
        raise ValueError(f'a point that is not finite: {points}')
    if kind == 'rectangle' and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    elif kind == 'circle' and len(points) == 2:
        (x, y), edge = points[0], math.dist(*points)
        angles = [2 * math.pi * step / 32 for step in range(32)]
        points = [[x + edge * math.cos(angle), y + edge * math.sin(angle)] for angle in angles]
    elif kind not in ('polygon', 'rectangle'):
        return None
    return points if len(points) >= 3 and _area(points) > 0 else None


def _area(points: list[list[float]]) -> float:
    xs, ys = np.array(points).T
    return float(abs(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))) / 2)


def read_masks(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """One mask PNG per object: images/{train,val}/NAME.jpg and masks/{train,val}/NAME/CLASS_1.png.

    Pixels above 0 are the object. The class is the file's name without its number; without name it is 'object'.

    Args:
        root: With these folders.
        share: Not used: the folders say the splits.

    Returns:
        Files by split; the folder of the images relative to the root.

    Raises:
        AnnotationError: One line per file that cannot be used.
    """
    del share
    splits = {s: find_images(root / 'images' / s).paths for s in SPLITS if (root / 'images' / s).is_dir()}
    if not {'train', 'val'} <= set(splits):
        raise AnnotationError(f'{root}/images: no folders train and val')
    names = {split: [f'{split}/{name}' for name in found] for split, found in splits.items()}
    return _collect(names, lambda file, name: _masks(file, root, name)), 'images'


def _masks(file: CocoFile, root: Path, name: str) -> None:
    from pycocotools import mask as coco_mask  # not in the core environment

    file.add_image(name, size := picture_size(root / 'images' / name))
    folder = (root / 'masks' / name).with_suffix('')
    if not folder.is_dir():
        file.left_out['images without masks'] += 1
        return
    for path in sorted(folder.glob('*.png')):
        try:
            with Image.open(path) as picture:
                found: Any = np.asarray(picture)
        except (OSError, SyntaxError, ValueError) as error:
            raise AnnotationError(f'{path}: the mask does not decode ({error})') from None
        found = found if found.ndim == 2 else found[..., :3].any(-1)
        if found.shape != (size[1], size[0]):
            raise AnnotationError(f'{path}: is {found.shape[1]}x{found.shape[0]} px, its image {size[0]}x{size[1]}')
        if not found.any():
            file.left_out['empty masks'] += 1
            continue
        code = coco_mask.encode(np.asfortranarray(found > 0, np.uint8))
        x, y, width, height = coco_mask.toBbox(code).tolist()
        label = re.sub(r'[\s_.-]*\d+$', '', path.stem) or 'object'
        file.add_object(
            label,
            (x, y, x + width, y + height),
            segmentation={'size': list(code['size']), 'counts': code['counts'].decode()},
            area=float(coco_mask.area(code)),
        )


def _collect(splits: dict[str, list[str]], read: Callable[[CocoFile, str], None]) -> dict[str, CocoFile]:
    """Reads all files of all splits, and lists what cannot be read at once."""
    files: dict[str, CocoFile] = {}
    wrong: list[str] = []
    for split, names in splits.items():
        files[split] = CocoFile()
        for name in names:
            try:
                read(files[split], name)
            except AnnotationError as error:
                wrong.append(str(error))
    if wrong:
        more = [f'and {len(wrong) - _MOST} more'] if len(wrong) > _MOST else []
        raise AnnotationError('\n'.join([*wrong[:_MOST], *more]))
    return files


def _lines(path: Path) -> Iterable[str]:
    return [line for line in path.read_text('utf-8-sig').splitlines() if line.strip()]
