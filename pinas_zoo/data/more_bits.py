"""Grey pictures with more than 8 bits, which scale by their full range (docs/data.md, 'Pictures')."""

import numpy as np
from PIL import Image

__all__ = ['from_more_bits']


#: Formats whose values are approximate, which masks and label maps must not be.
LOSSY = ('JPEG', 'MPO')


def from_more_bits(file: Image.Image) -> Image.Image:
    """RGB with 8 bits per channel, from a picture of integers or floats (PIL's modes I and F).

    Raises:
        ValueError: It has values outside the range that is known.
    """
    if file.mode.startswith('I'):
        values = np.asarray(file).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f'its values go from {values.min()} to {values.max()}, allowed: 0 to 65535')
        return Image.fromarray((values >> 8).astype(np.uint8)).convert('RGB')
    shades = np.asarray(file)
    if not (shades.min() >= 0 and shades.max() <= 1):  # NaN fails as well
        raise ValueError(f'its values go from {shades.min()} to {shades.max()}, allowed: 0.0 to 1.0')
    return Image.fromarray((shades * 255 + 0.5).astype(np.uint8)).convert('RGB')
