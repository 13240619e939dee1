"""The shapes of the released heads, under mmsegmentation's and mmdetection's names.

They follow from the released code, and are what `configs/*_released_*.py` build; a test compares the two.
"""

import torch
from torch import nn

from pinas_zoo.space import SearchSpace
from pinas_zoo.weights.shapes import Shapes, shapes_of

__all__ = ['HEAD_CLASSES', 'deeplab_shapes', 'mask_rcnn_shapes']

WIDTH = 256

#: Per kind: the tensor whose first dimension counts the classes, and how many of these are not classes (background).
HEAD_CLASSES = {
    'deeplabv3': ('decode_head.conv_seg.weight', 0),
    'mask-rcnn': ('roi_head.bbox_head.fc_cls.weight', 1),
}


def _conv_module(name: str, *shape: int) -> Shapes:
    """A convolution without bias and the batch normalisation after it."""
    with torch.device('meta'):
        norm = shapes_of(nn.BatchNorm2d(shape[0]).state_dict())
    return {f'{name}.conv.weight': shape} | {f'{name}.bn.{kind}': size for kind, size in norm.items()}


def _with_bias(name: str, *shape: int, bias: int | None = None) -> Shapes:
    return {f'{name}.weight': shape, f'{name}.bias': (shape[0] if bias is None else bias,)}


def deeplab_shapes(space: SearchSpace, classes: int) -> Shapes:
    """Decode head and auxiliary head of the released DeepLabV3."""
    last, before = space.num_features, space.planes[-2] * space.expansion
    out = _conv_module('decode_head.branches.0', WIDTH, last, 1, 1)
    for index in (1, 2, 3):
        out |= _conv_module(f'decode_head.branches.{index}', WIDTH, last, 3, 3)
    return (
        out
        | _conv_module('decode_head.pooled.1', WIDTH, last, 1, 1)
        | _conv_module('decode_head.project', WIDTH, 5 * WIDTH, 1, 1)
        | _conv_module('decode_head.bottleneck', WIDTH, WIDTH, 3, 3)
        | _with_bias('decode_head.conv_seg', classes, WIDTH, 1, 1)
        | _conv_module('auxiliary_head.convs.0', WIDTH, before, 3, 3)
        | _with_bias('auxiliary_head.conv_seg', classes, WIDTH, 1, 1)
    )


def mask_rcnn_shapes(space: SearchSpace, classes: int) -> Shapes:
    """FPN, RPN, box head (4 convolutions, 1 fully connected) and mask head of the released Mask R-CNN."""
    out: Shapes = {}
    for level, planes in enumerate(space.planes):
        out |= _conv_module(f'neck.lateral_convs.{level}', WIDTH, planes * space.expansion, 1, 1)
        out |= _conv_module(f'neck.fpn_convs.{level}', WIDTH, WIDTH, 3, 3)
        out |= _conv_module(f'roi_head.bbox_head.shared_convs.{level}', WIDTH, WIDTH, 3, 3)
        out |= _conv_module(f'roi_head.mask_head.convs.{level}', WIDTH, WIDTH, 3, 3)
    anchors = 3
    return (
        out
        | _with_bias('rpn_head.rpn_conv', WIDTH, WIDTH, 3, 3)
        | _with_bias('rpn_head.rpn_cls', anchors, WIDTH, 1, 1)
        | _with_bias('rpn_head.rpn_reg', 4 * anchors, WIDTH, 1, 1)
        | _with_bias('roi_head.bbox_head.shared_fcs.0', 1024, WIDTH * 7 * 7)
        | _with_bias('roi_head.bbox_head.fc_cls', classes + 1, 1024)
        | _with_bias('roi_head.bbox_head.fc_reg', 4 * classes, 1024)
        | _with_bias('roi_head.mask_head.upsample', WIDTH, WIDTH, 2, 2)
        | _with_bias('roi_head.mask_head.conv_logits', classes, WIDTH, 1, 1)
    )
