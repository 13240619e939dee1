"""From the truth and scores.jsonl to report.json: how well each contestant ranks. Its tables: `tables`.

Higher is better on both sides: accuracy, and minus the loss. The halves are kept apart: reported results use only the
reporting half, and all trials only the tuning half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pinas_zoo.ranking.contestants import CONTESTANTS, constants_of
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.statistics import (
    agreement,
    attainable_tau,
    bootstrap_difference,
    ceiling,
    few_paths,
    measure,
    summarise,
)
from pinas_zoo.ranking.truth import Truth, TruthRow

__all__ = [
    'DIFFERENCES',
    'NATIVE',
    'SIGN',
    'VIEWS',
    'WORDS',
    'View',
    'compute',
    'curves',
    'of_recipe',
    'trials',
]

Row = Mapping[str, Any]

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
#: Pairs whose difference is reported.
DIFFERENCES = tuple(
    ('pinas', other + kind) for other in (*CONTESTANTS, 'macs', 'params') if other != 'pinas' for kind in ('', NATIVE)
)
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
        known = CONTESTANTS.get(row['contestant'])
        if known is None or constants_of(row) != known.constants:
            continue
        if row['recipe'] == recipe and all(row[key] == header[key] for key in ('task', 'space', 'data')):
            found.setdefault(row['contestant'], {})[row['seed']] = row
    return {name: [seeds[s] for s in sorted(seeds)] for name in CONTESTANTS if (seeds := found.get(name))}


def true_values(paths: Sequence[TruthRow], quantity: str, seed: int | None = None) -> np.ndarray:
    """Stand-alone results of the paths: of one seed, or the mean over the seeds."""
    table = np.array([row.top1 if quantity == 'accuracy' else [-x for x in row.loss] for row in paths])
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


def compute(truth: Truth, rows: Sequence[Row], recipe: SupernetRecipe, half: str = 'reporting') -> dict[str, Any]:
    """All results of one half.

    Args:
        truth: The truth table.
        rows: Lines of scores.jsonl.
        recipe: Whose lines count.
        half: 'reporting' or 'tuning'.

    Returns:
        Plain values: by view 'ceiling', 'attainable_tau', 'contestants' and 'differences', and what they depend on.

    Raises:
        ValueError: The half is unknown, or a path was not scored.
    """
    lines, paths = of_recipe(rows, truth, recipe.id), truth.half(half)
    report: dict[str, Any] = {
        'half': half,
        'paths': len(paths),
        'warning': few_paths(len(paths)),
        'sign': SIGN,
        'recipe': recipe.id,
        'settings': next((row[0]['settings'] for row in lines.values()), None),
        'truth': {key: truth.header[key] for key in ('code', 'torch', 'data', 'recipe', 'seeds')},
        'runs': {name: _run_facts(seeds) for name, seeds in lines.items()},
        'labels': {name: _label(name) for name in scores_of(truth, lines, half, 'accuracy')},
    }
    for name, view in VIEWS.items():
        true = true_values(paths, view.truth)
        first, second = (true_values(paths, view.truth, seed) for seed in (0, 1))
        everyone = scores_of(truth, lines, half, view.estimate)
        report[name] = {
            'truth': {'least': float(true.min()), 'most': float(true.max())},
            'ceiling': ceiling(first, second),
            'attainable_tau': attainable_tau(first, second),
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
    trivial = {'random': 'random', 'macs': 'MACs', 'params': 'parameters'}
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


def curves(truth: Truth, rows: Sequence[Row], recipe: SupernetRecipe) -> dict[str, dict[str, list[list[list[float]]]]]:
    """Changes during training: by quantity and contestant, one curve of [path units, value] per seed.

    A value that was not measured at a point is None.

    Quantities: 'tau_' and a view's name, on the tuning half's paths that were scored during training, with the
    final scores of the same paths as the last point; 'feature_' + mean, variance, cka, cosine at the input of the
    last position; 'update_cosine'; 'teacher_distance'.
    """
    table: dict[str, dict[str, list[list[list[float]]]]] = {}
    by_name = {truth.study.space.format(row.arch): row for row in truth.half('tuning')}

    def add(quantity: str, name: str, points: list[list[float]]) -> None:
        if points:
            table.setdefault(quantity, {}).setdefault(name, []).append(points)

    for name, lines in of_recipe(rows, truth, recipe.id).items():
        for row in lines:
            for quantity, value in _SHIFTS.items():
                found = [[shift['units'], value(shift)] for shift in row['shifts']]
                add(quantity, name, found if any(v is not None for _, v in found) else [])
            for key, view in VIEWS.items():
                add(f'tau_{key}', name, _tau_curve(row, by_name, view))
    return table


def _last_feature(kind: str) -> Callable[[Row], Any]:
    return lambda shift: shift['feature'][-1][kind]


_SHIFTS: dict[str, Callable[[Row], Any]] = {
    **{f'feature_{kind}': _last_feature(kind) for kind in ('mean', 'variance', 'cka', 'cosine')},
    'update_cosine': lambda s: s['update_cosine'],
    'teacher_distance': lambda s: s['teacher_distance'],
}


def _tau_curve(row: Row, tuning: Mapping[str, TruthRow], view: View) -> list[list[float]]:
    if not row['on_the_way']:
        return []
    names = [name for name in row['on_the_way'][0]['scores'] if name in tuning]
    if len(names) < 3:
        return []
    true = true_values([tuning[name] for name in names], view.truth)
    points = [(point['units'], point['scores']) for point in row['on_the_way']]
    points.append((row['units']['train'], row['scores']))
    return [[units, measure(true, estimates(scores, names, view.estimate))['tau']] for units, scores in points]


def trials(truth: Truth, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every recipe that was tried, on the tuning half: contestant, seeds, settings that differ from the default, tau.

    How often a training was measured does not change it, and is left out.
    """
    found: list[dict[str, Any]] = []
    default = vars(SupernetRecipe())
    seen: set[tuple[str, str]] = set()
    for recipe in dict.fromkeys(row['recipe'] for row in rows):
        for name, lines in of_recipe(rows, truth, recipe).items():
            settings = lines[0]['settings']
            changed = {k: v for k, v in settings.items() if default.get(k) != v and k not in _OBSERVATION}
            if (not changed and recipe != SupernetRecipe().id) or (name, str(changed)) in seen:
                continue  # a trial of what is now the default
            seen.add((name, str(changed)))
            trial = {'contestant': name, 'recipe': recipe, 'seeds': len(lines), 'changed': changed}
            for key, view in VIEWS.items():
                true = true_values(truth.half('tuning'), view.truth)
                scores = scores_of(truth, {name: lines}, 'tuning', view.estimate)[name]
                trial[f'tau_{key}'] = float(np.mean([measure(true, s)['tau'] for s in scores]))
            found.append(trial)
    return found


_OBSERVATION = ('probes', 'checkpoints', 'checkpoint_linear_steps', 'checkpoint_paths')
