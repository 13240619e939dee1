"""The shortlist of a search: its best architectures, random ones for comparison, and the choice. No torch.

A supernet's estimates rank many architectures well, but not the best ones among each other. So the best few are
trained alone with the same budget, together with some random ones, without which one cannot tell whether the search
found anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from pinas_zoo.search.log import SearchRecord, objective_of, ranked
from pinas_zoo.search.strategies import random_records

__all__ = ['GROUPS', 'Listed', 'Outcome', 'draw_random', 'draw_shortlist', 'summarise']

#: Why an architecture is on the list; if it is in both groups, it is trained once.
GROUPS = ('top', 'random')


@dataclass(frozen=True)
class Listed:
    """An architecture of the shortlist.

    Args:
        arch: As `SearchSpace.format` writes it.
        groups: 'top', 'random' or both.
        search_rank: Its rank in the search's log, 1 for the best.
        estimate: The supernet's numbers, 'top1' in percent and 'loss', as far as the log has them.
    """

    arch: str
    groups: tuple[str, ...]
    search_rank: int
    estimate: dict[str, float | None]


@dataclass(frozen=True)
class Outcome:
    """A stand-alone training: metrics on the images used to choose and on those used to report, and wall seconds."""

    val: dict[str, float]
    test: dict[str, float]
    seconds: float


def draw_random(initial: int, random: int, seed: int = 0) -> list[int]:
    """Which of the random evaluations at the start of a search form the random group of a shortlist.

    Args:
        initial: How many evaluations the search draws at random before it uses any score.
        random: How many to take.
        seed: Seed of the draw.

    Returns:
        Their positions in the search.

    Raises:
        ValueError: The search draws fewer.
    """
    if not 0 <= random <= initial:
        raise ValueError(f'{random} random architectures were requested, the search begins with {initial}')
    places: list[int] = np.random.default_rng([seed, 11]).choice(initial, size=random, replace=False).tolist()
    return places


def draw_shortlist(
    header: Mapping[str, Any], records: Sequence[SearchRecord], top: int, random: int, seed: int = 0
) -> list[Listed]:
    """Picks the best architectures of a search and some random ones.

    The random ones are taken from the evaluations that the search itself drew at random before it used any score, so
    that the log has an estimate of them. They may include some of the best.

    Args:
        header: Header of the search's log.
        records: Its records.
        top: Number of the best, at least 1.
        random: Number of random ones, at least 0.
        seed: Seed of the draw.

    Returns:
        The best first, then the random ones that are not among them, in the order of their ranks.

    Raises:
        ValueError: The log has too few records.
    """
    if top < 1 or random < 0:
        raise ValueError(f'top must be at least 1 and random at least 0, got {top} and {random}')
    initial = min(len(records), random_records(header))
    if top > len(records) or random > initial:
        raise ValueError(
            f'{top} of the best and {random} random architectures were requested, the log has {len(records)} '
            f'evaluations, {initial} of them random'
        )
    in_order = ranked(records)
    rank = {record.arch: place for place, record in enumerate(in_order, start=1)}
    chosen = {records[index].arch for index in draw_random(initial, random, seed)}
    by_accuracy = objective_of(header) == 'top1'
    listed = []
    for record in in_order:
        groups = tuple(
            name for name, inside in zip(GROUPS, (rank[record.arch] <= top, record.arch in chosen)) if inside
        )
        if groups:
            top1 = record.score if by_accuracy and record.top1 is None else record.top1
            listed.append(Listed(record.arch, groups, rank[record.arch], {'top1': top1, 'loss': record.loss}))
    return listed


def summarise(
    listed: Sequence[Listed], outcomes: Sequence[Outcome], objective: str, metric: str = 'accuracy/top1'
) -> dict[str, Any]:
    """The choice, and what the trainings say about the search.

    The best of the top group is chosen by `metric` on the images used to choose. All reported values are `metric` on
    the other images, so that the choice does not bias them.

    Args:
        listed: The architectures.
        outcomes: Their trainings, in the same order.
        objective: What the search ranked by; its estimates are correlated with the trainings.
        metric: Name of the metric; higher is better.

    Returns:
        Plain values for a JSON file.

    Raises:
        ValueError: A training lacks the metric.
        ImportError: scipy is not installed.
    """
    for one, outcome in zip(listed, outcomes, strict=True):
        if metric not in outcome.val or metric not in outcome.test:
            raise ValueError(
                f'the training of {one.arch} has no metric {metric!r}, only {sorted({*outcome.val, *outcome.test})}'
            )
    values = [outcome.test[metric] for outcome in outcomes]
    inside = {name: [i for i, one in enumerate(listed) if name in one.groups] for name in GROUPS}
    # Of equal ones, the one that the search preferred.
    winner = max(inside['top'], key=lambda i: (outcomes[i].val[metric], -listed[i].search_rank))
    groups = {name: _group([values[i] for i in members]) for name, members in inside.items()}
    mean, deviation = groups['random']['mean'], groups['random']['std']
    gain = None if mean is None else values[winner] - mean
    return {
        'arch': listed[winner].arch,
        'objective': objective,
        'metric': metric,
        'chosen': {
            'arch': listed[winner].arch,
            'search_rank': listed[winner].search_rank,
            'rank': 1 + sum(value > values[winner] for value in values),
            'networks': len(listed),
            'value': values[winner],
            'gain': gain,
            'gain_in_deviations': gain / deviation if gain is not None and deviation else None,
        },
        **groups,
        'kendall_tau': _rank_correlation([one.estimate[objective] for one in listed], values, objective),
        'networks': [asdict(one) | asdict(outcome) for one, outcome in zip(listed, outcomes, strict=True)],
    }


def _group(values: list[float]) -> dict[str, float | int | None]:
    """Mean and sample standard deviation."""
    return {
        'count': len(values),
        'mean': fmean(values) if values else None,
        'std': stdev(values) if len(values) > 1 else None,
    }


def _rank_correlation(estimates: list[float | None], values: list[float], objective: str) -> dict[str, Any]:
    """Kendall's tau-b between the estimates and the trainings; None if it is undefined."""
    from scipy.stats import kendalltau  # slow to import

    facts: dict[str, Any] = {'estimate': objective, 'count': len(values), 'tau': None, 'p': None}
    if len(values) > 1 and None not in estimates:
        sign = -1 if objective == 'loss' else 1
        result = kendalltau([sign * estimate for estimate in estimates if estimate is not None], values)
        if result.statistic == result.statistic:  # NaN if all are tied
            facts |= {'tau': float(result.statistic), 'p': float(result.pvalue)}
    return facts
