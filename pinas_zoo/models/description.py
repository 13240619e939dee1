"""What an exported file says about itself, as texts: task, pre-processing, class names, palette."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from timm.data import resolve_data_config

__all__ = ['Preprocessing', 'describe', 'timm_preprocessing']


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the input of a network. Steps in this order: resize, crop, channels, normalise.

    Args:
        mean: Of each channel, for pixels 0..255, in the order of `channels`.
        std: The same for the standard deviation.
        channels: 'RGB' or 'BGR'.
        short: Length of the short side after resizing with the aspect ratio kept, in px.
        long: Largest length of the long side after that. Without `short` and `long` the size is kept.
        size: Height and width to resize to without keeping the aspect ratio, instead.
        crop: Height and width of the centre crop; None does not crop.
        interpolation: PIL's filter, in lower case.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str = 'RGB'
    short: int | None = None
    long: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = 'bilinear'

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """The input for one picture: (3, H, W) float32."""
        picture = picture.convert('RGB')
        width, height = self.target(*picture.size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        if self.crop:
            top, left = round((height - self.crop[0]) / 2), round((width - self.crop[1]) / 2)
            picture = picture.crop((left, top, left + self.crop[1], top + self.crop[0]))
        pixels = np.asarray(picture, np.float32)[..., :: 1 if self.channels == 'RGB' else -1]
        values = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing."""
        if self.size:
            return self.size[1], self.size[0]
        bounds = []
        if self.short:
            bounds.append(self.short / min(width, height))
        if self.long:
            bounds.append(self.long / max(width, height))
        factor = min(bounds, default=1)
        return int(width * factor + 0.5), int(height * factor + 0.5)


def timm_preprocessing(pretrained_cfg: Mapping[str, Any], side: int | None = None) -> Preprocessing:
    """timm's evaluation transform.

    Args:
        pretrained_cfg: As a timm model states it.
        side: Of the input in px; None takes the stated one.
    """
    stated = resolve_data_config(dict(pretrained_cfg))
    side = side or stated['input_size'][-1]
    mean, std = (tuple(round(255 * value, 6) for value in stated[name]) for name in ('mean', 'std'))
    short = math.floor(side / stated['crop_pct'])
    return Preprocessing(mean, std, short=short, crop=(side, side), interpolation=stated['interpolation'])


def describe(
    task: str,
    preprocessing: Preprocessing,
    classes: Sequence[str] = (),
    palette: Sequence[Sequence[int]] | None = None,
) -> dict[str, str]:
    """Metadata of an exported file: JSON texts by name. Only what is known is stated.

    Args:
        task: 'classification', 'features', 'segmentation' or 'detection'.
        preprocessing: Of the file's input.
        classes: Names by label.
        palette: RGB by label.
    """
    content: dict[str, object] = {'task': task}
    content['preprocessing'] = {name: value for name, value in asdict(preprocessing).items() if value is not None}
    if classes:
        content['classes'] = list(classes)
    if palette:
        content['palette'] = [list(colour) for colour in palette]
    return {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}
