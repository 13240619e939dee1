"""How well scores rank architectures: correlations, the top of the list, intervals, and the noise ceiling.

One sign throughout: higher is better, for the truth and for the score. A loss is negated by the caller; MACs and
parameters count as scores unchanged (more is taken to be better).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

__all__ = [
    'CORRELATIONS',
    'FEW',
    'additive_tau',
    'agreement',
    'attainable_tau',
    'bootstrap',
    'bootstrap_difference',
    'ceiling',
    'interval',
    'measure',
    'summarise',
]

Floats = NDArray[np.float64]

#: The statistics that get an interval.
CORRELATIONS = ('tau', 'spearman', 'pearson')
#: With fewer paths than this, a ranking says little.
FEW = 30
#: Number of predicted best paths among which the truly best one is searched.
TOP = 10


def measure(truth: ArrayLike, score: ArrayLike) -> dict[str, float]:
    """Every statistic of one ranking.

    Args:
        truth: Stand-alone result of each path, higher is better.
        score: Estimate of each path, higher is better; equal scores keep the order of the paths.

    Shape:
        truth, score: (paths,)

    Returns:
        'tau' (Kendall's tau-b), 'spearman', 'pearson', 'tau_top_half' (within the truly better half),
        'precision_top10' (share of the predicted top 10 % that is in the true top 10 %), 'best_rank' (true rank, from
        1, of the best among the predicted top 10 paths) and 'regret' (truth of the best path minus truth of the
        predicted best). A constant score has correlations of 0.

    Raises:
        ValueError: Shapes differ, there are fewer than three paths, or a value is not finite.
    """
    truth, score = _pair(truth, score)
    paths = len(truth)
    by_truth, by_score = (np.argsort(-values, kind='stable') for values in (truth, score))
    better, tenth = by_truth[: (paths + 1) // 2], max(1, round(paths / 10))
    true_rank = np.empty(paths, int)
    true_rank[by_truth] = np.arange(1, paths + 1)
    return {
        'tau': _or_zero(kendalltau, truth, score),
        'spearman': _or_zero(spearmanr, truth, score),
        'pearson': _or_zero(pearsonr, truth, score),
        'tau_top_half': _or_zero(kendalltau, truth[better], score[better]),
        'precision_top10': len(set(by_truth[:tenth]) & set(by_score[:tenth])) / tenth,
        'best_rank': float(true_rank[by_score[:TOP]].min()),
        'regret': float(truth.max() - truth[by_score[0]]),
    }


def summarise(truth: ArrayLike, scores: Sequence[ArrayLike], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The statistics of a contestant over its seeds.

    Args:
        truth: Stand-alone result of each path.
        scores: Estimates, one row per supernet seed.
        resamples: Bootstrap samples of the paths.
        seed: Seed of the bootstrap.

    Returns:
        By statistic a dict of 'mean' over the seeds, 'seeds' (each value), and for the correlations 'interval', the
        95 % bootstrap interval over paths of that mean. 'paths' is the number of paths.

    Warns:
        UserWarning: There are fewer than 30 paths.
    """
    rows = [measure(truth, score) for score in scores]
    if not rows:
        raise ValueError('a summary needs at least one score, got none')
    few_paths(np.size(truth))
    table: dict[str, Any] = {'paths': int(np.size(truth))}
    draws = bootstrap(truth, scores, resamples, seed)
    for name in rows[0]:
        values = [row[name] for row in rows]
        table[name] = {'mean': float(np.mean(values)), 'seeds': values}
        if name in draws:
            table[name]['interval'] = interval(draws[name].mean(axis=0))
    return table


def few_paths(paths: int) -> str | None:
    """The warning to show with a result of so few paths; None if there are enough."""
    if paths >= FEW:
        return None
    text = f'only {paths} paths: below {FEW} a rank correlation says little'
    warnings.warn(text, stacklevel=3)
    return text


def attainable_tau(*seeds: ArrayLike) -> float:
    """Kendall's tau that a perfect estimate would have with the mean of k noisy seeds.

    From the agreement r of two seeds, the mean of k agrees with the noiseless truth by sqrt(k r / (1 + (k - 1) r)),
    Spearman-Brown. An approximation: r follows from the mean tau of all pairs as for normal variables,
    tau = 2 / pi asin(r), and is converted back the same way.

    Args:
        *seeds: Results of each path, one row per seed; at least two.

    Returns:
        0 if the seeds do not agree.
    """
    r, k = max(float(np.sin(np.pi / 2 * agreement(seeds)['mean'])), 0.0), len(seeds)
    return float(2 / np.pi * np.arcsin(np.sqrt(k * r / (1 + (k - 1) * r))))


def additive_tau(truth: ArrayLike, one_hot: ArrayLike, folds: int = 8, repeats: int = 5) -> float:
    """How well a sum of one term per position and candidate predicts: ridge regression, cross-validated.

    Args:
        truth: Stand-alone result of each path.
        one_hot: The paths, see `methods.predictor.one_hot`.
        folds: Parts of the cross-validation.
        repeats: Cross-validations with other parts.

    Returns:
        Kendall's tau of the predictions of paths that were left out, mean over the repeats.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    truth, code = np.asarray(truth, dtype=float), np.asarray(one_hot, dtype=float)
    model = RidgeCV(np.logspace(-2, 3, 11))
    splits = [KFold(min(folds, len(truth)), shuffle=True, random_state=seed) for seed in range(repeats)]
    return float(np.mean([_or_zero(kendalltau, truth, cross_val_predict(model, code, truth, cv=s)) for s in splits]))


def agreement(scores: Sequence[ArrayLike]) -> dict[str, Any]:
    """How well supernets that differ only in their seed agree: Kendall's tau of every pair of their rankings.

    Args:
        scores: Estimates, one row per supernet seed; at least two.

    Returns:
        'mean' over the pairs, and 'pairs', each value.
    """
    pairs = [_or_zero(kendalltau, *_pair(one, other)) for one, other in combinations(scores, 2)]
    return {'mean': float(np.mean(pairs)), 'pairs': pairs}


def ceiling(first: ArrayLike, *others: ArrayLike, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The limit that noise sets: one seed of stand-alone training ranked by each of the others, summarised.

    An estimate is compared with the mean of all seeds, which is less noisy than any one; a perfect estimate would
    therefore exceed this value, see `attainable_tau`.
    """
    return summarise(first, others, resamples, seed)


def bootstrap(truth: ArrayLike, scores: Sequence[ArrayLike], resamples: int, seed: int) -> dict[str, Floats]:
    """Correlations on samples of the paths, drawn with replacement; the same samples for every row and every call.

    Returns:
        By name of the correlation an array (rows, resamples).
    """
    pairs = [_pair(truth, score) for score in scores]
    paths = len(pairs[0][0])
    index = np.random.default_rng(seed).integers(paths, size=(resamples, paths))
    counts = np.stack([np.bincount(row, minlength=paths) for row in index]).astype(float)
    out: dict[str, list[Floats]] = {name: [] for name in CORRELATIONS}
    for true, score in pairs:
        out['tau'].append(_tau_of_counts(true, score, counts))
        out['spearman'].append(_pearson_rows(rankdata(true[index], axis=1), rankdata(score[index], axis=1)))
        out['pearson'].append(_pearson_rows(true[index], score[index]))
    return {name: np.stack(rows) for name, rows in out.items()}


def bootstrap_difference(
    truth: ArrayLike, first: Sequence[ArrayLike], second: Sequence[ArrayLike], resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """How much better one contestant ranks than another, as differences of the means over their seeds.

    Args:
        truth: Stand-alone result of each path.
        first: Scores of the first contestant, one row per supernet seed.
        second: Scores of the second.
        resamples: Bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        By correlation a dict of 'difference', 'interval' (95 %, over paths, both on the same samples: paired) and
        'interval_with_seeds' (the supernet seeds are resampled too).
    """
    one, other = bootstrap(truth, first, resamples, seed), bootstrap(truth, second, resamples, seed)
    means = [{n: np.mean([measure(truth, s)[n] for s in side]) for n in CORRELATIONS} for side in (first, second)]
    rng = np.random.default_rng([seed, 1])
    weights = [rng.multinomial(len(side), [1 / len(side)] * len(side), resamples).T for side in (first, second)]
    return {
        name: {
            'difference': float(means[0][name] - means[1][name]),
            'interval': interval(one[name].mean(axis=0) - other[name].mean(axis=0)),
            'interval_with_seeds': interval(
                (one[name] * weights[0]).sum(axis=0) / len(first) - (other[name] * weights[1]).sum(axis=0) / len(second)
            ),
        }
        for name in CORRELATIONS
    }


def _pair(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    truth, score = np.asarray(truth, dtype=float), np.asarray(score, dtype=float)
    if truth.shape != score.shape or truth.ndim != 1 or len(truth) < 3:
        raise ValueError(
            f'truth and score must be rows of equal length, at least 3, got {truth.shape} and {score.shape}'
        )
    if not (np.isfinite(truth).all() and np.isfinite(score).all()):
        raise ValueError('truth and score must be finite numbers')
    return truth, score


def _or_zero(statistic: Any, truth: Floats, score: Floats) -> float:
    """0 if one side is constant, since it ranks nothing."""
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(score) == 0:
        return 0.0
    return float(statistic(truth, score)[0])


def _tau_of_counts(truth: Floats, score: Floats, counts: Floats) -> Floats:
    """Kendall's tau-b of samples that hold path i counts[s, i] times; copies of a path are ties on both sides."""
    a, b = (np.sign(values[:, None] - values) for values in (truth, score))
    both, one, other = (((counts @ m) * counts).sum(axis=1) for m in (a * b, a * a, b * b))
    return _divide(both, np.sqrt(one * other))


def _pearson_rows(a: Floats, b: Floats) -> Floats:
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return _divide((a * b).sum(axis=1), np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def interval(draws: Floats) -> list[float]:
    """The middle 95 % of bootstrap draws: lower and upper end."""
    return [float(value) for value in np.percentile(draws, [2.5, 97.5])]
