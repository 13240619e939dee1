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

TINY = torch.finfo(torch.float32).tiny  # the smallest value that mmcv's kernels take logarithms of, whatever the type


def _real(tensor: Tensor) -> Tensor:
    """float64 unchanged, everything else in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


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
    boxes = _real(boxes[order])
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
    table = torch.cat((_real(boxes), _real(scores)[:, None]), dim=1)
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
    """RoIAlign by averages.

    Args:
        input: (B, C, H, W).
        rois: (K, 5), index in the batch, x1, y1, x2, y2.
        output: (K, C, aligned_height, aligned_width), written.
        argmax_y: For pooling by maximum, not used.
        argmax_x: For pooling by maximum, not used.
        aligned_height: Number of bins.
        aligned_width: Number of bins.
        spatial_scale: From the RoIs' coordinates to the input's.
        sampling_ratio: Samples per bin and axis; 0 for as many as the bin has pixels.
        pool_mode: 1, averages.
        aligned: Whether pixel centres are at halves.

    Raises:
        NotImplementedError: Pooling by maximum was requested (`pool_mode` 0).
    """
    _averages(pool_mode)
    features = _real(input)
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
    grad = _real(grad_output)
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


# ---- focal losses ----------------------------------------------------------------------------------------------------
# The formulas are those of mmcv's CUDA kernels, floor of the logarithm and all, so that values agree where float32 is
# coarse. mmcv has no CPU kernels for them.


def _class_weights(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """(N, 1): the weight of each target's class; 1 if there are none, and for a target that is not a class."""
    if weight.numel() == 0:
        return like.new_ones(())
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, weight[target.clamp(0, len(weight) - 1)].to(like), 1)[:, None]


def _is_class(target: Tensor, classes: int) -> Tensor:
    """(N, classes): where the class is the target."""
    return target[:, None] == torch.arange(classes, device=target.device)


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=TINY).log()


def _right_and_wrong(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the class is the target; probabilities of a right and of a wrong answer for the target."""
    p = 1 / (1 + torch.exp(-logits))
    is_class = _is_class(target, logits.shape[1])
    return is_class, torch.where(is_class, p, 1 - p), torch.where(is_class, 1 - p, p)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Sigmoid focal loss of each logit.

    Args:
        input: (N, C) logits.
        target: (N,) classes; the number of classes, or -1, means none of them.
        weight: (C,) per class, or empty.
        output: (N, C), written.
        gamma: Exponent of the modulating factor.
        alpha: Weight of positives, 1 - alpha that of negatives.
    """
    logits = _real(input)
    is_class, right, wrong = _right_and_wrong(logits, target)
    term = wrong.pow(gamma) * _log(right)
    loss = torch.where(is_class, -alpha * term, (alpha - 1) * term)
    output.copy_(loss * _class_weights(weight, target, logits))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of `sigmoid_focal_loss_forward` by the logits, written into `grad_input`; arguments as there."""
    logits = _real(input)
    is_class, right, wrong = _right_and_wrong(logits, target)
    term = wrong.pow(gamma) * (wrong - gamma * right * _log(right))
    gradient = torch.where(is_class, -alpha * term, (1 - alpha) * term)
    grad_input.copy_(gradient * _class_weights(weight, target, logits))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Softmax focal loss of each row.

    Args:
        input: (N, C) probabilities; mmcv has already applied the softmax.
        target: (N,) classes; negative ones are ignored.
        weight: (C,) per class, or empty.
        output: (N,), written.
        gamma: Exponent of the modulating factor.
        alpha: Weight of all.
    """
    probabilities = _real(input)
    label = target.clamp(min=0)[:, None]
    p = probabilities.gather(1, label)
    loss = -alpha * (1 - p).pow(gamma) * _log(p) * _class_weights(weight, target, p)
    output.copy_(torch.where(target[:, None] >= 0, loss, 0)[:, 0])


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of `softmax_focal_loss_forward` by the logits behind the probabilities.

    Args:
        input: As in the forward pass.
        target: As in the forward pass.
        weight: As in the forward pass.
        buff: (N,), written: the factor that a row's gradients share.
        grad_input: (N, C), written.
        gamma: As in the forward pass.
        alpha: As in the forward pass.
    """
    probabilities = _real(input)
    label = target.clamp(min=0)[:, None]
    p = probabilities.gather(1, label)
    rest = (1 - p).clamp(min=TINY)  # a negative power of 0 would be infinite, and its product with log(1) not a number
    factor = alpha * (gamma * rest.pow(gamma - 1) * p * _log(p) - (1 - p).pow(gamma))
    factor = torch.where(target[:, None] >= 0, factor * _class_weights(weight, target, p), 0)
    buff.copy_(factor[:, 0])
    grad_input.copy_(factor * (_is_class(target, input.shape[1]).to(p) - probabilities))


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
