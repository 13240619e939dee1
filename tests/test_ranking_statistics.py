"""Ranking statistics against naive re-implementations and scipy on explicit samples."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from pinas_zoo.methods.predictor import one_hot
from pinas_zoo.ranking.statistics import (
    CORRELATIONS,
    additive_tau,
    attainable_tau,
    bootstrap,
    bootstrap_difference,
    ceiling,
    few_paths,
    measure,
    summarise,
)
from pinas_zoo.space import PINAS_NANO


def correlated(paths: int = 60, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=paths)
    return truth, truth + noise * rng.normal(size=paths)


def naive_tau_b(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b by its definition, one pair after another."""
    agree = tied_x = tied_y = 0
    pairs = list(itertools.combinations(range(len(x)), 2))
    for i, j in pairs:
        product = np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
        agree += product
        tied_x += x[i] == x[j]
        tied_y += y[i] == y[j]
    return agree / math.sqrt((len(pairs) - tied_x) * (len(pairs) - tied_y))


@pytest.mark.parametrize('digits', [8, 0])
def test_correlations(digits: int) -> None:
    """With digits=0 both sides are full of ties."""
    truth, score = (values.round(digits) for values in correlated())
    result = measure(truth, score)
    assert result['tau'] == pytest.approx(naive_tau_b(truth, score), abs=1e-12)
    assert result['spearman'] == pytest.approx(spearmanr(truth, score)[0], abs=1e-12)
    assert result['pearson'] == pytest.approx(pearsonr(truth, score)[0], abs=1e-12)


def test_signs() -> None:
    truth, _ = correlated()
    for name in CORRELATIONS:
        assert measure(truth, 3 * truth + 1)[name] == pytest.approx(1)
        assert measure(truth, -truth)[name] == pytest.approx(-1)
    assert measure(truth, np.exp(truth))['tau'] == pytest.approx(1)


def test_the_top_of_the_list() -> None:
    """Thirty paths, truth 0..29. The score puts 20, 29, 5 first, then the others by rising truth."""
    truth = np.arange(30.0)
    first = [20, 29, 5]
    order = first + [i for i in range(30) if i not in first]
    score = np.empty(30)
    score[order] = np.arange(30, 0, -1)
    result = measure(truth, score)
    assert result['precision_top10'] == pytest.approx(1 / 3)  # of 20, 29, 5 only 29 is among 27, 28, 29
    assert result['best_rank'] == 1  # 29 is in the first ten
    assert result['regret'] == 29 - 20
    half = [i for i in order if i >= 15]
    expected = naive_tau_b(np.array(half, float), np.arange(15.0, 0, -1))
    assert result['tau_top_half'] == pytest.approx(expected)
    worst = measure(truth, -truth)
    assert (worst['precision_top10'], worst['best_rank'], worst['regret']) == (0, 21, 29)


def test_a_constant_score_ranks_nothing() -> None:
    truth, _ = correlated()
    result = measure(truth, np.ones_like(truth))
    assert [result[name] for name in (*CORRELATIONS, 'tau_top_half')] == [0] * 4


