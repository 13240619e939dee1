"""Figures from scores.jsonl that are not in the report: changes during training, and every recipe that was tried."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.report import VIEWS, Row, View, estimates, of_recipe, scores_of, true_values
from pinas_zoo.ranking.statistics import measure
from pinas_zoo.ranking.truth import Truth, TruthRow

__all__ = ['curves', 'trials']


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
    for recipe in dict.fromkeys(row['recipe'] for row in rows if 'recipe' in row):
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
