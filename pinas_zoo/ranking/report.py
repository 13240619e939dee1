"""From the truth and scores.jsonl to report.json and the Markdown tables: how well each contestant ranks.

Higher is better on both sides: accuracy, and minus the loss. The halves are kept apart here: what is reported comes
from the reporting half, and all trials from the tuning half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pinas_zoo.ranking.contestants import CONTESTANTS, SupernetRecipe
from pinas_zoo.ranking.statistics import (
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
    'compute',
    'curves',
    'markdown',
    'of_recipe',
    'trials',
    'trials_markdown',
]

Row = Mapping[str, Any]

#: The two ways of looking at a result, with the words of the tables.
VIEWS = {'accuracy': 'accuracy', 'minus_loss': 'minus loss'}
#: What the name of a contestant ends with where its own score ranks, and not the accuracy of its paths.
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
    """The lines of one recipe and of the truth's images and space, by contestant, seeds in order.

    Where a supernet was scored twice, the later line counts.
    """
    header = truth.header
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row['recipe'] == recipe and all(row[key] == header[key] for key in ('task', 'space', 'data')):
            found.setdefault(row['contestant'], {})[row['seed']] = row
    return {name: [seeds[s] for s in sorted(seeds)] for name in CONTESTANTS if (seeds := found.get(name))}


def true_values(paths: Sequence[TruthRow], view: str, seed: int | None = None) -> np.ndarray:
    """Stand-alone results of the paths: of one seed, or their mean."""
    table = np.array([row.top1 if view == 'accuracy' else [-x for x in row.loss] for row in paths])
    return table.mean(axis=1) if seed is None else table[:, seed]


def estimates(scores: Mapping[str, Sequence[float]], names: Sequence[str], view: str) -> np.ndarray:
    """A supernet's estimates of the paths of these names.

    Raises:
        ValueError: A path was not scored.
    """
    if missing := [name for name in names if name not in scores]:
        raise ValueError(f'{len(missing)} paths have no score, the first is {missing[0]}; run the study again')
    return np.array([scores[name][0] if view == 'accuracy' else -scores[name][1] for name in names])


def scores_of(truth: Truth, rows: Mapping[str, Sequence[Row]], half: str, view: str) -> dict[str, list[np.ndarray]]:
    """The estimates of everyone, trivial ones included: one row per seed."""
    paths = truth.half(half)
    names = [truth.study.space.format(row.arch) for row in paths]
    table = {}
    for name, lines in rows.items():
        table[name] = [estimates(row['scores'], names, view) for row in lines]
        if all('native' in row for row in lines):
            table[name + NATIVE] = [np.array([row['native'][path] for path in names]) for row in lines]
    rngs = [np.random.default_rng([seed, 7]) for seed in range(3)]
    table['random'] = [rng.random(len(paths)) for rng in rngs]
    for cost in ('macs', 'params'):
        table[cost] = [np.array([float(getattr(row, cost)) for row in paths])]
    return table


def compute(truth: Truth, rows: Sequence[Row], recipe: SupernetRecipe, half: str = 'reporting') -> dict[str, Any]:
    """All figures of a half.

    Args:
        truth: The truth table.
        rows: Lines of scores.jsonl.
        recipe: Whose lines count.
        half: 'reporting' or 'tuning'.

    Returns:
        Plain values: 'ceiling', 'contestants' and 'differences', each by 'accuracy' and 'minus_loss', and what they
        depend on.

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
    for view in VIEWS:
        true = true_values(paths, view)
        everyone = scores_of(truth, lines, half, view)
        report[view] = {
            'truth': {'least': float(true.min()), 'most': float(true.max())},
            'ceiling': ceiling(true_values(paths, view, 0), true_values(paths, view, 1)),
            'attainable_tau': attainable_tau(true_values(paths, view, 0), true_values(paths, view, 1)),
            'contestants': {name: summarise(true, scores) for name, scores in everyone.items()},
            'differences': {
                f'{one} - {other}': bootstrap_difference(true, everyone[one], everyone[other])
                for one, other in DIFFERENCES
                if one in everyone and other in everyone
            },
        }
    return report


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
    """What moved during training: by quantity and contestant, one curve of [path units, value] a seed.

    A value that was not measured at a point is None.

    Quantities: 'tau_accuracy' and 'tau_minus_loss' on the tuning half's paths that were scored on the way, the last
    point with the final scores of the same paths; 'feature_' + mean, variance, cka, cosine at the input of the last
    position; 'update_cosine'; 'teacher_distance'.
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
            for view in VIEWS:
                add(f'tau_{view}', name, _tau_curve(row, by_name, view))
    return table


_SHIFTS = {
    **{f'feature_{kind}': lambda s, k=kind: s['feature'][-1][k] for kind in ('mean', 'variance', 'cka', 'cosine')},
    'update_cosine': lambda s: s['update_cosine'],
    'teacher_distance': lambda s: s['teacher_distance'],
}


def _tau_curve(row: Row, tuning: Mapping[str, TruthRow], view: str) -> list[list[float]]:
    if not row['on_the_way']:
        return []
    names = [name for name in row['on_the_way'][0]['scores'] if name in tuning]
    if len(names) < 3:
        return []
    true = true_values([tuning[name] for name in names], view)
    points = [(point['units'], point['scores']) for point in row['on_the_way']]
    points.append((row['units']['train'], row['scores']))
    return [[units, measure(true, estimates(scores, names, view))['tau']] for units, scores in points]


def trials(truth: Truth, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every recipe that was tried, on the tuning half: contestant, seeds, settings off the default, tau.

    How often a training was looked at changes nothing in it, and is left out.
    """
    found: list[dict[str, Any]] = []
    default = vars(SupernetRecipe())
    seen: set[tuple[str, str]] = set()
    for recipe in dict.fromkeys(row['recipe'] for row in rows):
        for name, lines in of_recipe(rows, truth, recipe).items():
            settings = lines[0]['settings']
            changed = {k: v for k, v in settings.items() if default.get(k) != v and k not in _OBSERVATION}
            if (not changed and recipe != SupernetRecipe().id) or (key := (name, str(changed))) in seen:
                continue  # a trial of what became the default
            seen.add(key)
            trial = {'contestant': name, 'recipe': recipe, 'seeds': len(lines), 'changed': changed}
            for view in VIEWS:
                true = true_values(truth.half('tuning'), view)
                taus = [measure(true, s)['tau'] for s in scores_of(truth, {name: lines}, 'tuning', view)[name]]
                trial[f'tau_{view}'] = float(np.mean(taus))
            found.append(trial)
    return found


