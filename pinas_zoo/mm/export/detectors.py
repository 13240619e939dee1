"""mmdet's detectors as networks from one image to boxes, scores, labels and masks, for export.

The networks call the model's own backbone, neck and heads; what mmdet does between and after them is restated with the
operators of `boxes`. Input and output are in px of the image as it enters the network; padding is part of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pinas_zoo.mm.export.boxes import (
    boxes_from_deltas,
    boxes_from_distances,
    first,
    image_limits,
    larger_than,
    paste_masks,
    pool_regions,
    suppress,
)

__all__ = ['OneStage', 'TwoStage', 'detector', 'with_frozen_norms']

#: Parts by the mmdet class that the networks below restate; other classes may differ in ways that nobody compared.
KNOWN = {
    'model': ('RetinaNet', 'FCOS', 'FasterRCNN', 'MaskRCNN', 'CascadeRCNN'),
    'dense head': ('RetinaHead', 'FCOSHead', 'RPNHead'),
    'region head': ('StandardRoIHead', 'CascadeRoIHead'),
    'box coder': ('DeltaXYWHBBoxCoder', 'DistancePointBBoxCoder'),
    'region extractor': ('SingleRoIExtractor',),
}


def detector(model: BaseModel) -> OneStage | TwoStage:
    """A detector of mmdet as a network that exports.

    Args:
        model: RetinaNet, FCOS, Faster, Mask or Cascade R-CNN.

    Raises:
        ValueError: A part of the model is of a kind that is not restated here.
    """
    _known('model', model)
    model = model.eval()
    return TwoStage(model) if hasattr(model, 'roi_head') else OneStage(model)


def _known(kind: str, part: Any) -> None:
    name = type(part).__name__
    if name not in KNOWN[kind]:
        raise ValueError(f'{kind} {name} cannot be exported; known are {", ".join(KNOWN[kind])}')


def _known_coder(coder: Any) -> None:
    _known('box coder', coder)
    if not coder.clip_border or getattr(coder, 'add_ctr_clamp', False):
        raise ValueError(f'{type(coder).__name__} can be exported only with clip_border=True and add_ctr_clamp=False')


def _known_nms(settings: Any) -> float:
    """The IoU threshold of a config's NMS."""
    if settings.get('type', 'nms') != 'nms' or settings.get('class_agnostic', False):
        raise ValueError(f'only class-wise NMS can be exported, the config has {dict(settings)}')
    return float(settings['iou_threshold'])


def _rows(maps: Tensor, columns: int) -> Tensor:
    """(1, A columns, h, w) -> (h w A, columns)"""
    return maps[0].permute(1, 2, 0).reshape(-1, columns)


