"""Converts names in the authors' released checkpoints to ours.

One table per kind: each line is a pattern of a released name and its replacement. A name that no line matches is left
over, and a conversion with something left over is refused. We have never seen the released files: the names come from
the released code.
"""

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = [
    'deeplab_name',
    'mask_rcnn_name',
    'strip_module',
    'supernet_from_released',
    'supernet_name',
    'training_name',
]

_BLOCK = re.compile(r'layer(\d+)\.(\d+)\.(\d+)\.(.+)')

# `head.aspp` is ASPP in the order b0 b1 b2 b3 b4, `auxlayer` a plain FCN head.
_DEEPLAB = (
    (r'pretrained\.(?!fc\.)(.+)', r'backbone.\1'),
    (r'head\.aspp\.b([0-3])\.0\.(weight)', r'decode_head.branches.\1.conv.\2'),
    (r'head\.aspp\.b([0-3])\.1\.(\w+)', r'decode_head.branches.\1.bn.\2'),
    (r'head\.aspp\.b4\.gap\.1\.(weight)', r'decode_head.pooled.1.conv.\1'),
    (r'head\.aspp\.b4\.gap\.2\.(\w+)', r'decode_head.pooled.1.bn.\1'),
    (r'head\.aspp\.project\.0\.(weight)', r'decode_head.project.conv.\1'),
    (r'head\.aspp\.project\.1\.(\w+)', r'decode_head.project.bn.\1'),
    (r'head\.block\.0\.(weight)', r'decode_head.bottleneck.conv.\1'),
    (r'head\.block\.1\.(\w+)', r'decode_head.bottleneck.bn.\1'),
    (r'head\.block\.4\.(weight|bias)', r'decode_head.conv_seg.\1'),
    (r'auxlayer\.conv5\.0\.(weight)', r'auxiliary_head.convs.0.conv.\1'),
    (r'auxlayer\.conv5\.1\.(\w+)', r'auxiliary_head.convs.0.bn.\1'),
    (r'auxlayer\.conv5\.4\.(weight|bias)', r'auxiliary_head.conv_seg.\1'),
)

# Numbers in braces are computed: {n-1} is group n minus one.
_STEM = r'backbone\.bottom_up\.stem\.conv1\.'
_RES = r'backbone\.bottom_up\.res([2-5])\.(\d+)\.'
_MASK_RCNN = (
    (_STEM + r'0\.weight', 'backbone.conv1.0.weight'),
    (_STEM + r'0\.norm\.(\w+)', r'backbone.conv1.1.\1'),
    (_STEM + r'1\.weight', 'backbone.conv1.3.weight'),
    (_STEM + r'1\.norm\.(\w+)', r'backbone.conv1.4.\1'),
    (_STEM + r'2\.weight', 'backbone.conv1.6.weight'),
    (_STEM + r'2\.norm\.(\w+)', r'backbone.bn1.\1'),
    (_RES + r'conv([13])\.weight', r'backbone.layer{1-1}.\2.conv\3.weight'),
    (_RES + r'conv([13])\.norm\.(\w+)', r'backbone.layer{1-1}.\2.bn\3.\4'),
    (_RES + r'conv2\.((?:conv|bn0|fc1|bn1|fc2)\.\w+)', r'backbone.layer{1-1}.\2.conv2.\3'),
    (_RES + r'shortcut\.weight', r'backbone.layer{1-1}.\2.downsample.1.weight'),
    (_RES + r'shortcut\.norm\.(\w+)', r'backbone.layer{1-1}.\2.downsample.2.\3'),
    (r'backbone\.fpn_lateral([2-5])\.weight', r'neck.lateral_convs.{1-2}.conv.weight'),
    (r'backbone\.fpn_lateral([2-5])\.norm\.(\w+)', r'neck.lateral_convs.{1-2}.bn.\2'),
    (r'backbone\.fpn_output([2-5])\.weight', r'neck.fpn_convs.{1-2}.conv.weight'),
    (r'backbone\.fpn_output([2-5])\.norm\.(\w+)', r'neck.fpn_convs.{1-2}.bn.\2'),
    (r'proposal_generator\.rpn_head\.conv\.(\w+)', r'rpn_head.rpn_conv.\1'),
    (r'proposal_generator\.rpn_head\.objectness_logits\.(\w+)', r'rpn_head.rpn_cls.\1'),
    (r'proposal_generator\.rpn_head\.anchor_deltas\.(\w+)', r'rpn_head.rpn_reg.\1'),
    (r'roi_heads\.box_head\.conv([1-4])\.weight', r'roi_head.bbox_head.shared_convs.{1-1}.conv.weight'),
    (r'roi_heads\.box_head\.conv([1-4])\.norm\.(\w+)', r'roi_head.bbox_head.shared_convs.{1-1}.bn.\2'),
    (r'roi_heads\.box_head\.fc1\.(\w+)', r'roi_head.bbox_head.shared_fcs.0.\1'),
    (r'roi_heads\.box_predictor\.cls_score\.(\w+)', r'roi_head.bbox_head.fc_cls.\1'),
    (r'roi_heads\.box_predictor\.bbox_pred\.(\w+)', r'roi_head.bbox_head.fc_reg.\1'),
    (r'roi_heads\.mask_head\.mask_fcn([1-4])\.weight', r'roi_head.mask_head.convs.{1-1}.conv.weight'),
    (r'roi_heads\.mask_head\.mask_fcn([1-4])\.norm\.(\w+)', r'roi_head.mask_head.convs.{1-1}.bn.\2'),
    (r'roi_heads\.mask_head\.deconv\.(\w+)', r'roi_head.mask_head.upsample.\1'),
    (r'roi_heads\.mask_head\.predictor\.(\w+)', r'roi_head.mask_head.conv_logits.\1'),
)

