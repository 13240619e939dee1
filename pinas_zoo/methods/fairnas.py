"""FairNAS: strict fairness in the training of a supernet (Chu et al., ICCV 2021, arXiv 1907.01845)."""

from typing import Any

import numpy as np
from torch import Tensor

from pinas_zoo.methods.base import SupervisedMethod
from pinas_zoo.space import Arch

__all__ = ['FairNAS']


class FairNAS(SupervisedMethod):
    """K paths per step, in which every candidate of every position occurs exactly once; then one update.

    Every position draws a random permutation of its K candidates, and path i takes the i-th entry of each. The K paths
    run one after another on the same batch, and their gradients are averaged, so that stem, shortcuts and head, which
    are on all of them, move at the pace of one path. One step costs K path units.

    A position where fewer candidates fit (no skip where the shape changes) cannot be strictly fair in K paths: each of
    its candidates comes once, then further ones from a new permutation.

    Args: see `SupervisedMethod`.
    """

    @property
    def num_paths(self) -> int:
        """K: the largest number of candidates of a position."""
        space = self.supernet.space
        return max(len(space.choices(position)) for position in range(space.num_positions))

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The K paths of a step."""
        rng, space, count = self.rng(step), self.supernet.space, self.num_paths
        columns = []
        for position in range(space.num_positions):
            choices = space.choices(position)
            rounds = -(-count // len(choices))
            columns.append(np.concatenate([rng.permutation(choices) for _ in range(rounds)])[:count])
        return tuple(tuple(map(int, path)) for path in zip(*columns, strict=True))

    def parts(self, step: int) -> int:
        """One backward pass per path."""
        return self.num_paths

    def loss(self, batch: dict[str, Any], step: int, part: int = 0) -> dict[str, Tensor]:
        """1/K of one path's cross-entropy; the unscaled value is logged. Arguments and result as in `Method.loss`."""
        count = self.num_paths
        terms = self.path_loss(batch, self.paths(step)[part % count])
        whole = terms['loss']
        return terms | {'loss': whole / count, 'cross_entropy': whole.detach()}
