"""Predictions drawn on images: boxes with masks, label maps, and classes with their scores."""

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from torch import Tensor

from pinas_zoo.mm.inference.networks import load_network
from pinas_zoo.mm.inference.predictors import RunLengths

__all__ = ['draw_instances', 'draw_ranking', 'draw_segments', 'predict', 'sheet']

Colour = tuple[int, int, int]
#: Twelve colours that are distinct on any background, one per class.
PALETTE: list[Colour] = [
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (170, 110, 40),
]  # fmt: skip
#: Pictures are enlarged by an integer factor to about this long side, so that names are legible on small images.
LEGIBLE = 384


def _colour(label: int, palette: Sequence[Sequence[int]] | None = None) -> Colour:
    """The palette's colour of a class, else one of `PALETTE`, else one at the golden angle on the colour circle."""
    if palette is not None and label < len(palette):
        red, green, blue = palette[label]
        return int(red), int(green), int(blue)
    if label < len(PALETTE):
        return PALETTE[label]
    r, g, b = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.55 + 0.4 * (label % 2), 0.95 - 0.3 * (label % 3 == 0))
    return round(255 * r), round(255 * g), round(255 * b)


def _zoom(image: np.ndarray) -> int:
    return max(1, round(LEGIBLE / max(image.shape[:2])))


