"""Predictions as pictures and as lines of JSON."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from pinas_zoo.mm.inference.pictures import draw_instances, draw_ranking, draw_segments
from pinas_zoo.mm.inference.predictors import Instances, Prediction, Predictor, Ranking, RunLengths

__all__ = ['describe', 'draw', 'line']


def draw(image: np.ndarray, prediction: Prediction, predictor: Predictor) -> Image.Image:
    """Draws a prediction on its BGR image."""
    pixels, classes, palette = image[..., ::-1], predictor.classes, predictor.palette
    if isinstance(prediction, Ranking):
        return draw_ranking(pixels, [classes[label] for label in prediction.labels], prediction.scores)
    if isinstance(prediction, Instances):
        found = (prediction.boxes, prediction.labels, prediction.masks, prediction.scores)
        return draw_instances(pixels, *found, classes, palette=palette)
    return draw_segments(pixels, prediction.labels, classes=classes, palette=palette)


def line(facts: dict[str, Any], size: tuple[int, int], prediction: Prediction, classes: Sequence[str]) -> str:
    """One line of `predictions.jsonl`.

    Args:
        facts: What the image is.
        size: Its height and width.
        prediction: The prediction.
        classes: Names by label.
    """
    record = {**facts, 'height': size[0], 'width': size[1], **describe(prediction, classes)}
    text = json.dumps(record, ensure_ascii=False)
    if not text.isprintable():  # such as the bytes of a file's name that are not UTF-8
        text = json.dumps(record)
    return text + '\n'


def describe(prediction: Prediction, classes: Sequence[str]) -> dict[str, Any]:
    """A prediction as plain values: `ranking`, `instances` or `segments`, masks in COCO's run-length form."""
    if isinstance(prediction, Ranking):
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        return {'ranking': [{'class': classes[label], 'label': label, 'score': round(s, 6)} for label, s in pairs]}
    if isinstance(prediction, Instances):
        rows = []
        for index, label in enumerate(prediction.labels.tolist()):
            box = [round(value, 2) for value in prediction.boxes[index].tolist()]
            row = {
                'class': classes[label],
                'label': label,
                'score': round(float(prediction.scores[index]), 6),
                'box': box,
            }
            rows.append(row if prediction.masks is None else {**row, 'mask': _coded(prediction.masks[index])})
        return {'instances': rows}
    return {'segments': _segments(prediction.labels, classes)}


def _segments(labels: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The classes of a label map; a large one is copied once, not for every class."""
    columns = np.asfortranarray(labels)  # as pycocotools codes masks
    strips = np.array_split(columns, -(-columns.shape[1] // 256), axis=1)  # counting takes 8 bytes per pixel
    pixels = np.sum([np.bincount(strip.ravel('F'), minlength=max(256, len(classes))) for strip in strips], axis=0)
    rows = []
    for label in np.flatnonzero(pixels).tolist():
        row = {'class': classes[label], 'label': label, 'share': round(int(pixels[label]) / labels.size, 6)}
        rows.append({**row, 'mask': _coded(columns == label)})
    return rows


def _coded(mask: np.ndarray | Tensor | RunLengths) -> dict[str, Any]:
    found = mask if isinstance(mask, dict) else coco_mask.encode(np.asfortranarray(np.asarray(mask, np.uint8)))
    return {'size': list(found['size']), 'counts': found['counts'].decode()}
