"""Shapes of every weight of a network, and the architecture that a file's shapes belong to.

The shapes are read from networks built on torch's meta device, which allocates nothing: a file can be checked
completely before any real network is built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from pinas_zoo.models.blocks import Skeleton, make_final
from pinas_zoo.models.mixed import make_block
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import SPACES, Arch, SearchSpace

__all__ = ['Shapes', 'backbone_shapes', 'find_arch', 'find_space', 'shapes_of', 'supernet_shapes']

#: Shape of each tensor by name.
Shapes = dict[str, tuple[int, ...]]

_BLOCK = re.compile(r'layer(\d+)\.(\d+)\.(.+)')
STEM = (*(f'conv1.{index}.weight' for index in (0, 3, 6)), 'final_conv.0.weight')
_KEPT = re.compile(r'candidates\.(\d+)\..+')


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """The shapes of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@cache
def _block_shapes(space: SearchSpace, position: int, choice: int) -> Shapes:
    """Weights of one candidate, without its position's shortcut."""
    with torch.device('meta'):
        block = make_block(space, position, choice)
    return {name: shape for name, shape in shapes_of(block.state_dict()).items() if not name.startswith('downsample.')}


def backbone_shapes(space: SearchSpace, arch: Arch, num_classes: int = 0, in_chans: int = 3) -> Shapes:
    """Every weight of a `PiNASNet`.

    Args:
        space: The space.
        arch: The architecture.
        num_classes: Classes; 0 for no classifier.
        in_chans: Image channels.
    """
    net = PiNASNet(arch, space, num_classes=num_classes, in_chans=in_chans, device='meta')
    return shapes_of(net.state_dict())


def supernet_shapes(space: SearchSpace, in_chans: int = 3) -> Shapes:
    """Every weight of a `SuperNet`."""
    with torch.device('meta'):
        return shapes_of(SuperNet(space, in_chans=in_chans).state_dict())


def _stem_shapes(space: SearchSpace, in_chans: int) -> list[tuple[int, ...]]:
    """The shapes of the stem's convolutions and of the final one, () for each that is not there."""
    with torch.device('meta'):
        stem, final = Skeleton(space, in_chans).state_dict(), make_final(space).state_dict()
    shapes = shapes_of(stem | {f'final_conv.{name}': tensor for name, tensor in final.items()})
    return [shapes.get(name, ()) for name in STEM]


def find_space(shapes: Shapes) -> SearchSpace:
    """The named space that matches the stem and stage widths of a network, backbone or released supernet.

    Raises:
        ValueError: None of them matches.
    """
    stem = [shapes.get(name, ()) for name in STEM]
    channels = stem[0][1] if len(stem[0]) > 1 else 3
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
        ours = _stem_shapes(space, max(1, channels // space.stem_patch**2))
        depths = dict(zip(stages, space.depths))
        if any(candidate.skip for candidate in space.candidates):  # a skipped block has no weights
            known = widths.items() <= outs.items() and all(blocks.get(stage, 0) <= depths[stage] for stage in stages)
        else:
            known = depths == blocks and outs == widths
        if ours == stem and known:
            return space
    raise ValueError(
        f'no known space has stem convolutions of {stem}, stages of {list(blocks.values())} blocks and '
        f'{list(widths.values())} channels; known: {sorted(SPACES)}'
    )


def _fit(found: Shapes, wanted: Shapes) -> tuple[int, int]:
    """How many weights fit, and minus how many are missing."""
    return sum(found.get(name) == shape for name, shape in wanted.items()), -sum(name not in found for name in wanted)


def find_arch(shapes: Shapes, space: SearchSpace) -> Arch:
    """The architecture of a backbone, by its shapes.

    Every position gets the candidate that fits most of its weights, so that a missing or mismatched one can still be
    found and named.

    Args:
        shapes: Shapes by `PiNASNet`'s names.
        space: The space.

    Raises:
        ValueError: A position fits no candidate, or several equally well, or has one that the space does not have.
    """
    starts = [0, *accumulate(space.depths)]
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if (match := _BLOCK.fullmatch(name)) is not None:
            stage, block = int(match[1]), int(match[2])
            if stage <= len(space.depths) and block < space.depths[stage - 1]:
                found.setdefault(starts[stage - 1] + block, {})[match[3]] = shape
    arch: list[int | tuple[int, ...]] = []
    for position in range(space.num_positions):
        inner, choices = found.get(position, {}), space.choices(position)
        if several := {int(match[1]) for name in inner if (match := _KEPT.fullmatch(name))}:
            arch.append(tuple(sorted(several)))
            continue
        skips = [choice for choice in choices if space.is_skip(position, choice)]
        if not inner and skips:
            arch.append(skips[0])
            continue
        fits = {choice: _fit(inner, _block_shapes(space, position, choice)) for choice in choices}
        best = [choice for choice, fit in fits.items() if fit == max(fits.values())]
        if len(best) > 1:
            stage, block = space.stage_of(position)
            raise ValueError(
                f'layer{stage + 1}.{block} fits no candidate of space {space.name!r} better than the others: '
                f'{ ({name: inner[name] for name in sorted(inner) if name.endswith("weight")}) }'
            )
        arch.append(best[0])
    return space.parse(arch)
