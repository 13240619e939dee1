"""Methods whose positions add up several candidates, each with a learned factor. torch only.

A mixed position computes ``relu(shortcut + sum_k factor_k * branch_k)``, in the supernet while it trains and in the
mixed-path network that is derived from it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pinas_zoo.methods.alternating import AlternatingMethod
from pinas_zoo.methods.knapsack import best_arch
from pinas_zoo.models.supernet import Path
from pinas_zoo.search.limits import Limits
from pinas_zoo.space import Arch, kept

__all__ = ['MixtureMethod']


class MixtureMethod(AlternatingMethod):
    """Base class: subclasses define `mixing` and `shares`; scores and derived architectures follow from them.

    Args: see `AlternatingMethod`.
    """

    def mixing(self) -> Tensor:
        """The factor of every candidate, (positions, candidates); zero for what is removed or does not fit."""
        raise NotImplementedError(f'{type(self).__name__} does not define its factors')

    def shares(self) -> Tensor:
        """The share of every candidate in its position, (positions, candidates); rows sum to 1."""
        raise NotImplementedError(f'{type(self).__name__} does not define its shares')

    def survivors(self) -> list[tuple[int, ...]]:
        """The candidates by position whose factor is not zero, ascending."""
        kept_rows = (self.mixing().detach() != 0).tolist()  # one copy: every read waits for the device
        return [tuple(choice for choice, alive in enumerate(row) if alive) for row in kept_rows]

    def features(self, images: Tensor, arch: Arch | Path) -> Tensor:
        """Pooled features of a path, which may carry factors. Shape: (N, C, H, W) -> (N, num_features)"""
        return super().features(images, arch if isinstance(arch, Path) else self.supernet.path(arch))

    # ---- what training has found ---------------------------------------------------------------------------------

    @torch.no_grad()
    def table(self) -> list[list[float]]:
        """``log share`` of every candidate by position; that of a removed one is just above -28."""
        return (self.shares().double() + 1e-12).log().tolist()

    @torch.no_grad()
    def score(self, arch: Arch) -> float:
        """Sum over the positions of the log of the share; the shares of several kept candidates are added."""
        pairs = zip(self.shares().double(), self.supernet.space.parse(arch), strict=True)
        return float(sum((row[list(kept(choice))].sum() + 1e-12).log() for row, choice in pairs))

    def derive(self, limits: Limits | None = None, mixed: bool = False) -> Arch:
        """The architecture that training has selected.

        Args:
            limits: Limits on cost. A mixed path loses its smallest share until it is within them.
            mixed: Keep every survivor of a position instead of only the one with the largest share.

        Raises:
            ValueError: No architecture is within the limits.
        """
        space, shares = self.supernet.space, self.shares().detach()
        choices = [list(row) for row in self.survivors()] if mixed else [[]]
        for position, row in enumerate(choices if mixed else []):
            shaped = [c for c in row if not space.is_skip(position, c)]
            choices[position] = shaped if len(row) > 1 else row  # a skip adds nothing to the other branches
        while all(choices):
            arch = space.parse([tuple(row) if len(row) > 1 else row[0] for row in choices])
            if limits is None or limits(arch):
                return arch
            open_to = [(float(shares[p, c]), p, c) for p, row in enumerate(choices) if len(row) > 1 for c in row]
            if not open_to:
                break
            _, position, choice = min(open_to)
            choices[position].remove(choice)
        return best_arch(self.table(), space, limits)

    @torch.no_grad()
    def factors_of(self, arch: Arch) -> list[Tensor | None]:
        """The factors of the positions at which an architecture keeps several candidates, for `SuperNet.extract`."""
        pairs = zip(self.mixing(), self.supernet.space.parse(arch), strict=True)
        return [row[list(choice)].clone() if isinstance(choice, tuple) else None for row, choice in pairs]

    def log_scalars(self, step: int) -> dict[str, float]:
        """Mean number of survivors per position, and the number of positions with several survivors."""
        counts = [len(row) for row in self.survivors()]
        return {'survivors': sum(counts) / len(counts), 'open_positions': float(sum(count > 1 for count in counts))}

    def path_units(self, choices: list[Any]) -> float:
        """Cost of a pass through a mixture in path units: the mean number of candidates that run per position."""
        return sum(len(kept(choice)) for choice in choices) / len(choices)