@pytest.mark.parametrize(
    'truth, score, message',
    [
        ([1, 2, 3], [1, 2], 'rows of equal length'),
        ([1, 2], [1, 2], 'at least 3'),
        ([[1, 2, 3]], [[1, 2, 3]], 'rows of equal length'),
        ([1, 2, math.nan], [1, 2, 3], 'finite'),
    ],
)
def test_bad_input(truth: list, score: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(truth, score)


@pytest.mark.parametrize('digits', [8, 0])
def test_bootstrap_is_scipy_on_the_samples(digits: int) -> None:
    truth, score = (values.round(digits) for values in correlated(25))
    draws = bootstrap(truth, [score, -score], resamples=40, seed=3)
    index = np.random.default_rng(3).integers(25, size=(40, 25))
    for name, function in zip(CORRELATIONS, (kendalltau, spearmanr, pearsonr), strict=True):
        expected = [function(truth[row], score[row])[0] for row in index]
        np.testing.assert_allclose(draws[name][0], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(draws[name][1], -draws[name][0], rtol=0, atol=1e-12)


def test_summary_over_seeds() -> None:
    truth, first = correlated(60, 0.5, 0)
    second = truth + np.random.default_rng(9).normal(size=60)
    summary = summarise(truth, [first, second])
    taus = [measure(truth, score)['tau'] for score in (first, second)]
    assert summary['tau']['seeds'] == taus and summary['tau']['mean'] == pytest.approx(np.mean(taus))
    low, high = summary['tau']['interval']
    assert low < summary['tau']['mean'] < high and 'interval' not in summary['regret']
    assert summary == summarise(truth, [first, second])


def test_an_interval_halves_with_four_times_the_paths() -> None:
    widths = []
    for paths in (80, 320):
        samples = [correlated(paths, 0.5, seed) for seed in range(8)]
        intervals = [summarise(truth, [score], resamples=300)['tau']['interval'] for truth, score in samples]
        widths.append(np.mean([np.ptp(interval) for interval in intervals]))
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)


def test_interval_covers() -> None:
    """Of 95 % intervals of 200 draws about 190 contain the true tau of a bivariate normal, 2/pi asin(r)."""
    r = 1 / math.sqrt(1 + 0.5**2)
    true_tau, held = 2 / math.pi * math.asin(r), 0
    for seed in range(200):
        truth, score = correlated(50, 0.5, seed)
        low, high = summarise(truth, [score], resamples=300)['tau']['interval']
        held += low <= true_tau <= high
    assert 180 <= held <= 198


def test_difference_is_paired() -> None:
    truth, first = correlated(60, 0.5)
    same = bootstrap_difference(truth, [first], [first])
    assert all(entry['difference'] == 0 and entry['interval'] == [0, 0] for entry in same.values())
    second = first + 0.05 * np.random.default_rng(5).normal(size=60)
    paired = bootstrap_difference(truth, [first], [second])['tau']
    alone = [summarise(truth, [score])['tau'] for score in (first, second)]
    assert paired['difference'] == pytest.approx(alone[0]['mean'] - alone[1]['mean'])
    assert np.ptp(paired['interval']) < 0.5 * np.ptp(alone[0]['interval'])


def test_difference_with_seeds_is_wider() -> None:
    truth, good = correlated(60, 0.5)
    rng = np.random.default_rng(2)
    seeds = [truth + noise * rng.normal(size=60) for noise in (0.2, 1.0, 3.0)]
    entry = bootstrap_difference(truth, seeds, [good])['tau']
    assert np.ptp(entry['interval_with_seeds']) > 1.5 * np.ptp(entry['interval'])
    alike = bootstrap_difference(truth, [good] * 3, [seeds[0]])['tau']
    np.testing.assert_allclose(alike['interval_with_seeds'], alike['interval'], rtol=0, atol=1e-12)


def test_ceiling_compares_two_seeds() -> None:
    truth, again = correlated(60, 0.1)
    assert ceiling(truth, again)['tau']['mean'] == pytest.approx(kendalltau(truth, again)[0])
    both = ceiling(truth, again, -again)['tau']
    assert both['mean'] == pytest.approx(0) and len(both['seeds']) == 2


def test_few_paths_warn() -> None:
    truth, score = correlated(29)
    with pytest.warns(UserWarning, match='only 29 paths'):
        assert summarise(truth, [score])['paths'] == 29
    assert few_paths(30) is None


def test_nothing_to_summarise() -> None:
    with pytest.raises(ValueError, match='at least one score, got none'):
        summarise([1.0, 2.0, 3.0], [])


def test_attainable_tau_of_noisy_seeds() -> None:
    """Against a simulation: what the noiseless truth itself reaches."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=4000)
    first, second = (true + 0.6 * rng.normal(size=4000) for _ in range(2))
    reached = kendalltau(true, first + second)[0]
    assert attainable_tau(first, second) == pytest.approx(reached, abs=0.02)
    assert attainable_tau(first, second) > kendalltau(first, second)[0] + 0.05
    assert attainable_tau([1, 2, 3], [3, 2, 1]) == 0
    more = [true + 0.6 * rng.normal(size=4000) for _ in range(4)]
    assert attainable_tau(*more) == pytest.approx(kendalltau(true, np.mean(more, axis=0))[0], abs=0.02)


def test_a_sum_over_positions_is_predicted_and_a_product_is_not() -> None:
    rng = np.random.default_rng(0)
    space = PINAS_NANO
    archs = [space.sample(rng) for _ in range(90)]
    code = one_hot(space, archs)
    terms = rng.normal(size=(8, 4))
    total = [sum(terms[p, c] for p, c in enumerate(arch)) for arch in archs]
    parity = [sum(arch) % 2 + 1e-3 * sum(arch) for arch in archs]
    assert additive_tau(total, code) > 0.9
    assert additive_tau(parity, code) < 0.3
