"""A position of a network: one candidate, or the mixture of several behind one shortcut (a mixed path)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from pinas_zoo.models.blocks import Bottleneck, Skip, make_candidate
from pinas_zoo.models.layers import DEFAULT_LAYERS, Layers
from pinas_zoo.models.typed import ModuleDict
from pinas_zoo.space import SearchSpace

__all__ = ['MixedBottleneck', 'add_branches', 'make_block']


def add_branches(identity: Tensor, branches: list[Tensor], factors: Tensor) -> Tensor:
    """The sum of a position that keeps several candidates: ``shortcut + sum_k factor_k * branch_k``.

    Args:
        identity: Output of the shortcut.
        branches: Residual branches, of the same shape as the shortcut's output.
        factors: One factor per branch, (len(branches),).
    """
    out = identity
    for index, branch in enumerate(branches):
        out = torch.addcmul(out, branch, factors[index].to(branch.dtype))
    return out


class MixedBottleneck(nn.Module):
    """A position of a mixed path: several candidates added up behind one shortcut, each with a trainable factor.

    A factor starts at 1 / (number of candidates), so that a mixture of equal branches is one of them.

    Args:
        candidates: The bottlenecks by candidate index; they have no shortcut themselves.
        shortcut: The shortcut that they share; None where the shape does not change.
        layers: Activation of the sum.
    """

    def __init__(
        self,
        candidates: Mapping[int, Bottleneck],
        shortcut: nn.Module | None = None,
        layers: Layers = DEFAULT_LAYERS,
    ) -> None:
        super().__init__()
        self.candidates: ModuleDict[Bottleneck] = ModuleDict(
            {str(choice): block for choice, block in candidates.items()}
        )
        self.factors = nn.Parameter(torch.full((len(candidates),), 1 / len(candidates)))
        self.downsample = nn.Identity() if shortcut is None else shortcut
        self.act3 = layers.act()

    def forward(self, x: Tensor) -> Tensor:
        """Shape: as `Bottleneck.forward`."""
        identity = self.downsample(x)
        branches = [block.branch(x) for block in self.candidates.values()]
        return self.act3(add_branches(identity, branches, self.factors))


def make_block(
    space: SearchSpace,
    position: int,
    choice: int | tuple[int, ...],
    *,
    shortcut: nn.Module | None = None,
    stride: int | None = None,
    dilation: int = 1,
    drop_path: float = 0.0,
    layers: Layers = DEFAULT_LAYERS,
) -> Bottleneck | Skip | MixedBottleneck:
    """Builds a candidate at one position, or the mixture of several.

    Args:
        space: The space.
        position: Position from 0.
        choice: Candidate index, one of ``space.choices(position)``; several give the mixture of a mixed path.
        shortcut: Shortcut that the block owns; the supernet shares one per position and passes none.
        stride: Stride, where a dilated network changes that of the space.
        dilation: Dilation of the 3x3.
        drop_path: Probability of dropping the branch.
        layers: Activation and normalisation.
    """
    make = partial(
        make_candidate, space, position, stride=stride, dilation=dilation, drop_path=drop_path, layers=layers
    )
    if isinstance(choice, tuple):
        blocks = {c: cast(Bottleneck, make(c)) for c in choice}  # a skip is never mixed
        return MixedBottleneck(blocks, shortcut, layers)
    return make(choice, shortcut=shortcut)
