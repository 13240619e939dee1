"""Large pictures in overlapping tiles, by the rule of `pinas_zoo.data.images`.

A picture is decoded once and kept as it is stored: one byte per pixel of a grey or palette picture, four of a coloured
one. Pillow maps uncompressed grey and palette files instead of reading them. Each tile is turned upright and converted
by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from pinas_zoo.data.images import UPRIGHT, eight_bits, naming_damage, orientation

__all__ = ['Tile', 'TiledPicture', 'Tiling', 'limit_pictures', 'open_tiled']

_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


def limit_pictures(megapixels: int) -> None:
    """Sets, for this process, how large a picture may be; Pillow's own limit is 178 megapixels.

    Raises:
        ValueError: The limit is not positive.
    """
    if megapixels < 1:
        raise ValueError(f'the limit must be at least 1 megapixel, got {megapixels}')
    Image.MAX_IMAGE_PIXELS = megapixels * 500_000  # Pillow warns above it, and refuses above twice as many
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Tile:
    """A rectangle of a picture in px; `right` and `bottom` are outside it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    def common(self, other: Tile) -> Tile | None:
        """The rectangle that both show; None if there is none."""
        left, top = max(self.left, other.left), max(self.top, other.top)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Tile(left, top, right, bottom) if left < right and top < bottom else None


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Args:
        side: Side of a tile in px.
        overlap: Smallest overlap of neighbours in px; None for a quarter of the side.

    Raises:
        ValueError: The side is not positive, or the overlap exceeds half of it.
    """

    side: int
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f'the side of a tile must be at least 1 px, got {self.side}')
        if not 0 <= self.margin <= self.side // 2:
            raise ValueError(
                f'tiles of {self.side} px may overlap by 0 to {self.side // 2} px, so that only neighbours do; '
                f'got {self.overlap}'
            )

    @property
    def margin(self) -> int:
        """The smallest overlap."""
        return self.side // 4 if self.overlap is None else self.overlap

    def grid(self, height: int, width: int) -> list[tuple[Tile, Tile]]:
        """Tiles of a picture, row by row, evenly spaced and of one size.

        Args:
            height: Height of the picture.
            width: Its width.

        Returns:
            Each tile, and its core: where it is further from its border than its neighbours are from theirs. The cores
            cover the picture once.
        """
        return [
            (Tile(left, top, right, bottom), Tile(first, upper, last, lower))
            for (top, bottom), (upper, lower) in self._spans(height)
            for (left, right), (first, last) in self._spans(width)
        ]

    def _spans(self, length: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        side, margin = min(self.side, length), self.margin
        count = 1 if length <= side else math.ceil((length - margin) / (side - margin))
        starts = [(length - side) * number // max(1, count - 1) for number in range(count)]
        cuts = [0, *((start + before + side) // 2 for before, start in pairwise(starts)), length]
        return [
            ((start, start + side), (first, last)) for start, (first, last) in zip(starts, pairwise(cuts), strict=True)
        ]


class TiledPicture:
    """An open picture; from `open_tiled`.

    Args:
        file: The picture.

    Attributes:
        height: Rows of the upright picture.
        width: Its columns.
    """

    def __init__(self, file: Image.Image) -> None:
        # Pillow turns TIFF itself, while it decodes.
        self._turn = UPRIGHT.get(orientation(file)) if file.format != 'TIFF' else None
        file.load()
        self._file = file
        self.width, self.height = file.size[::-1] if self._turn in _SIDEWAYS else file.size

    def read(self, tile: Tile) -> np.ndarray:
        """One tile.

        Returns:
            RGB

        Shape:
            uint8 (H, W, 3)

        Raises:
            BrokenImageError: Its values are of an unknown range.
        """
        with naming_damage(getattr(self._file, 'filename', '')):
            pixels = eight_bits(self._file.crop(self._stored(tile)))
            return np.array(pixels if self._turn is None else pixels.transpose(self._turn))

    def _stored(self, tile: Tile) -> tuple[int, int, int, int]:
        """Where a tile of the upright picture is stored."""
        if self._turn is None:
            return tile.left, tile.top, tile.right, tile.bottom
        columns, rows = (tile.left, tile.right), (tile.top, tile.bottom)
        back_columns = (self.width - tile.right, self.width - tile.left)
        back_rows = (self.height - tile.bottom, self.height - tile.top)
        (left, right), (top, bottom) = {
            Image.Transpose.FLIP_LEFT_RIGHT: (back_columns, rows),
            Image.Transpose.ROTATE_180: (back_columns, back_rows),
            Image.Transpose.FLIP_TOP_BOTTOM: (columns, back_rows),
            Image.Transpose.TRANSPOSE: (rows, columns),
            Image.Transpose.ROTATE_270: (rows, back_columns),
            Image.Transpose.TRANSVERSE: (back_rows, back_columns),
            Image.Transpose.ROTATE_90: (back_rows, columns),
        }[self._turn]
        return left, top, right, bottom

    def tiles(self, tiling: Tiling) -> Iterator[tuple[Tile, Tile, np.ndarray]]:
        """Every tile with its core and its pixels, one at a time."""
        for tile, core in tiling.grid(self.height, self.width):
            yield tile, core, self.read(tile)


@contextmanager
def open_tiled(path: str | Path) -> Iterator[TiledPicture]:
    """Open a picture whose tiles are then read.

    Args:
        path: Path of the file.

    Raises:
        BrokenImageError: The file is missing, damaged, or above the limit of pixels.
    """
    with naming_damage(path):
        file = Image.open(path)
    with file:
        with naming_damage(path):
            picture = TiledPicture(file)
        yield picture
