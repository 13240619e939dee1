"""Predictions drawn onto images: boxes with masks, and label maps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = ['draw_instances', 'draw_segments', 'predict', 'sheet']

#: Twelve colours that stay apart on any background, one a class, repeated for more classes.
PALETTE = [
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (170, 110, 40),
]  # fmt: skip


def _colour(label: int) -> tuple[int, int, int]:
    return PALETTE[label % len(PALETTE)]


def draw_instances(
    image: np.ndarray,
    boxes: Tensor,
    labels: Tensor,
    masks: Tensor | None,
    scores: Tensor | None,
    classes: Sequence[str],
    zoom: int = 3,
) -> Image.Image:
    """Draws boxes, masks and class names onto an enlarged image.

    Args:
        image: RGB, (H, W, 3), uint8.
        boxes: (N, 4) as x1 y1 x2 y2 in pixels.
        labels: (N,).
        masks: (N, H, W), bool; None without masks.
        scores: (N,) in 0..1; None without.
        classes: Names by label.
        zoom: Enlargement, so that small images stay legible.
    """
    pixels = image.astype(np.float32)
    for mask, label in zip([] if masks is None else masks.numpy(), labels.tolist(), strict=masks is not None):
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(_colour(label), dtype=np.float32)
    picture = Image.fromarray(pixels.astype(np.uint8))
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for index, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        x1, y1, x2, y2 = (zoom * value for value in box)
        pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=_colour(label), width=2)
        text = classes[label] + ('' if scores is None else f' {scores[index]:.2f}')
        left, top, right, bottom = pen.textbbox((x1 + 3, max(y1 - 12, 0)), text)
        pen.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=(0, 0, 0))
        pen.text((x1 + 3, max(y1 - 12, 0)), text, fill=_colour(label))
    return picture


def draw_segments(image: np.ndarray, labels: np.ndarray, zoom: int = 3, opacity: float = 0.6) -> Image.Image:
    """Blends a label map (H, W) over an RGB image (H, W, 3); label 255 stays as it is."""
    colours = np.array([_colour(label) for label in range(256)], dtype=np.float32)[labels]
    blended = (1 - opacity) * image + opacity * colours
    blended[labels == 255] = image[labels == 255]
    picture = Image.fromarray(blended.astype(np.uint8))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def sheet(rows: Sequence[Sequence[Image.Image]], gap: int = 6) -> bytes:
    """Lays pictures of one size out in rows; returns a PNG."""
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
        checkpoint: Its weights.
        indices: Which images.

    Returns:
        Pairs of the RGB image (H, W, 3) and the data sample with ground truth and prediction.
    """
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if cfg.model.backbone.get('init_cfg'):
        cfg.model.backbone.init_cfg = None  # the checkpoint has the weights
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, str(checkpoint), map_location='cpu')
    results = []
    for index in indices:
        batch = pseudo_collate([dataset[index]])
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        image = batch['inputs'][0].permute(1, 2, 0).flip(-1).numpy()  # mmcv reads BGR
        results.append((image, sample))
    return results
