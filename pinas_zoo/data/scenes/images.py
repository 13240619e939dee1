"""One scene composed from real pixels: items at random scale and position over a textured wall and floor.

Nearer items hide farther ones. The map of visible items is built during composition, so every mask is exact.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from pinas_zoo.data import Source


VERSION = 1  # increase it whenever the same settings would give different pixels
FORMATS = ('coco', 'ade20k', 'cityscapes')
SPLITS = ('train', 'val')
#: Labels that are not an item's category, however many categories there are.
WALL, FLOOR, RIM = 253, 254, 255


@dataclass(frozen=True)
class SceneSettings:
    """Settings of a set of scenes; the manifest records them.

    Args:
        size: Height in px, at least 32; COCO and ADE20K scenes are square, Cityscapes ones twice as wide.
        train, val: Number of scenes of each format.
        seed: Seed of everything random.
        formats: Some of coco, ade20k, cityscapes.
        items: Smallest and largest number of items in a square scene.
        item_size: Longer side of an item as a share of the height, as (low, high).
        min_visible: Smallest visible share of an item, in (0, 1].
        pool: Number of source items used per split.

    Raises:
        ValueError: A value is out of its range.
    """

    size: int = 128
    train: int = 2000
    val: int = 400
    seed: int = 0
    formats: tuple[str, ...] = FORMATS
    items: tuple[int, int] = (3, 8)
    item_size: tuple[float, float] = (0.2, 0.6)
    min_visible: float = 0.35
    pool: int = 8000

    def __post_init__(self) -> None:
        if not self.formats or set(self.formats) - set(FORMATS):
            raise ValueError(f'formats={self.formats!r}; allowed: some of {", ".join(FORMATS)}')
        if self.size < 32 or min(self.train, self.val, self.pool) < 1 or self.seed < 0:
            raise ValueError(f'{self}: size must be at least 32, train, val and pool at least 1, seed at least 0')
        if not 1 <= self.items[0] <= self.items[1] or not 0 < self.item_size[0] <= self.item_size[1] <= 1:
            raise ValueError(f'{self}: items and item_size must be (low, high), low at most high, shares up to 1')
        if not 0 < self.min_visible <= 1:
            raise ValueError(f'min_visible={self.min_visible!r}; allowed: above 0, up to 1')


@dataclass(frozen=True)
class Items:
    """Cut-out items: grey pixels and solid masks (N, h, w), categories (N,), names (N); and the class names."""

    pixels: np.ndarray
    masks: np.ndarray
    categories: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """One composed image.

    Shape: image (H, W, 3) uint8; ids (H, W) number of the visible item or -1; labels (H, W) category, WALL, FLOOR or
    RIM; categories and names by item number. `classes` is the number of categories.
    """

    image: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    categories: tuple[int, ...]
    names: tuple[str, ...]
    classes: int


def cut_items(source: Source, count: int, seed: int) -> Items:
    """Draw items from a labelled grey source and find their masks.

    Args:
        source: Images of one size, with a bright item on black.
        count: Largest number of items.
        seed: Seed of the draw.

    Raises:
        ValueError: The source has no classes, or so many that their labels collide with wall, floor and rim.
    """
    if not 1 <= len(source.classes) <= WALL:
        count = len(source.classes)
        raise ValueError(f'scenes need a source with 1 to {WALL} classes, got {count} ({source.description})')
    order = np.random.default_rng([seed, 7]).permutation(len(source))[:count].tolist()
    pixels = np.stack([source.load(i)[0].numpy() for i in order])
    masks = solid_masks(pixels)
    kept = [i for i in range(len(order)) if masks[i].sum() >= 40]
    categories = np.array([source.label(order[i]) for i in kept])
    names = tuple(source.name(order[i]) for i in kept)
    return Items(pixels[kept], masks[kept], categories, names, source.classes)


def solid_masks(pixels: np.ndarray, threshold: int = 12) -> np.ndarray:
    """Item masks without holes: everything that the dark outside, grown from the border, does not reach.

    Shape: uint8 (N, h, w) to bool (N, h, w).
    """
    dark = np.pad(pixels < threshold, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    outside = np.zeros_like(dark)
    outside[:, 0] = True
    reached = -1
    while reached != (reached := int(outside.sum())):
        for axis in (1, 2):
            ahead, behind = (np.moveaxis(outside, axis, 0)[s] for s in (slice(1, None), slice(None, -1)))
            ahead |= behind
            behind |= ahead
        outside &= dark
    return ~outside[:, 1:-1, 1:-1]


def compose(items: Items, rng: np.random.Generator, height: int, width: int, settings: SceneSettings) -> Scene:
    """Draw one scene."""
    image, floor = paint_background(rng, height, width)
    low, high = (round(n * width / height) for n in settings.items)
    sprites: list[_Sprite] = []
    for _ in range(int(rng.integers(low, high + 1))):
        sprites = _place(sprites, _render(items, rng, height, settings), rng, height, width, settings.min_visible)
    for sprite in sprites:
        _draw(image, sprite, max(2, height // 24))
    ids, _ = _visible(sprites, height, width)
    numbers = [s.item for s in sprites]
    # Id -1 looks up the last entry, which wall or floor then replaces.
    labels = np.where(ids >= 0, np.array([*items.categories[numbers], 0])[ids], np.where(floor, FLOOR, WALL))
    rim = max(1, height // 64)
    for edge in (np.s_[:rim], np.s_[-rim:], np.s_[:, :rim], np.s_[:, -rim:]):
        labels[edge] = RIM
    pixels = (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    categories = tuple(int(items.categories[n]) for n in numbers)
    return Scene(pixels, ids, labels, categories, tuple(items.names[n] for n in numbers), len(items.classes))


@dataclass(frozen=True)
class _Sprite:
    """A rendered item: number, colours (h, w, 3), opacity (h, w), position of its upper left corner."""

    item: int
    colours: np.ndarray
    alpha: np.ndarray
    top: int = 0
    left: int = 0

    @property
    def bottom(self) -> int:
        return self.top + len(self.alpha)


def _render(items: Items, rng: np.random.Generator, height: int, settings: SceneSettings) -> _Sprite:
    number = int(rng.integers(len(items.names)))
    mask = items.masks[number]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1])
    middle = np.array([rows[0], columns[0]]) + box / 2
    side = height * np.exp(rng.uniform(*np.log(settings.item_size)))
    scale = side / box.max() * np.exp(rng.uniform(-0.12, 0.12, 2))
    angle = np.clip(rng.normal(0, 0.2), -0.6, 0.6)
    cos, sin = np.cos(angle), np.sin(angle)
    extent = np.ceil(np.abs([[cos, sin], [sin, cos]]) @ (box * scale)).astype(int) + 3
    # PIL needs the map from output to input pixels: rotate back, then divide by the scale, mirrored at random.
    mirror = 1 if rng.random() < 0.5 else -1
    back = np.array([[cos, sin], [-sin, cos]]) / np.array([scale[1] * mirror, scale[0]])[:, None]
    shift = middle[::-1] - back @ (extent[::-1] / 2)
    matrix = (*back[0], shift[0], *back[1], shift[1])
    grey, alpha = (
        np.asarray(
            Image.fromarray(layer).transform(
                tuple(extent[::-1].tolist()), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
            ),
            dtype=np.float32,
        )
        / 255
        for layer in (items.pixels[number] * mask, mask.astype(np.uint8) * 255)
    )
    # Resampling mixes the black outside into the border pixels; dividing by the opacity removes it again.
    grey = (grey / np.maximum(alpha, 0.4)).clip(0, 1)
    return _Sprite(number, _tint(grey, rng), ((alpha - 0.5) * 1.6 + 0.5).clip(0, 1))


def _tint(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hue, strength = rng.random(), rng.uniform(0.25, 0.95)
    dark = np.array(colorsys.hsv_to_rgb(hue, min(1, strength + 0.2), rng.uniform(0.08, 0.3)), dtype=np.float32)
    light = np.array(
        colorsys.hsv_to_rgb((hue + rng.normal(0, 0.04)) % 1, strength, rng.uniform(0.75, 1.0)), dtype=np.float32
    )
    return dark + (light - dark) * grey[..., None]


def _place(
    sprites: list[_Sprite], new: _Sprite, rng: np.random.Generator, height: int, width: int, min_visible: float
) -> list[_Sprite]:
    """Add the sprite if all items stay visible enough; after eight tries it is left out."""
    size = np.array(new.alpha.shape)
    for _ in range(8):
        overhang = size * 0.15
        top, left = np.rint(rng.uniform(-overhang, [height, width] - size + overhang)).astype(int).tolist()
        # Items lower in the picture are nearer and hide those behind them.
        moved = _Sprite(new.item, new.colours, new.alpha, top, left)
        trial = sorted([*sprites, moved], key=lambda s: s.bottom)
        ids, areas = _visible(trial, height, width)
        seen = np.bincount(ids[ids >= 0], minlength=len(trial))
        if (seen >= np.maximum(min_visible * areas, 30)).all():
            return trial
    return sprites


def _visible(sprites: list[_Sprite], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of the visible sprite per pixel (-1: none), and the full area of each sprite."""
    ids = np.full((height, width), -1, dtype=np.int16)
    for number, sprite in enumerate(sprites):
        window, inner = _windows(sprite, height, width)
        ids[window][sprite.alpha[inner] >= 0.5] = number
    return ids, np.array([(s.alpha >= 0.5).sum() for s in sprites])


