"""The shapes of every weight of a network, from the space alone; and the architecture, from the shapes.

Backbone and supernet are built from the same space (`blocks.py`); a test holds the two statements together. Here the
shapes are plain tuples, so that a file can be checked in full before any network is built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor

from pinas_zoo.space import SPACES, Arch, SearchSpace

__all__ = [
    'Shapes',
    'backbone_shapes',
    'conv_norm_shapes',
    'find_arch',
    'find_space',
    'norm_shapes',
    'shapes_of',
    'supernet_shapes',
]

#: Shape of each tensor by name.
Shapes = dict[str, tuple[int, ...]]

_BLOCK = re.compile(r'layer(\d+)\.(\d+)\.(.+)')
_KEPT = re.compile(r'candidates\.(\d+)\..+')


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def norm_shapes(name: str, channels: int) -> Shapes:
    """Weights, statistics and counter of a batch normalisation."""
    per_channel = ('weight', 'bias', 'running_mean', 'running_var')
    return {f'{name}.{kind}': (channels,) for kind in per_channel} | {f'{name}.num_batches_tracked': ()}


def conv_norm_shapes(conv: str, norm: str, shape: tuple[int, ...]) -> Shapes:
    """A convolution without bias and the normalisation after it."""
    return {f'{conv}.weight': shape} | norm_shapes(norm, shape[0])


def _stem_shapes(space: SearchSpace, in_chans: int) -> Shapes:
    first, second, third = space.stem_widths
    kernel = (space.stem_kernel,) * 2
    return (
        conv_norm_shapes('conv1.0', 'conv1.1', (first, in_chans * space.stem_patch**2, *kernel))
        | conv_norm_shapes('conv1.3', 'conv1.4', (second, first, *kernel))
        | conv_norm_shapes('conv1.6', 'bn1', (third, second, *kernel))
    )


def _shortcut_shapes(space: SearchSpace, position: int) -> Shapes:
    if not space.has_projection(position):
        return {}
    out = space.planes[space.stage_of(position)[0]] * space.expansion
    return conv_norm_shapes('downsample.1', 'downsample.2', (out, space.in_channels(position), 1, 1))


def _block_shapes(space: SearchSpace, position: int, choice: int | tuple[int, ...]) -> Shapes:
    if isinstance(choice, tuple):
        names = {c: _block_shapes(space, position, c) for c in choice}
        inner = {f'candidates.{c}.{name}': shape for c, shapes in names.items() for name, shape in shapes.items()}
        return inner | {'factors': (len(choice),)}
    candidate, planes = space.candidates[choice], space.planes[space.stage_of(position)[0]]
    if candidate.skip:
        return {}
    width, radix, groups = candidate.group_width(planes), candidate.radix, candidate.cardinality
    hidden = candidate.attention_width(planes, space.min_attention_width)
    kernel = (candidate.kernel,) * 2
    return (
        conv_norm_shapes('conv1', 'bn1', (width, space.in_channels(position), 1, 1))
        | conv_norm_shapes('conv2.conv', 'conv2.bn0', (width * radix, width // (groups * radix), *kernel))
        | {'conv2.fc1.weight': (hidden, width // groups, 1, 1), 'conv2.fc1.bias': (hidden,)}
        | norm_shapes('conv2.bn1', hidden)
        | {'conv2.fc2.weight': (width * radix, hidden // groups, 1, 1), 'conv2.fc2.bias': (width * radix,)}
        | conv_norm_shapes('conv3', 'bn3', (planes * space.expansion, width, 1, 1))
    )


def backbone_shapes(space: SearchSpace, arch: Arch, num_classes: int = 0, in_chans: int = 3) -> Shapes:
    """Every weight of a `PiNASNet`.

    Args:
        space: The space.
        arch: The architecture.
        num_classes: Classes; 0 for no classifier.
        in_chans: Image channels.
    """
    out = _stem_shapes(space, in_chans)
    for position, choice in enumerate(arch):
        stage, block = space.stage_of(position)
        inner = _block_shapes(space, position, choice) | _shortcut_shapes(space, position)
        out |= {f'layer{stage + 1}.{block}.{name}': shape for name, shape in inner.items()}
    if num_classes:
        out |= {'fc.weight': (num_classes, space.num_features), 'fc.bias': (num_classes,)}
    return out


def supernet_shapes(space: SearchSpace, in_chans: int = 3) -> Shapes:
    """Every weight of a `SuperNet`."""
    out = _stem_shapes(space, in_chans)
    for position in range(space.num_positions):
        prefix = f'blocks.{position}.'
        out |= {prefix + name: shape for name, shape in _shortcut_shapes(space, position).items()}
        for choice in space.choices(position):
            inner = _block_shapes(space, position, choice)
            out |= {f'{prefix}candidates.{choice}.{name}': shape for name, shape in inner.items()}
    return out


def find_space(shapes: Shapes) -> SearchSpace:
    """The named space whose stem and stage widths a network has, backbone or released supernet.

    Raises:
        ValueError: None of them.
    """
    stem = tuple(shapes.get(f'conv1.{index}.weight', (0,))[0] for index in (0, 3, 6))
    blocks: dict[int, int] = {}
    widths: dict[int, int] = {}
    for name, shape in shapes.items():
        if (match := _BLOCK.fullmatch(name)) is not None:
            stage = int(match[1])
            blocks[stage] = max(blocks.get(stage, 0), int(match[2]) + 1)
            if name.endswith('conv3.weight'):
                widths[stage] = shape[0]
    for space in SPACES.values():
        stages = range(1, len(space.depths) + 1)
        outs = {stage: space.planes[stage - 1] * space.expansion for stage in stages}
        if space.stem_widths == stem and dict(zip(stages, space.depths)) == blocks and outs == widths:
            return space
    raise ValueError(
        f'no known space has a stem of {stem}, stages of {list(blocks.values())} blocks and '
        f'{list(widths.values())} channels; known: {sorted(SPACES)}'
    )


def find_arch(shapes: Shapes, space: SearchSpace) -> Arch:
    """The architecture of a backbone, by its shapes.

    Every position takes the candidate that most of its weights fit, so that one that is missing or misshapen is still
    found and can be named.

    Args:
        shapes: Shapes by `PiNASNet`'s names.
        space: The space.

    Raises:
        ValueError: A position fits no candidate, or several equally well, or keeps what the space does not have.
    """
    starts, found = [0, *accumulate(space.depths)], {}
    for name, shape in shapes.items():
        if (match := _BLOCK.fullmatch(name)) is not None:
            stage, block = int(match[1]), int(match[2])
            if stage <= len(space.depths) and block < space.depths[stage - 1]:
                found.setdefault(starts[stage - 1] + block, {})[match[3]] = shape
    arch = []
    for position in range(space.num_positions):
        inner, choices = found.get(position, {}), space.choices(position)
        if several := {int(match[1]) for name in inner if (match := _KEPT.fullmatch(name))}:
            arch.append(tuple(sorted(several)))
            continue
        skips = [choice for choice in choices if space.candidates[choice].skip]
        if not inner and skips:
            arch.append(skips[0])
            continue
        fits = {
            choice: sum(inner.get(name) == shape for name, shape in _block_shapes(space, position, choice).items())
            for choice in choices
        }
        best = [choice for choice, count in fits.items() if count == max(fits.values())]
        if len(best) > 1:
            stage, block = space.stage_of(position)
            raise ValueError(
                f'layer{stage + 1}.{block} fits no candidate of space {space.name!r} better than the others: '
                f'{ ({name: inner[name] for name in sorted(inner) if name.endswith("weight")}) }'
            )
        arch.append(best[0])
    return space.parse(arch)