def _enlarge(pixels: np.ndarray, zoom: int) -> Image.Image:
    picture = Image.fromarray(pixels.astype(np.uint8))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _font(picture: Image.Image) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(min(28, max(12, max(picture.size) // 40)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # as it is where a size is given
    return font


def _write(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, colour: Colour, font: Any, anchor: str = 'ls'
) -> None:
    """A name on a box in its class's colour, in black or white for contrast; kept inside the picture."""
    width, height = pen.im.size
    left, top, right, bottom = pen.textbbox((x, y), text, font=font, anchor=anchor)
    dx = max(0, 2 - left) - max(0, right + 2 - width)
    dy = max(0, 2 - top) - max(0, bottom + 2 - height)
    pen.rectangle((left - 2 + dx, top - 2 + dy, right + 2 + dx, bottom + 2 + dy), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.text((x + dx, y + dy), text, fill='black' if bright else 'white', font=font, anchor=anchor)


def draw_instances(
    image: np.ndarray,
    boxes: Tensor,
    labels: Tensor,
    masks: Tensor | Sequence[RunLengths] | None,
    scores: Tensor | None,
    classes: Sequence[str],
    zoom: int | None = None,
    palette: Sequence[Sequence[int]] | None = None,
) -> Image.Image:
    """Draws boxes, masks and class names; the best scores come last, so that they are on top.

    Args:
        image: RGB, (H, W, 3), uint8.
        boxes: (N, 4) as x1 y1 x2 y2 in pixels.
        labels: (N,).
        masks: (N, H, W), bool, or N run lengths as COCO codes them; None without masks.
        scores: (N,) in 0..1; None without.
        classes: Names by label.
        zoom: Enlargement; None makes small images legible.
        palette: RGB by label; None for the default colours.
    """
    zoom = zoom or _zoom(image)
    order = range(len(labels)) if scores is None else scores.argsort().tolist()
    colours = [_colour(label, palette) for label in labels.tolist()]
    pixels = image.astype(np.float32)
    if masks is not None:
        for index in order:
            mask = masks[index]
            here = mask.numpy() if isinstance(mask, Tensor) else coco_mask.decode(mask).astype(bool)
            pixels[here] = 0.5 * pixels[here] + 0.5 * np.array(colours[index], dtype=np.float32)
    picture = _enlarge(pixels, zoom)
    pen, font = ImageDraw.Draw(picture), _font(picture)
    for index in order:
        x1, y1, x2, y2 = (zoom * value for value in boxes[index].tolist())
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colours[index], width=max(2, int(font.size // 7)))
    for index in order:
        x1, y1, *_ = (zoom * value for value in boxes[index].tolist())
        text = classes[int(labels[index])] + ('' if scores is None else f' {scores[index]:.2f}')
        _write(pen, x1 + 2, y1 - 3, text, colours[index], font)
    return picture


def draw_segments(
    image: np.ndarray,
    labels: np.ndarray,
    zoom: int | None = None,
    opacity: float = 0.6,
    classes: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
) -> Image.Image:
    """Blends a label map over an image, and writes each class's name where it is widest.

    Args:
        image: RGB, (H, W, 3), uint8.
        labels: (H, W); 255 is not drawn.
        zoom: Enlargement; None makes small images legible.
        opacity: Share of the class colour.
        classes: Names by label; None writes none.
        palette: RGB by label; None for the default colours.
    """
    zoom = zoom or _zoom(image)
    present = [int(label) for label in np.unique(labels) if label != 255]
    pixels = image.astype(np.float32)
    for label in present:
        here = labels == label
        pixels[here] = (1 - opacity) * pixels[here] + opacity * np.array(_colour(label, palette), dtype=np.float32)
    picture = _enlarge(pixels, zoom)
    if classes is not None:
        pen, font = ImageDraw.Draw(picture), _font(picture)
        for label in present:
            # A border of another class, so that the middle of a region that touches the edge is inside it too.
            here = np.pad((labels == label).astype(np.uint8), 1)
            depth = cv2.distanceTransform(here, cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            if zoom * depth[y, x] >= font.size / 2:  # a name would hide a smaller region
                _write(pen, zoom * (x + 0.5), zoom * (y + 0.5), classes[label], _colour(label, palette), font, 'mm')
    return picture


def draw_ranking(image: np.ndarray, names: Sequence[str], scores: Sequence[float]) -> Image.Image:
    """Writes classes with their scores and bars below the image; equal images with equal counts give equal sizes.

    Args:
        image: RGB, (H, W, 3), uint8.
        names: Best first.
        scores: Their probabilities, 0..1.
    """
    picture = _enlarge(image, _zoom(image))
    font = _font(picture)
    line = round(1.5 * font.size)
    page = Image.new('RGB', (picture.width, picture.height + line * len(names) + line // 2), 'white')
    page.paste(picture)
    pen, across = ImageDraw.Draw(page), picture.width
    for row, (name, score) in enumerate(zip(names, scores, strict=True)):
        middle = picture.height + line // 4 + line * (row + 0.5)
        value = f'{100 * score:.1f} %'
        pen.rectangle((0, middle - line * 0.42, score * across, middle + line * 0.42), fill=(176, 208, 242))
        room = across - 3 * font.size - pen.textlength(value, font=font)
        while pen.textlength(name, font=font) > room and len(name) > 2:
            name = name[:-2].rstrip() + '…'
        pen.text((font.size // 2, middle), name, fill='black', font=font, anchor='lm')
        pen.text((across - font.size // 2, middle), value, fill='black', font=font, anchor='rm')
    return page


def sheet(rows: Sequence[Sequence[Image.Image]]) -> bytes:
    """Arranges pictures of one size in rows; returns a PNG."""
    gap = 6
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    page = Image.new('RGB', (columns * (width + gap) - gap, len(rows) * (height + gap) - gap), 'white')
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            page.paste(picture, (x * (width + gap), y * (height + gap)))
    stream = io.BytesIO()
    page.save(stream, 'PNG', optimize=True)
    return stream.getvalue()


def predict(cfg: Config, checkpoint: str | Path, indices: Sequence[int]) -> list[tuple[np.ndarray, Any]]:
    """Runs a detector or segmentor on images of its test set.

    Args:
        cfg: mmdet or mmseg config.
        checkpoint: Its weights; they have to fit.
        indices: Indices of the images.

    Returns:
        Pairs of the RGB image (H, W, 3) and the data sample with ground truth and prediction.
    """
    model, _ = load_network(cfg, checkpoint, 'cpu')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    results = []
    for index in indices:
        batch = pseudo_collate([dataset[index]])
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        image = batch['inputs'][0].permute(1, 2, 0).flip(-1).numpy()  # mmcv reads BGR
        results.append((image, sample))
    return results
