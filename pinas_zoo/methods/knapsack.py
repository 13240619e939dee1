"""The best architecture by a score that is a sum over positions, within cost limits: exact, without search.

Choosing one candidate per position under a limit on a sum of costs is the multiple-choice knapsack problem. Position by
position, only those partial architectures are kept that can still be completed within the limits and that no other one
beats in score and in every limited cost.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.limits import Limits
from pinas_zoo.search.searcher import Searcher
from pinas_zoo.space import Arch, SearchSpace

__all__ = ['AdditiveScore', 'best_arch', 'search_by_score', 'sum_of']


#: Choices from the last position to the first.
Choices: TypeAlias = 'tuple[int, Choices] | None'


class Partial(NamedTuple):
    """The first positions of an architecture: its score, its limited costs, its choices from the last to the first."""

    score: float
    macs: float
    params: float
    choices: Choices


def sum_of(table: Sequence[Sequence[float]], arch: tuple[int, ...]) -> float:
    """The additive score of an architecture."""
    return float(sum(row[choice] for row, choice in zip(table, arch, strict=True)))


class AdditiveScore:
    """For methods whose native score is a sum over positions; list it before the base class that has the supernet."""

    supernet: SuperNet

    def table(self) -> list[list[float]]:
        """``table[position][candidate]``, the terms of the sum."""
        raise NotImplementedError(f'{type(self).__name__} does not define its table')

    def score(self, arch: Arch) -> float:
        """The sum of the architecture's entries of the table."""
        return sum_of(self.table(), self.supernet.space.single(arch))

    def derive(self, limits: Limits | None = None) -> Arch:
        """The architecture with the largest score within the limits, exactly.

        Raises:
            ValueError: No architecture is within the limits.
        """
        return best_arch(self.table(), self.supernet.space, limits)


def best_arch(table: Sequence[Sequence[float]], space: SearchSpace, limits: Limits | None = None) -> Arch:
    """The architecture with the largest sum within the limits; of equal sums, the one with the lower limited costs.

    Args:
        table: ``table[position][candidate]``, finite; candidates that do not fit a position are ignored.
        space: The space.
        limits: Limits whose costs are sums over positions, as those of `pinas_zoo.models.cost` are; None for no limit.

    Raises:
        ValueError: No architecture is within the limits (the message names the cheapest one), or the costs are not
            sums.

    Examples:
        >>> from pinas_zoo.space import PINAS_NANO
        >>> best_arch([[0.0, 3.0, 1.0, 2.0]] * 8, PINAS_NANO)
        (1, 1, 1, 1, 1, 1, 1, 1)
    """
    costs = _cost_rows(space, limits)
    bounds = (np.inf, np.inf) if limits is None else tuple(bound for _, bound in _axes(limits))
    least = [tuple(min(cost[axis] for cost in row.values()) for axis in (0, 1)) for row in costs]
    # The least that the positions after each one cost.
    ahead = [tuple(sum(row[axis] for row in least[index + 1 :]) for axis in (0, 1)) for index in range(len(least))]
    front = [Partial(0.0, 0, 0, None)]
    for row, prices, rest in zip(table, costs, ahead, strict=True):
        longer = (
            Partial(p.score + float(row[choice]), p.macs + macs, p.params + params, (choice, p.choices))
            for p in front
            for choice, (macs, params) in prices.items()
        )
        front = _undominated(p for p in longer if p.macs + rest[0] <= bounds[0] and p.params + rest[1] <= bounds[1])
        if not front:
            assert limits is not None  # without limits nothing is left out
            raise _infeasible(space, limits)
    arch = _unwind(front[0].choices)
    if limits is not None and not limits(arch):
        raise ValueError(
            f'the costs of {limits} are not sums over positions: by such sums {space.format(arch)} is within them'
        )
    return arch


def _axes(limits: Limits) -> list[tuple[Callable[[Arch], float], float]]:
    """The two limited costs with their bounds; an axis without a limit is 0."""
    axes: list[tuple[Callable[[Arch], float], float]] = []
    if limits.max_macs is not None:
        axes.append((lambda arch: limits.cost(arch).macs, limits.max_macs))
    if limits.max_params is not None:
        axes.append((lambda arch: limits.cost(arch).params, limits.max_params))
    if limits.max_latency is not None and limits.latency is not None:
        axes.append((limits.latency, limits.max_latency))
    if len(axes) > 2:
        raise ValueError(f'the exact choice takes at most two limits, got {limits}')
    return axes + [(lambda arch: 0, np.inf)] * (2 - len(axes))


def _cost_rows(space: SearchSpace, limits: Limits | None) -> list[dict[int, tuple[float, float]]]:
    """The limited costs of each choice at each position, see `_axes`.

    The first position's row includes what all architectures have in common.
    """
    choices = [space.choices(position) for position in range(space.num_positions)]
    if limits is None:
        return [dict.fromkeys(options, (0, 0)) for options in choices]
    base = tuple(options[0] for options in choices)

    first, second = (value for value, _ in _axes(limits))

    def cost(arch: Arch) -> tuple[float, float]:
        return first(arch), second(arch)

    origin, rows = cost(base), []
    for position, options in enumerate(choices):
        row = {}
        for choice in options:
            macs, params = cost((*base[:position], choice, *base[position + 1 :]))
            row[choice] = (macs, params) if position == 0 else (macs - origin[0], params - origin[1])
        rows.append(row)
    return rows


def _undominated(partials: Iterable[Partial]) -> list[Partial]:
    """Those that no other one beats, by descending score.

    In this order a partial is beaten exactly if an earlier one costs no more on both axes. The costs of the earlier
    ones are kept as a staircase: MACs rise, parameters fall.
    """
    kept: list[Partial] = []
    macs: list[float] = []
    params: list[float] = []
    for partial in sorted(partials, key=lambda p: (-p.score, p.macs, p.params)):
        place = bisect_right(macs, partial.macs)
        if place and params[place - 1] <= partial.params:
            continue
        kept.append(partial)
        end = place
        while end < len(macs) and params[end] >= partial.params:
            end += 1
        start = place - 1 if place and macs[place - 1] == partial.macs else place
        macs[start:end], params[start:end] = [partial.macs], [partial.params]
    return kept


def _unwind(choices: Choices) -> Arch:
    arch: list[int] = []
    while choices is not None:
        choice, choices = choices
        arch.append(choice)
    return tuple(reversed(arch))


def _infeasible(space: SearchSpace, limits: Limits) -> ValueError:
    """The error for limits that nothing meets; it names the architecture that exceeds them least."""
    rows = _cost_rows(space, limits)
    bounds = tuple(bound for _, bound in _axes(limits))
    cheapest = tuple(
        min(row, key=lambda c: sum(x / most for x, most in zip(row[c], bounds, strict=True))) for row in rows
    )
    cost = limits.cost(cheapest)
    return ValueError(
        f'no architecture of {space.name!r} is within {limits}; the cheapest is {space.format(cheapest)} with macs '
        f'{cost.macs:,.12g}, params {cost.params:,.12g}'
    )


def search_by_score(searcher: Searcher, score: Callable[[Arch], float], evaluations: int) -> Arch:
    """The best architecture that a searcher finds by a native score, which needs no data.

    Args:
        searcher: A new searcher, such as ``build_searcher('evolution', ...)``, with its constraint.
        score: Native score, higher is better.
        evaluations: Architectures to evaluate, at least 1; fewer if the space is exhausted.
    """
    while len(searcher.history) < evaluations and (archs := searcher.ask()):
        searcher.tell(archs, [score(arch) for arch in archs])
    return searcher.best[0]