def _windows(sprite: _Sprite, height: int, width: int, pad: int = 0) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the padded sprite overlaps the image, in the image's and in its own pixels."""
    corner = (sprite.top - pad, sprite.left - pad)
    ends = [(c, c + n + 2 * pad, limit) for c, n, limit in zip(corner, sprite.alpha.shape, (height, width))]
    window = tuple(slice(max(0, a), max(0, min(b, limit))) for a, b, limit in ends)
    return window, tuple(slice(w.start - a, w.stop - a) for w, (a, _, _) in zip(window, ends))


def _draw(image: np.ndarray, sprite: _Sprite, reach: int) -> None:
    """Soft shadow to the lower right, then the item itself."""
    padded = Image.fromarray(np.pad(sprite.alpha * 255, reach).astype(np.uint8))
    shadow = np.asarray(padded.filter(ImageFilter.BoxBlur(reach / 2)), dtype=np.float32) / 255
    height, width = image.shape[:2]
    window, inner = _windows(sprite, height, width, pad=reach)
    image[window] *= 1 - 0.5 * np.roll(shadow, (reach // 2, reach // 2), (0, 1))[inner][..., None]
    window, inner = _windows(sprite, height, width)
    alpha = sprite.alpha[inner][..., None]
    image[window] += (sprite.colours[inner] - image[window]) * alpha


def paint_background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Textured wall and floor: image (H, W, 3) float in [0, 1], floor (H, W) bool."""
    horizon = height * rng.uniform(0.4, 0.75) + np.arange(width) * rng.normal(0, 0.04)
    rows = np.arange(height)[:, None]
    floor = rows >= horizon
    wall, ground = _texture(rng, height, width), _texture(rng, height, width)
    shade = 1 - 0.35 * np.exp(-np.abs(rows - horizon) / (height * 0.08))
    return np.where(floor[..., None], ground, wall) * shade[..., None].astype(np.float32), floor


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two related colours mixed by noise of three octaves, with stripes, checks or spots."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.06, 0.25)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = rng.choice(['plain', 'waves', 'stripes', 'spots', 'checks'])
    pattern = np.sin(along * (2 * np.pi / period)) if kind != 'plain' else 0 * x
    if kind in ('spots', 'checks'):
        pattern = pattern * np.sin(across * (2 * np.pi / period))
    if kind in ('stripes', 'checks'):
        pattern = np.sign(pattern)
    noise = np.zeros((height, width), dtype=np.float32)
    for cells, strength in ((3, 1.0), (9, 0.6), (32, 0.4)):
        grid = rng.normal(0, strength, (cells, cells * width // height)).astype(np.float32)
        noise += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    strength = rng.uniform(0.05, 0.3)
    mix = (0.5 + 0.18 * noise + strength * pattern).clip(0, 1)[..., None]
    hue, value = rng.random(), rng.uniform(0.3, 0.9)
    first = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.02, 0.4), value), dtype=np.float32)
    second = np.array(
        colorsys.hsv_to_rgb((hue + rng.normal(0, 0.1)) % 1, rng.uniform(0.02, 0.45), value * 0.6), dtype=np.float32
    )
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * 0.015
    return second + (first - second) * mix.astype(np.float32) + grain
