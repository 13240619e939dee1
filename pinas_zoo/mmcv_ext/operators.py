"""The functions of `mmcv._ext` that mmcv's Python operators call, over torch and torchvision, on any of their devices.

Signatures are those of mmcv 2.1.0's compiled module: results are written into tensors of the caller. Operators that are
missing here raise when they are called and name the command that builds mmcv. Half types are computed in float32.
Nothing waits for the device, except for the number of boxes that `nms` keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch
import torchvision
from torch import Tensor

from pinas_zoo.mmcv_ext.focal import (
    real,
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)

__all__ = [
    'get_compiler_version',
    'get_compiling_cuda_version',
    'nms',
    'roi_align_backward',
    'roi_align_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]


def _single(value: float) -> float:
    """`value` as the C++ float of mmcv, so that an IoU equal to a threshold of 0.6 is equal here too."""
    return float(np.float32(value))


# ---- suppression -----------------------------------------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that are kept, best score first.

    Args:
        boxes: (N, 4), x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: A box is dropped if its overlap with a better box that is kept is greater.
        offset: 0, or 1 if x2 and y2 are the last pixels inside.
    """
    order = scores.sort(descending=True).indices  # mmcv's order of equal scores; torchvision's differs
    boxes = real(boxes[order])
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    ranks = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    return order[torch.ops.torchvision.nms(boxes, ranks, _single(iou_threshold))]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft NMS: the best box lowers the scores of those that it overlaps, then the next best is taken.

    mmcv calls it with tensors on the CPU, whatever its own input. The remaining boxes and scores are moved as in mmcv,
    since that decides between equal scores.

    Args:
        boxes: (N, 4), x1, y1, x2, y2.
        scores: (N,).
        dets: (N, 5), written: boxes and lowered scores, in the order of the result.
        iou_threshold: Overlap from which scores are lowered (methods 0 and 1).
        sigma: Sigma of the Gaussian (method 2).
        min_score: A box whose lowered score is smaller is dropped.
        method: 0 drops, 1 is linear in the overlap, 2 Gaussian.
        offset: As in `nms`.

    Returns:
        (M,) indices of the boxes that were not dropped.
    """
    threshold = _single(iou_threshold)
    table = torch.cat((real(boxes), real(scores)[:, None]), dim=1)
    indices = torch.arange(len(table))
    first = 0
    while first < len(table):
        best = first + int(table[first:, 4].argmax())
        swap = [best, first]
        table[[first, best]], indices[[first, best]] = table[swap], indices[swap]
        rest = table[first + 1 :]
        overlap = _overlap(table[first], rest, offset)
        if method == 2:
            weight = torch.exp(-(overlap * overlap) / sigma)
        else:
            weight = torch.where(overlap >= threshold, 0 if method == 0 else 1 - overlap, 1)
        rest[:, 4] *= weight
        order = _close_gaps(~(rest[:, 4] < _single(min_score)))
        table = torch.cat((table[: first + 1], rest[order]))
        indices = torch.cat((indices[: first + 1], indices[first + 1 :][order]))
        first += 1
    dets[: len(table)] = table
    return indices


def _overlap(box: Tensor, others: Tensor, offset: int) -> Tensor:
    """IoU of one box with others (N, 4 or more), in mmcv's order of operations; 0 for two boxes without area."""
    top, bottom = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:4], others[:, 2:4])
    shared = (bottom - top + offset).clamp(min=0).prod(dim=1)
    area, areas = (box[2:4] - box[:2] + offset).prod(), (others[:, 2:4] - others[:, :2] + offset).prod(dim=1)
    overlap = shared / (area + areas - shared)
    return torch.where(overlap.isnan(), 0, overlap)


def _close_gaps(keep: Tensor) -> Tensor:
    """Positions after each dropped one was filled, from the first on, with the last that is kept."""
    order = torch.arange(len(keep))
    count = int(keep.sum())
    order[:count][~keep[:count]] = order[count:][keep[count:]].flip(0)
    return order[:count]


# ---- RoIAlign --------------------------------------------------------------------------------------------------------


def _averages(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(_missing("roi_align with pool_mode='max'"))


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign with average pooling.

    Args:
        input: (B, C, H, W).
        rois: (K, 5), index in the batch, x1, y1, x2, y2.
        output: (K, C, aligned_height, aligned_width), written.
        argmax_y: For max pooling, not used.
        argmax_x: For max pooling, not used.
        aligned_height: Number of bins.
        aligned_width: Number of bins.
        spatial_scale: From the RoIs' coordinates to the input's.
        sampling_ratio: Samples per bin and axis; 0 for as many as the bin has pixels.
        pool_mode: 1, average pooling.
        aligned: Whether pixel centres are at halves.

    Raises:
        NotImplementedError: Max pooling was requested (`pool_mode` 0).
    """
    _averages(pool_mode)
    features = real(input)
    pooled = torch.ops.torchvision.roi_align(
        features,
        rois.to(features.dtype),
        _single(spatial_scale),
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward`, written into `grad_input`; arguments as there."""
    _averages(pool_mode)
    grad = real(grad_output)
    if torch.are_deterministic_algorithms_enabled():
        grad = grad.cpu()  # torchvision has no deterministic kernel for a GPU and would refuse
    gradient = torch.ops.torchvision._roi_align_backward(
        grad,
        rois.to(grad),
        _single(spatial_scale),
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(gradient)


# ---- the rest --------------------------------------------------------------------------------------------------------


def get_compiler_version() -> str:
    """For mmcv's report of the environment."""
    return f'none: operators of pinas_zoo over torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    """For mmcv's report of the environment."""
    return f'none: operators of pinas_zoo over torchvision, CUDA {torch.version.cuda or "not built in"}'


def _missing(what: str) -> str:
    from pinas_zoo.mmcv_ext import BUILD

    return (
        f'mmcv operator {what} is not available: this mmcv has no compiled operators, and pinas_zoo replaces only nms, '
        f'soft_nms, roi_align (averages) and the focal losses. Build mmcv with its operators: {BUILD}'
    )


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """An operator that is missing here: mmcv looks all of them up at import, so it exists and raises when called."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def operator(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(_missing(name))

    operator.__name__ = operator.__qualname__ = name
    return operator
