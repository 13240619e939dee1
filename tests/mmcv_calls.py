"""Calls of mmcv's compiled interface as mmcv makes them, and inputs with ties, bad boxes, or no boxes."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor


def boxes_and_scores(kind: str, dtype: torch.dtype = torch.float32, count: int = 64) -> tuple[Tensor, Tensor]:
    """`random`, `ties` (whole coordinates, equal boxes and scores, IoU at thresholds), `degenerate` or `empty`."""
    draw = torch.Generator().manual_seed(1)
    if kind == 'empty':
        return torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype)
    corner = torch.rand(count, 2, generator=draw) * 80
    boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2, generator=draw) * 40), dim=1)
    scores = torch.rand(count, generator=draw)
    if kind == 'ties':
        boxes, scores = boxes.round(), (scores * 8).round() / 8
        boxes[::7] = boxes[3]
        boxes[:4] = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 5], [0, 0, 6, 10]])  # IoU 0.6, 0.5
        scores[:4] = 1
    elif kind == 'degenerate':
        boxes[::3, 2:] = boxes[::3, :2]
        boxes[1::3, 2:] = boxes[1::3, :2] - 3
    return boxes.to(dtype), scores.to(dtype)


def rois(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """For two images of 44 x 36 pixels: `random`, `edges` (outside, whole, without area) or `empty`."""
    draw = torch.Generator().manual_seed(2)
    if kind == 'empty':
        return torch.zeros(0, 5, dtype=dtype)
    if kind == 'edges':
        table = [
            [0, -8.6, -8.3, 5, 5],
            [1, 0, 0, 36, 44],
            [1, 30, 40, 70, 90],
            [0, 7, 7, 7, 7],
            [0, 3, 4, 3, 20],
            [1, 90, 90, 99, 99],
        ]
        return torch.tensor(table, dtype=dtype)
    corner = torch.rand(12, 2, generator=draw) * 30 - 4
    size = 1 + torch.rand(12, 2, generator=draw) * 25
    index = (torch.arange(12) % 2)[:, None].float()
    return torch.cat((index, corner, corner + size), dim=1).to(dtype)


def logits_and_targets(classes: int, dtype: torch.dtype = torch.float32, rows: int = 40) -> tuple[Tensor, Tensor]:
    """Logits of either size; targets with the background's, which is the number of classes."""
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, classes, generator=draw) * 3
    return logits.to(dtype), torch.randint(0, classes + 1, (rows,), generator=draw)


def softnms(
    operators: ModuleType, boxes: Tensor, scores: Tensor, threshold: float, method: int, offset: int
) -> tuple[Tensor, Tensor]:
    dets = boxes.new_empty(len(boxes), 5)
    kept = operators.softnms(
        boxes, scores, dets, iou_threshold=threshold, sigma=0.5, min_score=0.05, method=method, offset=offset
    )
    return dets[: len(kept)], kept


def roi_align(
    operators: ModuleType,
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    scale: float,
    ratio: int,
    aligned: bool,
    pool_mode: int = 1,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The pooled features, and the function from their gradient to that of the features."""
    settings = dict(aligned_height=size[0], aligned_width=size[1], spatial_scale=scale, sampling_ratio=ratio)
    settings |= dict(pool_mode=pool_mode, aligned=aligned)
    output = features.new_zeros(len(rois), features.shape[1], *size)
    nothing = features.new_zeros(0)
    operators.roi_align_forward(features, rois, output, nothing, nothing, **settings)

    def backward(grad: Tensor) -> Tensor:
        grad_input = grad.new_zeros(features.shape)
        operators.roi_align_backward(grad.contiguous(), rois, nothing, nothing, grad_input, **settings)
        return grad_input

    return output, backward


def sigmoid_focal_loss(
    operators: ModuleType, logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses and gradients of their sum."""
    weight = logits.new_empty(0) if weight is None else weight
    output, grad = torch.zeros_like(logits), torch.zeros_like(logits)
    operators.sigmoid_focal_loss_forward(logits, target, weight, output, gamma=gamma, alpha=alpha)
    operators.sigmoid_focal_loss_backward(logits, target, weight, grad, gamma=gamma, alpha=alpha)
    return output, grad


def softmax_focal_loss(
    operators: ModuleType, logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Losses and gradients of their sum."""
    weight = logits.new_empty(0) if weight is None else weight
    probabilities = logits.softmax(dim=1)
    output, buffer, grad = logits.new_zeros(len(logits)), logits.new_zeros(len(logits)), torch.zeros_like(logits)
    operators.softmax_focal_loss_forward(probabilities, target, weight, output, gamma=gamma, alpha=alpha)
    operators.softmax_focal_loss_backward(probabilities, target, weight, buffer, grad, gamma=gamma, alpha=alpha)
    return output, grad
