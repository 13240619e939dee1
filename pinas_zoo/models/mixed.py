"""A position of a network: one candidate, or the mixture of several behind one shortcut (a mixed path)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pinas_zoo.models.blocks import make_candidate
from pinas_zoo.models.kinds import Block
from pinas_zoo.models.layers import DEFAULT_LAYERS, Layers
from pinas_zoo.models.typed import ModuleDict
from pinas_zoo.space import SearchSpace

__all__ = ['MixedBottleneck', 'add_branches', 'make_block']


def add_branches(identity: Tensor | None, branches: list[Tensor], factors: Tensor) -> Tensor:
    """The sum of a position that keeps several candidates: ``shortcut + sum_k factor_k * branch_k``.

    Args:
        identity: Output of the shortcut; None where the candidates have none.
        branches: Residual branches, of the same shape as the shortcut's output.
        factors: One factor per branch, (len(branches),).
    """
    out = torch.zeros_like(branches[0]) if identity is None else identity
    for index, branch in enumerate(branches):
        out = torch.addcmul(out, branch, factors[index].to(branch.dtype))
    return out


class MixedBottleneck(nn.Module):
    """A position of a mixed path: several candidates added up behind one shortcut, each with a trainable factor.

    A factor starts at 1 / (number of candidates), so that a mixture of equal branches is one of them.

    Args:
        candidates: The blocks by candidate index; they have no shortcut themselves.
        shortcut: The shortcut that they share; None where the shape does not change.
        layers: Activation of the sum.
        alone: The shape changes and the candidates have no shortcut: the sum is that of the branches alone.
        activates: Whether the activation follows the sum.
    """

    def __init__(
        self,
        candidates: Mapping[int, Block],
        shortcut: nn.Module | None = None,
        layers: Layers = DEFAULT_LAYERS,
        alone: bool = False,
        activates: bool = True,
    ) -> None:
        super().__init__()
        self.alone = alone
        self.candidates: ModuleDict[Block] = ModuleDict({str(choice): block for choice, block in candidates.items()})
        self.factors = nn.Parameter(torch.full((len(candidates),), 1 / len(candidates)))
        self.downsample = nn.Identity() if shortcut is None else shortcut
        self.act3 = layers.act() if activates else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Shape: as `Bottleneck.forward`."""
        identity = None if self.alone else self.downsample(x)
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
) -> Block | MixedBottleneck:
    """Builds a candidate at one position, or the mixture of several.

    Args:
        space: The space.
        position: Position from 0.
        choice: Candidate index, one of ``space.choices(position)``; several give the mixture of a mixed path.
        shortcut: Shortcut that the block owns, if its candidate needs one; the supernet shares one per position and
            passes none.
        stride: Stride, where a dilated network changes that of the space.
        dilation: Dilation of the 3x3.
        drop_path: Probability of dropping the branch.
        layers: Activation and normalisation.
    """
    make = partial(
        make_candidate, space, position, stride=stride, dilation=dilation, drop_path=drop_path, layers=layers
    )
    shares = space.shares(position, choice)
    shortcut = shortcut if shares else None
    if not isinstance(choice, tuple):
        return make(choice, shortcut=shortcut)
    alone = space.changes_shape(position) and not shares
    activates = any(space.candidates[one].activates for one in choice)
    return MixedBottleneck({one: make(one) for one in choice}, shortcut, layers, alone, activates)
