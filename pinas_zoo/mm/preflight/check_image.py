"""A step of mmdet's and mmseg's pipelines that compares every image with what is known about it."""

from typing import Any

from mmcv.transforms import BaseTransform

from pinas_zoo.mm.preflight.findings import BadInputError
from pinas_zoo.registry import TRANSFORMS

__all__ = ['CheckImage']


@TRANSFORMS.register_module()
class CheckImage(BaseTransform):
    """Compares an image with its annotation's width and height, and its channels with the model's.

    Args:
        channels: Channels of the images that the model normalises; None does not check them.
    """

    def __init__(self, channels: int | None = None) -> None:
        self.channels = channels

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes nothing.

        Raises:
            BadInputError: The image does not fit; the message names it.
        """
        shape = results['img'].shape
        height, width = results.get('height'), results.get('width')
        if height is not None and width is not None and shape[:2] != (height, width):
            raise BadInputError(
                f'{results.get("img_path")}: is {shape[1]}x{shape[0]} px, its annotation says {width}x{height}: its '
                'boxes and masks do not belong to this picture'
            )
        found = shape[2] if len(shape) > 2 else 1
        if self.channels is not None and found != self.channels:
            raise BadInputError(f'{results.get("img_path")}: has {found} channel(s), the model expects {self.channels}')
        return results
