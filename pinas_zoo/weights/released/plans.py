"""What a released checkpoint of each kind becomes: new names, and the shapes that have to be there."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pinas_zoo.space import SearchSpace
from pinas_zoo.weights.released.heads import HEAD_CLASSES, deeplab_shapes, mask_rcnn_shapes
from pinas_zoo.weights.released.remap import deeplab_name, mask_rcnn_name, supernet_name, training_name
from pinas_zoo.weights.shapes import Shapes, backbone_shapes, find_arch, find_space, shapes_of, supernet_shapes

__all__ = ['Plan', 'plan_of']


@dataclass
class Plan:
    """How one kind is renamed, and the expected result."""

    rename: Callable[[str], str | None]
    expected: Shapes
    space: SearchSpace
    arch: str | None = None
    num_classes: int | None = None
    alias: tuple[str, str] | None = None  # names under the first prefix must equal those under the second


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _prefixed(shapes: Shapes, prefix: str) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def plan_of(kind: str, released: Mapping[str, Tensor], space: SearchSpace | None) -> Plan:
    """The plan for a kind.

    Args:
        kind: See `recognise`.
        released: Tensors by released names.
        space: Its space; None finds it from the shapes.
    """
    shapes = shapes_of(released)
    if kind == 'supernet':
        space = space or find_space(_released_as_backbone(shapes))
        return Plan(partial(supernet_name, depths=space.depths), supernet_shapes(space), space)
    if kind == 'supernet-training':
        return _training_plan(shapes, space)
    rename, head_shapes, prefix = {
        'classifier': (lambda name: name, None, ''),
        'deeplabv3': (deeplab_name, deeplab_shapes, 'backbone.'),
        'mask-rcnn': (mask_rcnn_name, mask_rcnn_shapes, 'backbone.'),
    }[kind]
    ours = {new: shape for name, shape in shapes.items() if (new := rename(name)) is not None}
    backbone = _below(ours, prefix)
    space = space or find_space(backbone)
    arch = find_arch(backbone, space)
    classes = ours.get('fc.weight' if head_shapes is None else HEAD_CLASSES[kind][0], (1,))[0]
    if head_shapes is None:
        expected = backbone_shapes(space, arch, classes)
    else:
        classes -= HEAD_CLASSES[kind][1]
        expected = _prefixed(backbone_shapes(space, arch), prefix) | head_shapes(space, classes)
    return Plan(rename, expected, space, space.format(arch), classes)


def _released_as_backbone(shapes: Shapes) -> Shapes:
    """The shapes of a released supernet as those of a backbone of candidate 0: enough to find the space."""
    return {re.sub(r'^(layer\d+\.\d+)\.0\.', r'\1.', name): shape for name, shape in shapes.items()}


def _training_plan(shapes: Shapes, space: SearchSpace | None) -> Plan:
    space = space or find_space(_released_as_backbone(_below(shapes, 'encoder_q.0.')))
    width = space.num_features
    dim, length = (*shapes.get('queue', ()), 0, 0)[:2]
    encoder = _prefixed(supernet_shapes(space), 'backbone.') | {
        'projector.2.weight': (width, width),
        'projector.2.bias': (width,),
        'projector.4.weight': (dim, width),
        'projector.4.bias': (dim,),
    }
    expected = {'method.queue': (dim, length), 'method.queue_ptr': (1,)}
    expected |= _prefixed(encoder, 'method.student.') | _prefixed(encoder, 'method.teacher.')
    rename = partial(training_name, depths=space.depths)
    return Plan(rename, expected, space, alias=('backbone.', 'encoder_q.0.'))