class Detector(nn.Module):
    """What all detectors share: padding, features, and the priors of a dense head.

    Args:
        model: mmdet's model in eval mode.

    Raises:
        ValueError: A part of the model is of a kind that is not restated here.
    """

    #: Names of the outputs, each with its dynamic axes.
    outputs: dict[str, dict[int, str]] = {'boxes': {0: 'objects'}, 'scores': {0: 'objects'}, 'labels': {0: 'objects'}}

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model, self.divisor = model, int(model.data_preprocessor.pad_size_divisor)

    def features(self, x: Tensor) -> Sequence[Tensor]:
        """The neck's features of an image that is padded with zeros to the right and bottom."""
        height, width = x.shape[-2:]
        return self.model.extract_feat(F.pad(x, (0, -width % self.divisor, 0, -height % self.divisor)))

    def priors(self, head: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        """Anchors or points of each level."""
        sizes = [each.shape[-2:] for each in maps]
        return head.prior_generator.grid_priors(sizes, dtype=maps[0].dtype, device=maps[0].device)


class OneStage(Detector):
    """RetinaNet or FCOS: the scores of each level above a threshold, their boxes, NMS.

    Shape:
        (1, 3, H, W), normalised -> boxes (n, 4), x1 y1 x2 y2 in px; scores (n,), best first; labels (n,)
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__(model)
        _known('dense head', model.bbox_head)
        _known_coder(model.bbox_head.bbox_coder)
        self.settings, self.threshold = model.bbox_head.test_cfg, _known_nms(model.bbox_head.test_cfg.nms)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head, limits = self.model.bbox_head, image_limits(x)
        maps = head(self.features(x))
        factors = maps[2] if len(maps) == 3 else [None] * len(maps[0])
        rows = zip(maps[0], maps[1], factors, self.priors(head, maps[0]), strict=True)
        levels = [self.level(*row, limits) for row in rows]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
        kept = suppress(boxes, scores, labels, self.threshold, self.settings.max_per_img)
        return boxes[kept], scores[kept], labels[kept]

    def level(
        self, classes: Tensor, offsets: Tensor, factor: Tensor | None, priors: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the best candidates of one level."""
        head = self.model.bbox_head
        logits = _rows(classes, head.cls_out_channels)
        chances = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(dim=-1)[:, :-1]
        place, label = (chances > self.settings.get('score_thr', 0)).nonzero().unbind(dim=1)
        best = first(chances[place, label].argsort(descending=True), self.settings.get('nms_pre', -1))
        place, label = place[best], label[best]
        decode = boxes_from_distances if factor is not None else self.from_deltas
        boxes, scores = decode(priors[place], _rows(offsets, 4)[place], limits), chances[place, label]
        if factor is not None:
            scores = scores * _rows(factor, 1)[:, 0].sigmoid()[place]
        fits = larger_than(boxes, self.settings.get('min_bbox_size', -1))
        return boxes[fits], scores[fits], label[fits]

    def from_deltas(self, priors: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
        """Boxes of anchors and their offsets."""
        return boxes_from_deltas(self.model.bbox_head.bbox_coder, priors, deltas, limits)


class TwoStage(Detector):
    """Faster, Mask or Cascade R-CNN: proposals, RoIAlign, box heads, NMS, and masks if there is a mask head.

    Shape:
        (1, 3, H, W), normalised -> boxes (n, 4), x1 y1 x2 y2 in px; scores (n,), best first; labels (n,); with a mask
        head also masks (n, H, W), bool
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__(model)
        roi = model.roi_head
        _known('dense head', model.rpn_head)
        _known('region head', roi)
        if roi.with_shared_head:
            raise ValueError('region heads with a shared head cannot be exported')
        self.heads, self.extractors = _stages(roi.bbox_head), _stages(roi.bbox_roi_extractor)
        self.mask_heads = _stages(roi.mask_head) if roi.with_mask else []
        self.mask_extractors = _stages(roi.mask_roi_extractor) if roi.with_mask else []
        for coder in (model.rpn_head.bbox_coder, *(head.bbox_coder for head in self.heads)):
            _known_coder(coder)
        for extractor in (*self.extractors, *self.mask_extractors):
            _known('region extractor', extractor)
        self.threshold = _known_nms(roi.test_cfg.nms)
        self.proposal_threshold = _known_nms(model.rpn_head.test_cfg.nms)
        if self.mask_heads:
            self.outputs = {**self.outputs, 'masks': {0: 'objects', 1: 'height', 2: 'width'}}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features, limits = self.features(x), image_limits(x)
        rois = self.proposals(features, limits)
        stages: list[Tensor] = []
        for index, (head, extractor) in enumerate(zip(self.heads, self.extractors, strict=True)):
            logits, deltas = head(pool_regions(extractor, features, rois))
            stages.append(logits)
            if index < len(self.heads) - 1:
                rois = self.of_class(head, rois, deltas, logits[:, :-1].argmax(dim=1), limits)
        chances = (sum(stages[1:], stages[0]) / len(stages)).softmax(dim=-1)[:, :-1]
        settings = self.model.roi_head.test_cfg
        place, label = (chances > settings.score_thr).nonzero().unbind(dim=1)
        boxes = self.of_class(self.heads[-1], rois[place], deltas[place], label, limits)
        scores = chances[place, label]
        kept = suppress(boxes, scores, label, self.threshold, settings.max_per_img)
        found = boxes[kept], scores[kept], label[kept]
        return (*found, self.masks(features, found[0], found[2], x)) if self.mask_heads else found

    def proposals(self, features: Sequence[Tensor], limits: Tensor) -> Tensor:
        """(n, 4): boxes that may contain an object."""
        head = self.model.rpn_head
        settings, maps, levels = head.test_cfg, head(features), []
        for index, (logits, deltas, priors) in enumerate(zip(*maps, self.priors(head, maps[0]), strict=True)):
            rows = _rows(logits, head.cls_out_channels)
            scores = rows.sigmoid()[:, 0] if head.use_sigmoid_cls else rows.softmax(dim=-1)[:, 0]
            best = first(scores.argsort(descending=True), settings.nms_pre)
            boxes = boxes_from_deltas(head.bbox_coder, priors[best], _rows(deltas, 4)[best], limits)
            levels.append((boxes, scores[best], torch.full_like(best, index)))
        boxes, scores, groups = (torch.cat(parts) for parts in zip(*levels, strict=True))
        fits = larger_than(boxes, settings.get('min_bbox_size', -1))
        boxes, scores, groups = boxes[fits], scores[fits], groups[fits]
        return boxes[suppress(boxes, scores, groups, self.proposal_threshold, settings.max_per_img)]

    def of_class(self, head: Any, rois: Tensor, deltas: Tensor, label: Tensor, limits: Tensor) -> Tensor:
        """Refined boxes (n, 4), by the offsets of each one's class if the head has them by class."""
        if not head.reg_class_agnostic:
            offsets = deltas.reshape(-1, head.num_classes, 4)
            deltas = offsets.gather(1, label[:, None, None].expand(-1, 1, 4))[:, 0]
        return boxes_from_deltas(head.bbox_coder, rois, deltas, limits)

    def masks(self, features: Sequence[Tensor], boxes: Tensor, labels: Tensor, x: Tensor) -> Tensor:
        """(n, H, W) bool: the mask of each box in the image."""
        parts = []
        for head, extractor in zip(self.mask_heads, self.mask_extractors, strict=True):
            maps = head(pool_regions(extractor, features, boxes)).sigmoid()
            if not head.class_agnostic:
                side = maps.shape[-1]
                maps = maps.gather(1, labels[:, None, None, None].expand(-1, 1, side, side))
            parts.append(maps[:, 0])
        return (
            paste_masks(sum(parts[1:], parts[0]) / len(parts), boxes, x) >= self.model.roi_head.test_cfg.mask_thr_binary
        )


def with_frozen_norms(network: TwoStage) -> TwoStage:
    """A copy whose region heads have scale and shift instead of BN, which torch.export refuses for an unknown batch."""
    network = copy.deepcopy(network)
    for parent in list(network.model.roi_head.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features, child.eps)
                frozen.load_state_dict(child.state_dict())
                setattr(parent, name, frozen)
    return network


def _stages(part: Any) -> list[Any]:
    """The modules of a cascade, or the only one."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]