# The supernet's projector: in our model pooling and flattening have indices.
_PROJECTOR = ((r'1\.mlp\.0\.(weight|bias)', r'projector.2.\1'), (r'1\.mlp\.2\.(weight|bias)', r'projector.4.\1'))


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, ours in table:
        if (match := re.fullmatch(pattern, name)) is not None:
            minus = re.sub(r'\{(\d)-(\d)\}', lambda m: str(int(match[int(m[1])]) - int(m[2])), ours)
            return match.expand(minus)
    return None


def deeplab_name(name: str) -> str | None:
    """mmsegmentation's name of a weight of the released DeepLabV3; None if it is unknown."""
    return _renamed(name, _DEEPLAB)


def mask_rcnn_name(name: str) -> str | None:
    """mmdetection's name of a weight of the released (detectron2) Mask R-CNN; None if it is unknown."""
    return _renamed(name, _MASK_RCNN)


def supernet_name(name: str, depths: tuple[int, ...]) -> str | None:
    """`SuperNet`'s name of a weight of a released supernet backbone; None if its block is outside the space.

    The shared shortcut is stored under every candidate there, and once here.

    Args:
        name: Released name, without prefix.
        depths: Blocks per stage of the space.
    """
    if (match := _BLOCK.fullmatch(name)) is None:
        return name
    stage, block, choice = (int(group) for group in match.groups()[:3])
    if not (1 <= stage <= len(depths) and block < depths[stage - 1]):
        return None
    rest, position = match[4], sum(depths[: stage - 1]) + block
    return f'blocks.{position}.' + (rest if rest.startswith('downsample.') else f'candidates.{choice}.{rest}')


def training_name(name: str, depths: tuple[int, ...]) -> str | None:
    """Our name of a weight of a released supernet training checkpoint, in the model that pre-training saves.

    Student `encoder_q` and teacher `encoder_k` are (backbone, projector); the queue keeps its name.
    """
    if name in ('queue', 'queue_ptr'):
        return f'method.{name}'
    for theirs, ours in (('encoder_q.', 'method.student.'), ('encoder_k.', 'method.teacher.')):
        if name.startswith(theirs):
            inner = name.removeprefix(theirs)
            if inner.startswith('0.'):
                renamed = supernet_name(inner.removeprefix('0.'), depths)
                return None if renamed is None else f'{ours}backbone.{renamed}'
            renamed = _renamed(inner, _PROJECTOR)
            return None if renamed is None else ours + renamed
    return None


def strip_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the `module.` that data-parallel wrappers put before every name, once or repeatedly."""
    state = dict(state)
    while state and all(name.startswith('module.') for name in state):
        state = {name.removeprefix('module.'): tensor for name, tensor in state.items()}
    return state


def supernet_from_released(state: Mapping[str, Tensor], depths: tuple[int, ...] = (3, 4, 6, 3)) -> dict[str, Tensor]:
    """Renames a released supernet backbone (`layerS.B.C.*`) to `SuperNet`'s names.

    If the shortcuts under the candidates of a position differ, the last one counts, as in the release.

    Args:
        state: Tensors of the backbone, without prefix.
        depths: Blocks per stage of the space.

    Raises:
        ValueError: A block is outside the space.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        renamed = supernet_name(name, depths)
        if renamed is None:
            raise ValueError(f'{name}: a space of depths {depths} has no such block')
        out[renamed] = tensor
    return out
