"""Names of the authors' released checkpoints, turned into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor

__all__ = ['supernet_from_released']

_BLOCK = re.compile(r'layer(\d+)\.(\d+)\.(\d+)\.(.+)')


def supernet_from_released(state: Mapping[str, Tensor], depths: tuple[int, ...] = (3, 4, 6, 3)) -> dict[str, Tensor]:
    """Renames a released supernet backbone (`layerS.B.C.*`) to `SuperNet`'s names.

    The shared shortcut stands under every candidate there; as in the release, the last one wins.

    Args:
        state: Tensors of the backbone, without prefix.
        depths: Blocks per stage of the space.

    Raises:
        ValueError: A block lies outside the space.
    """
    starts = [0, *accumulate(depths)]
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if (match := _BLOCK.fullmatch(name)) is None:
            out[name] = tensor
            continue
        stage, block, choice = (int(group) for group in match.groups()[:3])
        if not (1 <= stage <= len(depths) and block < depths[stage - 1]):
            raise ValueError(f'{name}: no such block in a space of depths {depths}')
        rest, position = match[4], starts[stage - 1] + block
        inner = rest if rest.startswith('downsample.') else f'candidates.{choice}.{rest}'
        out[f'blocks.{position}.{inner}'] = tensor
    return out
