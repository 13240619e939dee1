"""A file in COCO's format, built image by image and checked with pycocotools."""

import contextlib
import io
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pinas_zoo.data.images import orientation
from pinas_zoo.files import write_text

__all__ = ['SPLITS', 'AnnotationError', 'CocoFile', 'check_size', 'collect', 'hold_out', 'picture_size', 'write_all']

SPLITS = ('train', 'val', 'test')
_MOST = 20  # problems that are listed


class AnnotationError(ValueError):
    """Annotations that cannot be converted; one line per problem, naming file and value."""


class CocoFile:
    """Images and objects of one split.

    Attributes:
        left_out: Objects that were left out, counted by reason.
        noted: What was changed or looks odd, counted by kind.
    """

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.left_out: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.names: set[str] = set()
        self._pictures: set[str] = set()

    def add_image(self, name: str, size: tuple[int, int]) -> None:
        """Starts an image; the objects that follow belong to it.

        Args:
            name: Path relative to the folder of the images.
            size: Width and height in px.

        Raises:
            AnnotationError: The file already has it.
        """
        if name in self._pictures:
            raise AnnotationError(f'{name}: the picture is annotated twice in one split')
        self._pictures.add(name)
        number = len(self.images) + 1
        self.images.append({'id': number, 'file_name': name, 'width': size[0], 'height': size[1]})

    def add_object(self, label: str, box: Sequence[float], crowd: bool = False, **more: Any) -> None:
        """Adds an object to the last image.

        Args:
            label: Name of its class.
            box: x1, y1, x2, y2 in px; parts outside the image are cut off.
            crowd: Whether detectors and metrics ignore it.
            more: `segmentation` and `area`.
        """
        image = self.images[-1]
        (x1, x2), (y1, y2) = (
            [min(max(float(value), 0.0), limit) for value in sides]
            for sides, limit in ((box[::2], image['width']), (box[1::2], image['height']))
        )
        if x2 - x1 < 1 or y2 - y1 < 1:
            self.left_out['objects without a pixel in their image'] += 1
            return
        outside = min(box) < -1 or box[2] > image['width'] + 1 or box[3] > image['height'] + 1
        self.noted['objects cut off at the border of their picture'] += outside
        self.noted['difficult objects, which became crowds (iscrowd 1)'] += crowd
        self.names.add(label)
        found = {'segmentation': [], **more, 'area': min((x2 - x1) * (y2 - y1), more.get('area', math.inf))}
        self.annotations.append(
            {
                'id': len(self.annotations) + 1,
                'image_id': image['id'],
                'label': label,
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'iscrowd': int(crowd),
                **found,
            }
        )

    def document(self, classes: Sequence[str]) -> dict[str, Any]:
        """The file's content, with categories numbered from 1 in the order of `classes`."""
        numbers = {name: number for number, name in enumerate(classes, 1)}
        annotations = [{**entry, 'category_id': numbers[entry['label']]} for entry in self.annotations]
        for entry in annotations:
            del entry['label']
        categories = [{'id': number, 'name': name} for name, number in numbers.items()]
        return {'images': self.images, 'annotations': annotations, 'categories': categories}


def write_all(splits: dict[str, CocoFile], out: Path, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Write the files of all splits with one list of classes, and read them back with pycocotools.

    Args:
        splits: Files by split.
        out: Folder for SPLIT.json.
        classes: Names in the order of their ids; None sorts the names that occur.

    Returns:
        The classes.

    Raises:
        AnnotationError: A split has no images, or no objects, or an object of a class that is not in `classes`.
    """
    if twice := [name for name, count in Counter(classes or ()).items() if count > 1]:
        raise AnnotationError(f'--classes names {twice[0]!r} more than once')
    found = sorted({name for file in splits.values() for name in file.names})
    names = tuple(classes or found)
    if strange := [name for name in found if name not in names]:
        raise AnnotationError(
            f'objects have the classes {", ".join(map(repr, strange))}, allowed are {", ".join(map(repr, names))}'
        )
    for split, file in splits.items():
        if not file.images or not file.annotations:
            rest = ', '.join(f'{count} {reason}' for reason, count in (+file.left_out).items())
            raise AnnotationError(
                f'{split}: {len(file.images)} images, {len(file.annotations)} objects: at least one of each is needed'
                + (f'; left out: {rest}' if rest else '')
            )
    for split, file in splits.items():
        write_text(out / f'{split}.json', json.dumps(file.document(names)))
        _read_again(out / f'{split}.json', file)
    return names


def _read_again(path: Path, file: CocoFile) -> None:
    try:
        from pycocotools.coco import COCO
    except ImportError:  # not in the core environment
        return
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(path))
        masks = [api.annToRLE(entry) for entry in api.anns.values() if entry['segmentation']]
    counts = len(api.imgs), len(api.anns)
    written = len(file.images), len(file.annotations)
    if counts != written:
        raise AnnotationError(
            f'{path}: {written} images and objects were written, pycocotools reads {counts} ({len(masks)} masks)'
        )


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header.

    Raises:
        AnnotationError: It is missing or not a picture, or has an orientation, which makes annotations ambiguous.
    """
    try:
        with Image.open(path) as file:
            turn, size = orientation(file), file.size
    except FileNotFoundError:
        raise AnnotationError(f'{path}: no such picture') from None
    except (OSError, SyntaxError, ValueError) as error:
        raise AnnotationError(f'{path}: the picture does not decode ({error})') from None
    if turn != 1:
        raise AnnotationError(
            f'{path}: EXIF orientation {turn}: annotations may refer to the stored or to the upright picture; save it '
            'upright, without the orientation'
        )
    return size


def hold_out(names: Sequence[str], share: float, seed: int = 0) -> dict[str, list[str]]:
    """Split names into 'train' and 'val', at random but always in the same way.

    Raises:
        AnnotationError: The share leaves one of them empty.
    """
    count = round(share * len(names))
    if not 0 < count < len(names):
        raise AnnotationError(f'--val {share} of {len(names)} images leaves {count} to validate on')
    held = set(random.Random(seed).sample(sorted(names), count))
    return {'train': [n for n in sorted(names) if n not in held], 'val': [n for n in sorted(names) if n in held]}


def check_size(path: Path, stated: Sequence[Any], size: tuple[int, int]) -> None:
    """Compares a picture with the width and height that an annotation states; many tools write 0, or nothing.

    Args:
        path: The annotation file.
        stated: Width and height as the file has them; None and texts that are not numbers are not compared.
        size: Those of the picture.

    Raises:
        AnnotationError: They differ.
    """
    try:
        width, height = (int(float(value)) for value in stated)
    except (TypeError, ValueError, OverflowError):
        return
    if width > 0 and height > 0 and (width, height) != size:
        raise AnnotationError(
            f'{path}: states a picture of {width}x{height} px, but the picture is {size[0]}x{size[1]}: its objects do '
            'not fit; restore the picture, or correct the annotation'
        )


def collect(splits: dict[str, list[str]], read: Callable[[CocoFile, str], None]) -> dict[str, CocoFile]:
    """Reads all files of all splits, and lists everything that cannot be read in one error.

    Args:
        splits: Names by split.
        read: Reads one into a file.

    Raises:
        AnnotationError: One line per name that cannot be read.
    """
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
    seen: set[str] = set()
    for file in files.values():
        pictures = {image['file_name'] for image in file.images}
        file.noted['pictures that an earlier split has, too'] += len(pictures & seen)
        seen |= pictures
    return files
