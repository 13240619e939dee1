"""Boxes of one image in operators that ONNX and torch.export have: limits, decoding, suppression, RoIAlign, masks.

The values are those of mmdet 3.3, whose own functions branch on sizes that are unknown until the file runs.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms, roi_align

__all__ = [
    'boxes_from_deltas',
    'boxes_from_distances',
    'first',
    'image_limits',
    'larger_than',
    'paste_masks',
    'pool_regions',
    'suppress',
]

#: mmdet's bound of the logarithm of a ratio of sides.
MAX_RATIO = abs(math.log(16 / 1000))


def first(x: Tensor, count: int) -> Tensor:
    """At most the first `count` rows, all if it is negative; a slice would need to know whether there are so many."""
    return x if count < 0 else x[torch.arange(x.shape[0], device=x.device) < count]


def image_limits(x: Tensor) -> Tensor:
    """(4,): width, height, width, height of images (N, C, H, W), in px."""
    height, width = x.shape[-2:]
    sides = [torch.scalar_tensor(side, dtype=x.dtype, device=x.device) for side in (width, height)]
    return torch.stack(sides * 2)


def _clip(boxes: Tensor, limits: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), limits)


def boxes_from_deltas(coder: Any, priors: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
    """Boxes from offsets relative to priors, as mmdet's DeltaXYWHBBoxCoder decodes them.

    Args:
        coder: mmdet's coder: its means and standard deviations.
        priors: (N, 4), x1 y1 x2 y2 in px.
        deltas: (N, 4).
        limits: As `image_limits` gives them.
    """
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    sides = priors[:, 2:] - priors[:, :2]
    centre = (priors[:, :2] + priors[:, 2:]) * 0.5 + sides * deltas[:, :2]
    half = sides * deltas[:, 2:].clamp(-MAX_RATIO, MAX_RATIO).exp() * 0.5
    return _clip(torch.cat((centre - half, centre + half), dim=1), limits)


def boxes_from_distances(points: Tensor, distances: Tensor, limits: Tensor) -> Tensor:
    """Boxes from points (N, 2) and their distances (N, 4) to the left, top, right and bottom side."""
    return _clip(torch.cat((points - distances[:, :2], points + distances[:, 2:]), dim=1), limits)


def larger_than(boxes: Tensor, side: float) -> Tensor:
    """(N,) bool: whether both sides are longer; all, if `side` is negative."""
    if side < 0:
        return torch.ones_like(boxes[:, 0], dtype=torch.bool)
    return ((boxes[:, 2:] - boxes[:, :2]) > side).all(dim=1)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int) -> Tensor:
    """Indices of at most `count` boxes, best first, after NMS within each group.

    Args:
        boxes: (N, 4).
        scores: (N,).
        groups: (N,) integers; boxes of different groups do not suppress each other.
        threshold: IoU above which the worse box is dropped.
        count: Number of boxes to keep.
    """
    reach = torch.cat((boxes.reshape(-1), boxes.new_zeros(1))).max() + 1
    # torchvision tells torch.export that at least two boxes are kept: two that nothing overlaps make it true.
    apart = boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    moved = torch.cat((boxes + (groups.to(boxes) * reach)[:, None], apart))
    kept = nms(moved, torch.cat((scores, scores.new_zeros(2))), threshold)
    return first(kept[kept < scores.shape[0]], count)


def pool_regions(extractor: Any, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign on the level of the pyramid that fits each box, as mmdet's SingleRoIExtractor.

    Args:
        extractor: mmdet's extractor: its layers and its finest scale.
        features: One (1, C, h, w) per level.
        boxes: (N, 4) in px.

    Returns:
        (N, C, h', w').
    """
    rois = torch.cat((torch.zeros_like(boxes[:, :1]), boxes), dim=1)
    scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    last = len(extractor.roi_layers) - 1
    level = torch.log2(scale / extractor.finest_scale + 1e-6).floor().clamp(0, last)
    order, pooled = [], []
    for index, layer in enumerate(extractor.roi_layers):
        members = (level == index).nonzero()[:, 0]
        order.append(members)
        pooled.append(
            roi_align(
                features[index],
                rois[members],
                layer.output_size,
                layer.spatial_scale,
                layer.sampling_ratio,
                layer.aligned,
            )
        )
    return torch.cat(pooled)[torch.cat(order).argsort()]


def paste_masks(masks: Tensor, boxes: Tensor, like: Tensor) -> Tensor:
    """Masks of boxes as masks of the image, by bilinear interpolation; zero outside of the boxes.

    The weights of the axes are separate, so two matrix products replace a sampling grid of the image's size per box.

    Args:
        masks: (N, s, s) probabilities.
        boxes: (N, 4) in px.
        like: Images (1, C, H, W) of the size of the result.

    Returns:
        (N, H, W) probabilities.
    """
    height, width = like.shape[-2:]
    rows = _pasting_weights(boxes[:, 1], boxes[:, 3], height, masks)
    columns = _pasting_weights(boxes[:, 0], boxes[:, 2], width, masks)
    return rows @ masks @ columns.transpose(1, 2)


def _pasting_weights(start: Tensor, end: Tensor, size: int, masks: Tensor) -> Tensor:
    """(N, size, s): weight of each cell of the mask in each pixel of an axis."""
    cells = masks.shape[-1]
    pixel = torch.arange(size, device=masks.device).to(masks) + 0.5
    side = (end - start).clamp(min=1e-6)[:, None]  # a box without area has no pixels
    place = (pixel - start[:, None]) / side * cells - 0.5
    return (1 - (place[..., None] - torch.arange(cells, device=masks.device).to(masks)).abs()).clamp(min=0)
