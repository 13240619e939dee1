"""From the truth and scores.jsonl to report.json: how well each contestant ranks. Its tables: `tables`.

Higher is better on both sides: accuracy, and minus the loss. The halves are kept apart: reported results use only the
reporting half, and all trials only the tuning half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pinas_zoo.methods.predictor import one_hot
from pinas_zoo.ranking.contestants import CONTESTANTS, constants_of
from pinas_zoo.ranking.proxies import PROXIES, proxies_of
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.statistics import (
    additive_tau,
    agreement,
    attainable_tau,
    bootstrap_difference,
    ceiling,
    few_paths,
    summarise,
)
from pinas_zoo.ranking.truth import Truth, TruthRow

__all__ = [
    'DIFFERENCES',
    'HALF_WORDS',
    'NATIVE',
    'SIGN',
    'SOURCE',
    'VIEWS',
    'WORDS',
    'View',
    'compute',
    'of_recipe',
    'seeds_of',
    'true_values',
]

Row = Mapping[str, Any]

HALF_WORDS = {'reporting': 'the reporting half', 'tuning': 'the tuning half', 'both': 'both halves'}
#: The quantities measured for a path, in words.
WORDS = {'accuracy': 'accuracy', 'minus_loss': 'minus loss'}


@dataclass(frozen=True)
class View:
    """Which estimate is compared with which truth, both keys of `WORDS`."""

    estimate: str
    truth: str

    @property
    def words(self) -> str:
        """For column headings."""
        if self.estimate == self.truth:
            return WORDS[self.truth]
        return f'true {WORDS[self.truth]} by {WORDS[self.estimate]}'


#: The comparisons. The first is the one that matters for a search: accurate networks, ranked by the loss.
VIEWS = {
    'loss_to_accuracy': View('minus_loss', 'accuracy'),
    'accuracy': View('accuracy', 'accuracy'),
    'minus_loss': View('minus_loss', 'minus_loss'),
}
#: Suffix of a contestant's name where its native score ranks instead of the accuracy of its paths.
NATIVE = ':native'
#: Name of the source truth where another truth is predicted.
SOURCE = 'source'
#: Pairs whose difference is reported.
DIFFERENCES = tuple(
    ('pinas', other + kind)
    for other in (*CONTESTANTS, *PROXIES, SOURCE, 'macs', 'params')
    if other != 'pinas'
    for kind in ('', NATIVE)
)
#: What a report repeats of the truth's header.
TRUTH_FACTS = ('code', 'torch', 'data', 'recipe', 'source', 'sha256')
SIGN = (
    'Sign: higher is better for truth and estimate; a loss counts as minus the loss; of MACs and parameters, more '
    'counts as better.'
)


def of_recipe(rows: Sequence[Row], truth: Truth, recipe: str) -> dict[str, list[Row]]:
    """The lines of one recipe and of the truth's images and space, by contestant, with seeds in order.

    Lines of a contestant whose constants have changed since are left out. If a supernet was scored twice, the later
    line counts.
    """
    header = truth.header
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        known = CONTESTANTS.get(row.get('contestant', ''))
        if known is None or constants_of(row) != known.constants:
            continue
        same = all(row[key] == header[key] for key in ('task', 'space', 'data') if key in header)
        if row['recipe'] == recipe and same:
            found.setdefault(row['contestant'], {})[row['seed']] = row
    return {name: [seeds[s] for s in sorted(seeds)] for name in CONTESTANTS if (seeds := found.get(name))}


def seeds_of(paths: Sequence[TruthRow]) -> int:
    """How many seeds all of these paths have."""
    return min(len(row.top1) for row in paths)


def true_values(paths: Sequence[TruthRow], quantity: str, seed: int | None = None) -> np.ndarray:
    """Stand-alone results of the paths: of one seed, or the mean over the seeds that all of them have."""
    count = seeds_of(paths)
    table = np.array([(row.top1 if quantity == 'accuracy' else [-x for x in row.loss])[:count] for row in paths])
    return table.mean(axis=1) if seed is None else table[:, seed]


def estimates(scores: Mapping[str, Sequence[float]], names: Sequence[str], quantity: str) -> np.ndarray:
    """A supernet's estimates of the paths with these names.

    Raises:
        ValueError: A path was not scored.
    """
    if missing := [name for name in names if name not in scores]:
        raise ValueError(f'{len(missing)} paths have no score, the first is {missing[0]}; run the study again')
    return np.array([scores[name][0] if quantity == 'accuracy' else -scores[name][1] for name in names])


def scores_of(truth: Truth, rows: Mapping[str, Sequence[Row]], half: str, quantity: str) -> dict[str, list[np.ndarray]]:
    """The estimates of all contestants, trivial ones included: one row per seed."""
    paths = truth.half(half)
    names = [truth.study.space.format(row.arch) for row in paths]
    table = {}
    for name, lines in rows.items():
        table[name] = [estimates(row['scores'], names, quantity) for row in lines]
        if all('native' in row for row in lines):
            table[name + NATIVE] = [np.array([row['native'][path] for path in names]) for row in lines]
    rngs = [np.random.default_rng([seed, 7]) for seed in range(3)]
    table['random'] = [rng.random(len(paths)) for rng in rngs]
    for cost in ('macs', 'params'):
        table[cost] = [np.array([float(getattr(row, cost)) for row in paths])]
    return table


def compute(
    truth: Truth,
    rows: Sequence[Row],
    recipe: SupernetRecipe,
    half: str = 'reporting',
    source: Sequence[TruthRow] = (),
) -> dict[str, Any]:
    """All results of one half.

    Args:
        truth: The truth table.
        rows: Lines of scores.jsonl, and of the training-free scores.
        recipe: Whose lines count.
        half: 'reporting', 'tuning' or 'both'.
        source: Another truth of the same paths, which is treated as an estimate.

    Returns:
        Plain values: by view (without those whose truth was not measured) 'ceiling', 'attainable_tau', 'contestants'
        and 'differences', and what they depend on.

    Raises:
        ValueError: The half is unknown, or a path was not scored.
    """
    lines, paths = of_recipe(rows, truth, recipe.id), truth.half(half)

    def everyone_by(quantity: str) -> dict[str, list[np.ndarray]]:
        table = scores_of(truth, lines, half, quantity)
        if source:
            table[SOURCE] = [true_values(source, quantity)]
        return table | proxies_of(rows, truth, half)

    report: dict[str, Any] = {
        'half': half,
        'paths': len(paths),
        'warning': few_paths(len(paths)),
        'sign': SIGN,
        'recipe': recipe.id,
        'settings': next((row[0]['settings'] for row in lines.values()), None),
        'truth': {key: truth.header[key] for key in TRUTH_FACTS if key in truth.header} | {'seeds': seeds_of(paths)},
        'runs': {name: _run_facts(seeds) for name, seeds in lines.items()},
        'labels': {name: _label(name) for name in everyone_by('accuracy')},
    }
    for name, view in VIEWS.items():
        if view.truth == 'minus_loss' and not paths[0].loss:
            continue  # only accuracies were published
        true = true_values(paths, view.truth)
        seeds = [true_values(paths, view.truth, seed) for seed in range(seeds_of(paths))]
        everyone = everyone_by(view.estimate)
        report[name] = {
            'truth': {'least': float(true.min()), 'most': float(true.max())},
            'ceiling': ceiling(*seeds),
            'attainable_tau': attainable_tau(*seeds),
            'additive_tau': additive_tau(true, one_hot(truth.study.space, [row.arch for row in paths])),
            'contestants': {one: _contestant(true, scores) for one, scores in everyone.items()},
            'differences': {
                f'{one} - {other}': bootstrap_difference(true, everyone[one], everyone[other])
                for one, other in DIFFERENCES
                if one in everyone and other in everyone
            },
        }
    return report


def _contestant(true: np.ndarray, scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """The statistics of a contestant; with several seeds also their agreement, and the tau of their mean."""
    entry = summarise(true, scores)
    if len(scores) > 1:
        entry['agreement'] = agreement(scores)
        averaged = summarise(true, [np.mean(scores, axis=0)])['tau']
        entry['tau_of_mean'] = {key: averaged[key] for key in ('mean', 'interval')}
    return entry


def _label(name: str) -> str:
    trivial = {'random': 'random', 'macs': 'MACs', 'params': 'parameters', SOURCE: 'source truth'} | PROXIES
    if name.endswith(NATIVE):
        return f'{CONTESTANTS[name.removesuffix(NATIVE)].label}, native score'
    return trivial.get(name) or CONTESTANTS[name].label


def _run_facts(seeds: Sequence[Row]) -> dict[str, Any]:
    total = [sum(row['seconds'].values()) for row in seeds]
    return {
        'seeds': [row['seed'] for row in seeds],
        'steps': seeds[0]['steps'],
        'units': {key: float(np.mean([row['units'][key] for row in seeds])) for key in seeds[0]['units']},
        'seconds': {key: float(np.mean([row['seconds'][key] for row in seeds])) for key in seeds[0]['seconds']},
        'total_seconds': float(np.mean(total)),
        'threads': sorted({row['threads'] for row in seeds}),
        'peak_memory_mb': max(row['peak_memory_mb'] for row in seeds),
        'code': sorted({row['code'] for row in seeds}),
        'derived': [row['derived'] for row in seeds if 'derived' in row],
        'at_the_end': [row['at_the_end'] for row in seeds if 'at_the_end' in row],
    }
