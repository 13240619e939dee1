"""Architectures by cost: the bins, and draws from one of them (AttentiveNAS, section 4). No torch."""

from collections.abc import Sequence

import numpy as np

from pinas_zoo.space import Arch, SearchSpace

__all__ = ['CostBins']

#: Draws before an architecture outside its bin is accepted, about as released.
TRIES = 100


class CostBins:
    """pi(tau), how often each cost bin is drawn, and pi(a | tau), the architectures of a bin.

    Both are estimated from a pool of random architectures. pi(a | tau) is factorised: each position is drawn from the
    counts of its candidates in the bin, and the architecture is rejected until its cost falls in the bin. The bins
    divide the range of the space's costs evenly; a single bin draws uniformly.

    Args:
        space: The space.
        costs: ``costs[position][candidate]``, which add up over the positions.
        bins: Number of bins, at least 1; bins without an architecture in the pool are never drawn.
        pool: Architectures in the pool.
        even: Draw every bin equally often, instead of as often as in the pool.
        seed: Seed of the pool.

    Raises:
        ValueError: A number is out of its range, or several bins were requested where all architectures cost the same.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: Sequence[Sequence[float]],
        bins: int = 1,
        pool: int = 100_000,
        even: bool = False,
        seed: int = 0,
    ) -> None:
        if bins < 1 or pool < 1:
            raise ValueError(f'bins and pool must be at least 1, got {bins} and {pool}')
        self.space, self.costs, self.bins = space, np.asarray(costs, dtype=float), bins
        choices = [space.choices(position) for position in range(space.num_positions)]
        rows = [[row[c] for c in options] for row, options in zip(self.costs, choices, strict=True)]
        self.least, most = sum(map(min, rows)), sum(map(max, rows))
        self.width = (most - self.least) / bins
        if bins == 1:
            return
        if not self.width > 0:
            raise ValueError(f'all architectures of {space.name!r} cost {most}: bins must be 1, got {bins}')
        rng = np.random.default_rng(seed)
        archs = np.stack([rng.choice(options, pool) for options in choices], axis=1)
        found = self.bin_of(archs)
        counts = np.bincount(found, minlength=bins)
        self.prior = (counts > 0) / (counts > 0).sum() if even else counts / pool
        one_hot = np.eye(self.costs.shape[1])
        self.shares = np.zeros((bins, *self.costs.shape))  # of each candidate, by bin and position
        for index in np.flatnonzero(counts):
            self.shares[index] = one_hot[archs[found == index]].mean(axis=0)

    def bin_of(self, archs: Sequence[Arch] | np.ndarray) -> np.ndarray:
        """The bins of architectures. Shape: (n, num_positions) -> (n,)"""
        totals = np.take_along_axis(self.costs, np.asarray(archs).T, axis=1).sum(axis=0)
        if self.bins == 1:
            return np.zeros(len(totals), dtype=int)
        return np.clip(((totals - self.least) / self.width).astype(int), 0, self.bins - 1)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[int, list[Arch]]:
        """A bin, and architectures drawn from it."""
        if self.bins == 1:
            return 0, [self.space.sample(rng) for _ in range(count)]
        chosen = int(rng.choice(self.bins, p=self.prior))
        return chosen, [self._draw_from(chosen, rng) for _ in range(count)]

    def _draw_from(self, chosen: int, rng: np.random.Generator) -> Arch:
        for _ in range(TRIES):
            arch = tuple(int(rng.choice(len(share), p=share)) for share in self.shares[chosen])
            if self.bin_of([arch])[0] == chosen:
                break
        return arch