_OBSERVATION = ('probes', 'checkpoints', 'checkpoint_linear_steps', 'checkpoint_paths')


# ---- Markdown --------------------------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """The tables of a report, with its sign and its warning."""
    out = [f'{report["paths"]} paths of the {report["half"]} half, recipe `{report["recipe"]}`. {report["sign"]}']
    if report['warning']:
        out.append(f'**Warning: {report["warning"]}.**')
    for view, words in VIEWS.items():
        out += [f'Estimate and truth as {words}:', _main_table(report, view)]
        out.append(
            'The noise ceiling compares two seeds of the truth with each other. Estimates are compared with the mean '
            f'of both: a perfect one would have a tau of about {report[view]["attainable_tau"]:.2f}.'
        )
    out += ["Differences of Kendall's tau, paired over paths:", _difference_table(report)]
    if report['runs']:
        out += ['Cost of one supernet:', _cost_table(report)]
    return '\n\n'.join(out) + '\n'


def trials_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of what `trials` gave."""
    header = ['contestant', 'seeds', 'settings off the default', 'tau, accuracy', 'tau, minus loss']
    rows = []
    for trial in found:
        changed = ', '.join(f'{key}={value}' for key, value in trial['changed'].items()) or 'none'
        taus = [f'{trial[f"tau_{view}"]:.2f}' for view in VIEWS]
        rows.append([CONTESTANTS[trial['contestant']].label, str(trial['seeds']), changed, *taus])
    return _table(header, rows) + '\n'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _with_interval(entry: Mapping[str, Any], value: str = 'mean', interval: str = 'interval') -> str:
    low, high = entry[interval]
    return f'{entry[value]:.2f} [{low:.2f}, {high:.2f}]'


def _spread(values: Sequence[float]) -> str:
    return '' if len(values) < 2 else f'{min(values):.2f} to {max(values):.2f}'


def _main_table(report: Mapping[str, Any], view: str) -> str:
    header = ['', 'tau-b [95 %]', 'tau of the seeds', 'Spearman [95 %]', 'Pearson [95 %]', 'tau, top half']
    header += ['precision, top 10 %', 'true rank of the best of the predicted 10', 'regret']
    part, rows = report[view], []
    entries = {'noise ceiling': part['ceiling']}
    entries |= {report['labels'][name]: entry for name, entry in part['contestants'].items()}
    for label, entry in entries.items():
        cells = [label, _with_interval(entry['tau']), _spread(entry['tau']['seeds'])]
        cells += [_with_interval(entry[name]) for name in ('spearman', 'pearson')]
        cells.append(f'{entry["tau_top_half"]["mean"]:.2f}')
        if entry is part['ceiling']:  # one seed takes the place of the truth: not to be compared with the rows below
            rows.append([*cells, '', '', ''])
            continue
        digits = 2 if view == 'accuracy' else 3
        cells += [f'{entry["precision_top10"]["mean"]:.2f}', f'{entry["best_rank"]["mean"]:.1f}']
        rows.append([*cells, f'{entry["regret"]["mean"]:.{digits}f}'])
    return _table(header, rows)


def _difference_table(report: Mapping[str, Any]) -> str:
    header = ['difference']
    for words in VIEWS.values():
        header += [f'{words} [95 % over paths]', f'{words} [95 % over paths and seeds]']
    rows = []
    for pair in report['accuracy']['differences']:
        one, other = pair.split(' - ')
        cells = [f'{report["labels"][one]} minus {report["labels"][other]}']
        for view in VIEWS:
            entry = report[view]['differences'][pair]['tau']
            cells += [_with_interval(entry, 'difference'), _with_interval(entry, 'difference', 'interval_with_seeds')]
        rows.append(cells)
    return _table(header, rows)


def _cost_table(report: Mapping[str, Any]) -> str:
    header = ['', 'seeds', 'steps', 'path units (training + linear stage)', 'seconds, all', 'of which training']
    header += ['threads', 'peak memory / MiB', 'regret of its best path / points', 'claim of its paper (not ours)']
    rows = []
    for name, run in report['runs'].items():
        units = f'{run["units"]["train"]:.0f} + {run["units"]["linear"]:.0f}'
        cells = [report['labels'][name], str(len(run['seeds'])), str(run['steps']), units]
        cells += [f'{run["total_seconds"]:.0f}', f'{run["seconds"]["train"]:.0f}']
        cells += [', '.join(map(str, run['threads'])), str(run['peak_memory_mb'])]
        # The path that it would give: by its own score where it has one.
        entries = report['accuracy']['contestants']
        regret = entries.get(name + NATIVE, entries[name])['regret']
        rows.append([*cells, f'{regret["mean"]:.2f} ({_spread(regret["seeds"])})', CONTESTANTS[name].headline])
    return _table(header, rows)
