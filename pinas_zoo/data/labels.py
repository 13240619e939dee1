"""Label maps: pictures whose values are classes."""

from pathlib import Path

import numpy as np
from PIL import Image

from pinas_zoo.data.images import naming_damage
from pinas_zoo.data.more_bits import LOSSY
from pinas_zoo.data.sources import BrokenImageError

__all__ = ['LOSSY_MAP', 'read_labels']

LOSSY_MAP = 'the label map is a JPEG, which does not keep the labels: write it as PNG, from the original'


def read_labels(path: str | Path) -> np.ndarray:
    """The values of a label map as they are stored: indices of a palette, not its colours.

    Shape: (H, W)

    Raises:
        BrokenImageError: The file is missing, damaged, a JPEG, or has several channels; the message names it.
    """
    if not Path(path).is_file():
        raise BrokenImageError(f'{path}: no such file')
    try:
        with naming_damage(path), Image.open(path) as file:
            lossy, labels = file.format in LOSSY, np.asarray(file)
    except BrokenImageError as error:
        reason = str(error.__cause__ or error).splitlines()
        raise BrokenImageError(f'{path}: the label map does not decode ({reason[0] if reason else "empty"})') from None
    if lossy:
        raise BrokenImageError(f'{path}: {LOSSY_MAP}')
    if labels.ndim != 2:
        raise BrokenImageError(f'{path}: a label map has one value per pixel, this one has {labels.shape[2]} channels')
    return labels
