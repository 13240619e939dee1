"""The questions that were registered before seeds 3 to 9 were trained (docs/ranking.md): two statistics of new seeds.

The first seeds suggested the questions, so they do not count here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pinas_zoo.ranking.contestants import CONTESTANTS
from pinas_zoo.ranking.report import scores_of, true_values
from pinas_zoo.ranking.statistics import agreement, bootstrap, bootstrap_difference, interval, summarise
from pinas_zoo.ranking.tables import table, with_interval
from pinas_zoo.ranking.truth import Truth

__all__ = ['registered', 'registered_markdown']

#: The first seed that counts, and Pi-NAS with what it is compared to.
FIRST = 3
NAMES = ('pinas', 'no_cross_path', 'moco', 'spos', 'fairnas')
HALF = 'reporting'
RESAMPLES = 2000


def registered(truth: Truth, lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Both statistics of each contestant, and Pi-NAS's differences from the others.

    Args:
        truth: The truth table.
        lines: Lines of scores.jsonl by contestant, of one recipe.

    Returns:
        By contestant 'seeds', 'tau' (of the estimated loss with the true accuracy) and 'agreement' with their
        intervals, and 'minus': the differences; an empty dict as long as a contestant has fewer than two new seeds.
    """
    new = {name: [row for row in lines.get(name, ()) if row['seed'] >= FIRST] for name in NAMES}
    if any(len(rows) < 2 for rows in new.values()):
        return {}
    true = true_values(truth.half(HALF), 'accuracy')
    scores = {name: rows for name, rows in scores_of(truth, new, HALF, 'loss').items() if name in NAMES}
    samples = {name: _agreement_samples(rows) for name, rows in scores.items()}
    found: dict[str, Any] = {}
    for name in NAMES:
        summary = summarise(true, scores[name], RESAMPLES)['tau']
        found[name] = {
            'seeds': [row['seed'] for row in new[name]],
            'tau': {'mean': summary['mean'], 'interval': summary['interval']},
            'agreement': {'mean': agreement(scores[name])['mean'], 'interval': _interval(samples[name])},
        }
        if name != NAMES[0]:
            tau = bootstrap_difference(true, scores[NAMES[0]], scores[name], RESAMPLES)['tau']
            means = [found[side]['agreement']['mean'] for side in (NAMES[0], name)]
            apart = {'difference': means[0] - means[1], 'interval': _interval(samples[NAMES[0]] - samples[name])}
            found[name]['minus'] = {'tau': tau, 'agreement': apart}
    return found


def _agreement_samples(scores: Sequence[np.ndarray], seed: int = 0) -> np.ndarray:
    """The mean agreement on samples of the paths and of the seeds; pairs of a seed with itself do not count."""
    count = len(scores)
    pairs = list(combinations(range(count), 2))
    taus = np.concatenate([bootstrap(scores[i], scores[i + 1 :], RESAMPLES, seed)['tau'] for i in range(count - 1)])
    drawn = np.random.default_rng([seed, count]).multinomial(count, [1 / count] * count, RESAMPLES).T
    weights = np.stack([drawn[i] * drawn[j] for i, j in pairs]).astype(float)
    total = weights.sum(axis=0)
    some = total > 0
    return np.where(some, (taus * weights).sum(axis=0) / np.where(some, total, 1), np.nan)


def _interval(samples: np.ndarray) -> list[float]:
    return interval(samples[~np.isnan(samples)])


def registered_markdown(found: Mapping[str, Any]) -> str:
    """The table of `registered`."""
    if not found:
        return 'Too few new seeds.\n'
    header = ['', 'seeds', 'tau by the loss [over paths]', 'Pi-NAS minus this [over paths and seeds]']
    header += ['agreement of the seeds [over paths and seeds]', 'Pi-NAS minus this [over paths and seeds]']
    rows = []
    for name, entry in found.items():
        minus = entry.get('minus')
        rows.append(
            [
                CONTESTANTS[name].label,
                f'{entry["seeds"][0]} to {entry["seeds"][-1]}',
                with_interval(entry['tau']),
                with_interval(minus['tau'], 'difference', 'interval_with_seeds') if minus else '',
                with_interval(entry['agreement']),
                with_interval(minus['agreement'], 'difference') if minus else '',
            ]
        )
    return table(header, rows) + '\n'
