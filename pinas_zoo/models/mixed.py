"""Mixed paths: a position that keeps several candidates and adds them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pinas_zoo.models.typed import ModuleDict

if TYPE_CHECKING:
    from pinas_zoo.models.blocks import Bottleneck

__all__ = ['MixedBottleneck', 'add_branches']


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
        act: Activation of the sum.
    """

    def __init__(
        self,
        candidates: Mapping[int, Bottleneck],
        shortcut: nn.Module | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.candidates: ModuleDict[Bottleneck] = ModuleDict(
            {str(choice): block for choice, block in candidates.items()}
        )
        self.factors = nn.Parameter(torch.full((len(candidates),), 1 / len(candidates)))
        self.downsample = nn.Identity() if shortcut is None else shortcut
        self.act3 = nn.ReLU() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        """Shape: as `Bottleneck.forward`."""
        identity = self.downsample(x)
        branches = [block.branch(x) for block in self.candidates.values()]
        return self.act3(add_branches(identity, branches, self.factors))
