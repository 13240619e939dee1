"""JSON of labelme, read into files of COCO's format."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from pinas_zoo.data.imports.coco_file import (
    SPLITS,
    AnnotationError,
    CocoFile,
    check_size,
    collect,
    hold_out,
    picture_size,
)

__all__ = ['read_labelme']

_AREAS = ('polygon', 'rectangle', 'circle')  # kinds of shapes that become objects


def read_labelme(root: Path, share: float) -> tuple[dict[str, CocoFile], str]:
    """Polygons, rectangles and circles of labelme: JSON beside its picture, in train/ and val/ or all in one folder.

    Shapes of one label and group are one object. Points and lines are counted and left out.

    Args:
        root: Folder that contains these files.
        share: Share of the images that is held out without folders train and val.

    Returns:
        Files by split; the folder of the images relative to the root.

    Raises:
        AnnotationError: One line per file that cannot be used.
    """
    visible = [path.relative_to(root) for path in root.rglob('*.json')]
    visible = [path for path in visible if not any(part.startswith('.') for part in path.parts)]
    splits = {split: sorted(str(path) for path in visible if path.parts[:-1] == (split,)) for split in SPLITS}
    splits = {split: names for split, names in splits.items() if names}
    if not {'train', 'val'} <= set(splits):
        beside = [path.name for path in visible if len(path.parts) == 1]
        if not beside:
            raise AnnotationError(f'{root}: no JSON files in it, or in train and val; {len(visible)} in other folders')
        splits = hold_out(beside, share)
    files = collect(splits, lambda file, name: _labelme(file, root, name))
    used = {name for names in splits.values() for name in names}
    others = [path for path in visible if str(path) not in used and path.parts[0] != 'annotations']
    next(iter(files.values())).left_out['JSON files in other folders'] += len(others)
    return files, ''


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
            kind = shape.get('shape_type') or 'polygon'
            file.left_out[f'shapes of kind {kind}{" without an area" if kind in _AREAS else ""}'] += 1
            continue
        group = shape.get('group_id')
        groups.setdefault((label, number if group is None else f'group {group}'), []).append(points)
    picture = content['imagePath'].replace('\\', '/')
    place = path.parent / picture
    place = place if place.is_file() else path.parent / Path(picture).name
    if content.get('imageData') and not place.is_file():
        raise AnnotationError(
            f'{place}: no such picture; {path.name} contains it as imageData: write it there, for example with '
            'labelme_export_json'
        )
    size = picture_size(place)
    check_size(path, [content.get('imageWidth'), content.get('imageHeight')], size)
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
        ValueError: It is not a shape; the message continues 'shape 3 '.
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
    elif kind not in _AREAS or kind == 'circle':
        return label, None
    return label, points if len(points) >= 3 and _area(points) > 0 else None


def _shown(value: Any) -> str:
    """A value as its file has it, shortened to fit a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _area(points: list[list[float]]) -> float:
    xs, ys = np.array(points).T
    return float(abs(np.dot(xs, np.roll(ys, 1)) - np.dot(ys, np.roll(xs, 1))) / 2)
