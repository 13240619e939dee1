"""mmcv's operators from their definitions, element by element; and a compiled mmcv where one is found."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo import mmcv_ext


def compiled_operators() -> tuple[ModuleType | None, str]:
    """The compiled `mmcv._ext` of this environment, or of the file that PINAS_MMCV_EXT names; and why there is none."""
    given, folder = os.environ.get('PINAS_MMCV_EXT'), mmcv_ext.mmcv_folder()
    file = Path(given) if given else folder and mmcv_ext.compiled(folder)
    if not file:
        return None, 'no compiled mmcv here (bash tools/setup_env.sh --mmcv-ops, or PINAS_MMCV_EXT=its _ext*.so)'
    spec = importlib.util.spec_from_file_location('_ext', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ''


def iou(a: Tensor, b: Tensor, offset: int) -> float:
    """In the type of the boxes, one rounding after each operation."""
    shared = 1
    for low, high in ((0, 2), (1, 3)):
        shared = shared * (torch.minimum(a[high], b[high]) - torch.maximum(a[low], b[low]) + offset).clamp(min=0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return (shared / union).item() if union else 0.0


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> list[int]:
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    kept: list[int] = []
    for index in scores.sort(descending=True).indices.tolist():
        if all(not iou(boxes[better], boxes[index], offset) > threshold for better in kept):
            kept.append(index)
    return kept


def softnms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int, offset: int
) -> tuple[list[list[float]], list[int]]:
    """Rows of box and score, and indices, in the order in which they are taken; no two scores may be equal."""
    left = {index: score.item() for index, score in enumerate(scores)}
    rows, taken = [], []
    while left:
        best = max(left, key=left.get)
        rows.append([*boxes[best].tolist(), left.pop(best)])
        taken.append(best)
        for index in list(left):
            overlap = iou(boxes[best], boxes[index], offset)
            if method == 2:
                left[index] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= iou_threshold:
                left[index] *= 0 if method == 0 else 1 - overlap
            if left[index] < min_score:
                del left[index]
    return rows, taken


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """(C,) of an image (C, H, W); nothing beyond a pixel outside, the border's values up to there."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(len(image))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[:, top, left] * (1 - x + left) + image[:, top, right] * (x - left)
    lower = image[:, bottom, left] * (1 - x + left) + image[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def roi_align(
    features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """(K, C, h, w), differentiable."""
    pooled = []
    for roi in rois.tolist():
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0) for value in roi[1:])
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        bin_h, bin_w = height / size[0], width / size[1]
        rows, columns = (sampling_ratio or math.ceil(side) for side in (bin_h, bin_w))
        for row in range(size[0]):
            for column in range(size[1]):
                values = [
                    bilinear(
                        features[int(roi[0])],
                        y1 + (row + (i + 0.5) / rows) * bin_h,
                        x1 + (column + (j + 0.5) / columns) * bin_w,
                    )
                    for i in range(rows)
                    for j in range(columns)
                ]
                pooled.append(sum(values) / len(values) if values else features.new_zeros(features.shape[1]))
    if not pooled:
        return features.new_zeros(0, features.shape[1], *size)
    return torch.stack(pooled).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def sigmoid_focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None) -> Tensor:
    """(N, C), by log-sigmoids, differentiable."""
    yes = F.one_hot(target.clamp(0, logits.shape[1]), logits.shape[1] + 1)[:, :-1].bool() & (target >= 0)[:, None]
    positive = -alpha * torch.sigmoid(-logits) ** gamma * F.logsigmoid(logits)
    negative = -(1 - alpha) * torch.sigmoid(logits) ** gamma * F.logsigmoid(-logits)
    factors = [1 if weight is None or not 0 <= t < len(weight) else weight[t].item() for t in target.tolist()]
    return torch.where(yes, positive, negative) * logits.new_tensor(factors)[:, None]


def softmax_focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None) -> Tensor:
    """(N,), by log-softmax, differentiable; a negative target is ignored."""
    losses = []
    for row, label in zip(logits.log_softmax(1), target.tolist()):
        loss = -alpha * (1 - row[label].exp()) ** gamma * row[label] * (1 if weight is None else weight[label])
        losses.append(loss if label >= 0 else 0 * loss)
    return torch.stack(losses) if losses else logits.sum(dim=1)
