"""Results of a data check, and the lines about files and folders that are not where the config says."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image

from pinas_zoo.data.images import orientation
from pinas_zoo.data.trees import shorten

T = TypeVar('T')

_TREES = {'CocoDataset': 'coco', 'ADE20KDataset': 'ade20k', 'CityscapesDataset': 'cityscapes'}


class BadInputError(ValueError):
    """Data, or a config that does not fit them; one line per problem, naming file and value."""


@dataclass
class Findings:
    """Lines of a check.

    Args:
        errors: The run cannot succeed.
        warnings: Legal, but probably not intended.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def repeated(values: Iterable[T]) -> list[T]:
    """Those that came before, once for each time that they come again."""
    seen: set[T] = set()
    again = []
    for value in values:
        if value in seen:
            again.append(value)
        seen.add(value)
    return again


def lacks(dataset: Any, paths: Sequence[str], findings: Findings) -> bool:
    """Whether the root of a data set, or a file or folder that it needs, is missing; adds a line if so.

    Args:
        dataset: Data set of mmdet or mmseg.
        paths: What has to exist.
        findings: Receives the lines.
    """
    root = dataset.data_root or ''
    hint = ''
    if name := _TREES.get(type(dataset).__name__):
        hint = f'; pinas prepare {name} --root {root or "FOLDER"} says what belongs there'
    if root and not os.path.isdir(root):
        findings.errors.append(f'{root}: no such folder (data_root){hint}')
        return True
    missing = [path for path in paths if not os.path.exists(path)]
    for path in missing:
        content = f'; {root} contains {shorten(sorted(os.listdir(root)), 5) or "nothing"}' if root else ''
        findings.errors.append(f'{path}: does not exist{content}{hint}')
    return bool(missing)


def warn_of_orientation(path: str, what: str, findings: Findings) -> None:
    """Warns if a picture's file says that it has to be rotated.

    Args:
        path: Path of a picture that decodes.
        what: 'boxes and masks' or 'label maps', which mmcv does not rotate.
        findings: Receives the line.
    """
    with Image.open(path) as file:
        turn = orientation(file)
    if turn != 1:
        findings.warnings.append(
            f'{path}: EXIF orientation {turn}: mmcv turns the picture upright and leaves {what} as they are, which fit '
            'only if they were drawn on the upright picture'
        )


def names_own_classes(node: dict[str, Any]) -> bool:
    """Whether a config names the classes of its data set itself, so that it is not one of the published ones."""
    return bool((node.get('metainfo') or {}).get('classes'))
