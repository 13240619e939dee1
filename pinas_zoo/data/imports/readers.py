"""Pascal-VOC XML, labelme JSON and folders of masks, read into files of COCO's format."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from glob import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from pinas_zoo.data.images import find_images, suffixes
from pinas_zoo.data.imports.coco_file import AnnotationError, CocoFile, hold_out, picture_size

__all__ = ['read_labelme', 'read_masks', 'read_voc']

SPLITS = ('train', 'val', 'test')
_MOST = 20  # problems that are listed


def read_voc(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """Boxes of Pascal VOC: Annotations/NAME.xml, JPEGImages/, and ImageSets/Main/{train,val,test}.txt if there are any.

    VOC counts pixels from 1 and a box includes its last one: x1 is xmin - 1, x2 is xmax. Difficult objects become
    crowds, which neither training nor the metric counts.

    Args:
        root: Folder that contains these folders.
        share: Share of the images that is held out if there are no lists.

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
    except OSError as error:
        raise AnnotationError(f'{path}: {error.strerror}') from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: an unknown encoding
        raise AnnotationError(f'{path}: not XML ({error})') from None
    picture = _voc_picture(root / 'JPEGImages', name, tree)
    size = picture_size(root / 'JPEGImages' / picture)
    _check_size(path, [tree.findtext(f'size/{key}') for key in ('width', 'height')], size)
    file.add_image(picture, size)
    for number, found in enumerate(tree.iter('object'), 1):
        corners = {key: (found.findtext(f'bndbox/{key}') or '').strip() for key in ('xmin', 'ymin', 'xmax', 'ymax')}
        box = ', '.join(f'{key} {text or "missing"}' for key, text in corners.items())
        label = (found.findtext('name') or '').strip()
        try:
            x1, y1, x2, y2 = map(float, corners.values())
        except ValueError:
            raise AnnotationError(f'{path}: object {number} has the box {box}, which must be four numbers') from None
        if not label:
            raise AnnotationError(f'{path}: object {number} has no name')
        if not all(map(math.isfinite, (x1, y1, x2, y2))) or x2 < x1 or y2 < y1:
            raise AnnotationError(
                f'{path}: object {number} ({label}) has the box {box}, whose maximum must not be below its minimum'
            )
        file.add_object(label, (x1 - 1, y1 - 1, x2, y2), crowd=(found.findtext('difficult') or '0').strip() == '1')


def _voc_picture(folder: Path, name: str, tree: ElementTree.Element) -> str:
    """The picture of an annotation: that of its name; else the one that it states, which copies often state wrongly."""
    stated = (tree.findtext('filename') or '').strip().replace('\\', '/').rpartition('/')[2]
    if Path(stated).stem == name and (folder / stated).is_file():
        return stated
    named = [path.name for path in sorted(folder.glob(f'{escape(name)}.*')) if path.suffix.lower() in suffixes()]
    if len(named) > 1:
        raise AnnotationError(f'{folder}: {named[0]} and {named[1]} both belong to the annotation {name}.xml')
    if named:
        return named[0]
    return stated if stated and (folder / stated).is_file() else f'{name}.jpg'


def _check_size(path: Path, stated: Sequence[Any], size: tuple[int, int]) -> None:
    """Compares a picture with the width and height that an annotation states; many tools write 0, or nothing."""
    try:
        width, height = (int(float(value)) for value in stated)
    except (TypeError, ValueError, OverflowError):
        return
    if width > 0 and height > 0 and (width, height) != size:
        raise AnnotationError(
            f'{path}: is of a picture of {width}x{height} px, but the picture is {size[0]}x{size[1]}: its objects do '
            'not fit; restore the picture, or correct the annotation'
        )


def read_labelme(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """Polygons, rectangles and circles of labelme: JSON beside its picture, in train/ and val/ or all in one folder.

    Shapes of one label and group are one object. Points and lines are counted and left out.

    Args:
        root: Folder that contains these files.
        share: Share of the images that is held out if there are no folders.

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
    content = _labelme_content(path)
    groups: dict[tuple[str, int | str], list[list[list[float]]]] = {}
    for number, shape in enumerate(content['shapes'], 1):
        try:
            label, points = _outline(shape)
        except ValueError as error:
            raise AnnotationError(f'{path}: shape {number} {error}') from None
        if points is None:
            file.left_out[f'shapes of kind {shape.get("shape_type") or "polygon"}'] += 1
            continue
        group = shape.get('group_id')
        groups.setdefault((label, number if group is None else f'group {group}'), []).append(points)
    picture = content['imagePath'].replace('\\', '/')
    place = path.parent / picture
    place = place if place.is_file() else path.parent / Path(picture).name
    size = picture_size(place)
    _check_size(path, [content.get('imageWidth'), content.get('imageHeight')], size)
    file.add_image(Path(os.path.relpath(place, root)).as_posix(), size)
    for (label, _), outlines in groups.items():
        xs, ys = zip(*(point for points in outlines for point in points), strict=True)
        file.add_object(
            label,
            (min(xs), min(ys), max(xs), max(ys)),
            segmentation=[[value for point in points for value in point] for points in outlines],
            area=sum(map(_area, outlines)),
        )


def _labelme_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text('utf-8-sig'))
    except OSError as error:
        raise AnnotationError(f'{path}: {error.strerror}') from None
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f'{path}: not in the format of labelme: not JSON ({error})') from None
    for key, kind, what in (('shapes', list, 'list'), ('imagePath', str, 'text')):
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise AnnotationError(f'{path}: not in the format of labelme: no {what} {key}')
    return content


def _outline(shape: Any) -> tuple[str, list[list[float]] | None]:
    """Label and corners of a shape; no corners if it has no area.

    Raises:
        ValueError: It is no shape; the message continues 'shape 3 '.
    """
    if not isinstance(shape, dict):
        raise ValueError(f'is {_shown(shape)}, which must be an object with label and points')
    label, found, kind = shape.get('label'), shape.get('points'), shape.get('shape_type') or 'polygon'
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f'has the label {_shown(label)}, which must be a name')
    try:
        points = [[float(x), float(y)] for x, y in found]  # type: ignore[union-attr]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'has the points {_shown(found)}, which must be pairs of numbers') from None
    if not all(math.isfinite(value) for point in points for value in point):
        raise ValueError(f'has a point that is not finite: {_shown(found)}')
    if kind == 'rectangle' and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    elif kind == 'circle' and len(points) == 2:
        (x, y), edge = points[0], math.dist(*points)
        angles = [2 * math.pi * step / 32 for step in range(32)]
        points = [[x + edge * math.cos(angle), y + edge * math.sin(angle)] for angle in angles]
    elif kind not in ('polygon', 'rectangle'):
        return label, None
    return label, points if len(points) >= 3 and _area(points) > 0 else None


def _shown(value: Any) -> str:
    """A value as its file has it, shortened to fit a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _area(points: list[list[float]]) -> float:
    xs, ys = np.array(points).T
    return float(abs(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))) / 2)


def read_masks(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """One mask PNG per object: images/{train,val}/NAME.jpg and masks/{train,val}/NAME/CLASS_1.png.

    Pixels above 0 are the object. The class is the file's name without its number, or 'object' if that is empty.

    Args:
        root: Folder that contains these folders.
        share: Not used: the folders define the splits.

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
    """Reads all files of all splits, and lists everything that cannot be read in one error."""
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
