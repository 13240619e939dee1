"""The Markdown tables of a ranking report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pinas_zoo.ranking.contestants import CONTESTANTS
from pinas_zoo.ranking.report import HALF_WORDS, NATIVE, VIEWS, WORDS

__all__ = ['markdown', 'table', 'trials_markdown', 'with_interval']


def markdown(report: Mapping[str, Any], views: Sequence[str] = tuple(VIEWS)) -> str:
    """The tables of some views of a report, with the note on signs and the warning."""
    out = [f'{report["paths"]} paths of {HALF_WORDS[report["half"]]}, recipe `{report["recipe"]}`. {report["sign"]}']
    if report['warning']:
        out.append(f'**Warning: {report["warning"]}.**')
    for name in views:
        view = VIEWS[name]
        out += [f'Estimated {WORDS[view.estimate]} against true {WORDS[view.truth]}:', _main_table(report, name)]
        out.append(
            f'A perfect estimate would have a tau of about **{report[name]["attainable_tau"]:.2f}** (attainable): the '
            f'truth is the mean of {report["truth"]["seeds"]} noisy seeds. The first row compares one of these seeds '
            'with each other one. A sum of one term per position and candidate, fitted to the truth of other paths '
            f'(cross-validated ridge regression), has {report[name]["additive_tau"]:.2f}.'
        )
    out += ["Differences of Kendall's tau, paired over paths:", _difference_table(report, views)]
    if report['runs'] and 'accuracy' in views:
        out += ['Cost of one supernet:', _cost_table(report)]
    return '\n\n'.join(out) + '\n'


def trials_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The table of the result of `trials`."""
    header = ['contestant', 'seeds', 'settings off the default', *(f'tau, {view.words}' for view in VIEWS.values())]
    rows = []
    for trial in found:
        changed = ', '.join(f'{key}={value}' for key, value in trial['changed'].items()) or 'none'
        taus = [f'{trial[f"tau_{view}"]:.2f}' for view in VIEWS]
        rows.append([CONTESTANTS[trial['contestant']].label, str(trial['seeds']), changed, *taus])
    return table(header, rows) + '\n'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def with_interval(entry: Mapping[str, Any], value: str = 'mean', interval: str = 'interval') -> str:
    """A value of an entry with its interval, both with two digits."""
    low, high = entry[interval]
    return f'{entry[value]:.2f} [{low:.2f}, {high:.2f}]'


def _spread(values: Sequence[float]) -> str:
    return '' if len(values) < 2 else f'{min(values):.2f} to {max(values):.2f}'


def _main_table(report: Mapping[str, Any], view: str) -> str:
    header = ['', 'tau-b [95 %]', 'seeds', 'of attainable', 'tau of the seeds', 'tau of their mean']
    header.append('agreement of the seeds')
    header += [
        'Spearman [95 %]',
        'tau, top half',
        'precision, top 10 %',
        'true rank of the best of the predicted 10',
        'regret',
    ]
    part, digits = report[view], 3 if VIEWS[view].truth == 'minus_loss' else 2
    ceiling = part['ceiling']
    # One seed replaces the truth here, so its other figures are not comparable with the rows below.
    rows = [
        [
            'one seed of the truth',
            with_interval(ceiling['tau']),
            *[''] * 5,
            with_interval(ceiling['spearman']),
            *[''] * 4,
        ]
    ]
    for name, entry in part['contestants'].items():
        cells = [report['labels'][name], with_interval(entry['tau']), str(len(entry['tau']['seeds']))]
        share = entry['tau']['mean'] / part['attainable_tau'] if part['attainable_tau'] > 0 else None
        cells += ['none' if share is None else f'{share:.0%}', _spread(entry['tau']['seeds'])]
        cells += [f'{entry[key]["mean"]:.2f}' if key in entry else '' for key in ('tau_of_mean', 'agreement')]
        cells += [with_interval(entry['spearman']), f'{entry["tau_top_half"]["mean"]:.2f}']
        cells += [f'{entry["precision_top10"]["mean"]:.2f}', f'{entry["best_rank"]["mean"]:.1f}']
        rows.append([*cells, f'{entry["regret"]["mean"]:.{digits}f}'])
    return table(header, rows)


def _difference_table(report: Mapping[str, Any], views: Sequence[str]) -> str:
    header = ['difference']
    for view in (VIEWS[name] for name in views):
        header += [f'{view.words} [95 % over paths]', f'{view.words} [95 % over paths and seeds]']
    rows = []
    for pair in report['accuracy']['differences']:
        one, other = pair.split(' - ')
        cells = [f'{report["labels"][one]} minus {report["labels"][other]}']
        for key in views:
            entry = report[key]['differences'][pair]['tau']
            cells += [with_interval(entry, 'difference'), with_interval(entry, 'difference', 'interval_with_seeds')]
        rows.append(cells)
    return table(header, rows)


def _cost_table(report: Mapping[str, Any]) -> str:
    header = ['', 'seeds', 'steps', 'path units (training + linear stage)', 'seconds, all', 'of which training']
    header += ['threads', 'peak memory / MiB', 'regret of its best path / points', 'claim of its paper (not ours)']
    rows = []
    for name, run in report['runs'].items():
        units = f'{run["units"]["train"]:.0f} + {run["units"]["linear"]:.0f}'
        cells = [report['labels'][name], str(len(run['seeds'])), str(run['steps']), units]
        cells += [f'{run["total_seconds"]:.0f}', f'{run["seconds"]["train"]:.0f}']
        cells += [', '.join(map(str, run['threads'])), str(run['peak_memory_mb'])]
        # The path that it selects: by its native score if it has one.
        entries = report['loss_to_accuracy']['contestants']
        regret = entries.get(name + NATIVE, entries[name])['regret']
        rows.append([*cells, f'{regret["mean"]:.2f} ({_spread(regret["seeds"])})', CONTESTANTS[name].headline])
    return table(header, rows)
