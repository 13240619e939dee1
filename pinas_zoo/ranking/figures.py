"""The pictures of the study: estimates against the truth, tau over training, both shifts over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pinas_zoo.ranking.contestants import GROUP_WORDS, GROUPS
from pinas_zoo.ranking.report import NATIVE, VIEWS, scores_of, true_values
from pinas_zoo.ranking.truth import Truth
from pinas_zoo.report.figures import INK, LINES, Figure, _draw

__all__ = ['SHIFT_PANELS', 'TAU_PANELS', 'curves_figure', 'scatter_figure']

#: One colour a contestant of a group, the same in every picture of it.
COLOURS = {group: dict(zip(names, (*LINES, '#a8912c'), strict=True)) for group, names in GROUPS.items()}
SHIFT_PANELS = {
    'feature_mean': 'feature shift: channel means',
    'feature_variance': 'feature shift: channel variances',
    'feature_cka': 'feature shift: 1 - linear CKA',
    'feature_cosine': 'feature shift: 1 - cosine',
    'update_cosine': 'cosine of successive updates',
    'teacher_distance': 'distance of student and teacher',
}
TAU_PANELS = {f'tau_{view}': f'tau-b, {words}' for view, words in VIEWS.items()}
#: Width of a picture and height of a panel in inches.
WIDTH, HEIGHT = 8.2, 2.4
#: How the costs are written in their panels.
COSTS = {'macs': ('MMACs', 1e6), 'params': ('thousand parameters', 1e3)}

Curves = Mapping[str, Mapping[str, Sequence[Sequence[Sequence[float]]]]]


def scatter_figure(
    report: Mapping[str, Any],
    truth: Truth,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    view: str,
    group: str = '',
) -> Figure:
    """Estimates against the truth, a panel per contestant: the mean over its seeds, and the range of the seeds.

    Args:
        report: What `report.compute` gave.
        truth: The truth table.
        rows: Lines of the report's recipe by contestant, see `report.of_recipe`.
        view: 'accuracy' or 'minus_loss'.
        group: Whose panels: a key of `GROUPS`.
    """
    paths = truth.half(report['half'])
    seeds = np.stack([true_values(paths, view, seed) for seed in range(truth.study.seeds)])
    everyone = scores_of(truth, rows, report['half'], view)
    words = VIEWS[view]

    def draw(axes: Any, name: str) -> None:
        unit, scale = COSTS.get(name, ('', 1))
        x, scores = seeds.mean(axis=0), np.stack(everyone[name]) / scale
        y, colour = scores.mean(axis=0), COLOURS[group].get(name.removesuffix(NATIVE), INK)
        bars = dict(fmt='none', ecolor=colour, elinewidth=0.6, alpha=0.3)
        axes.errorbar(x, y, xerr=np.abs(seeds - x).max(axis=0), yerr=np.abs(scores - y).max(axis=0), **bars)
        axes.scatter(x, y, s=9, color=colour, linewidths=0)
        title = f'{report["labels"][name]}\n{_tau(report[view]["contestants"][name])}'
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(unit, fontsize=8)

    below = f'true {words}, mean and range of {len(seeds)} seeds (noise ceiling: {_tau(report[view]["ceiling"])})'
    if report['warning']:
        below += f'\nWarning: {report["warning"]}'
    caption = (
        f'{GROUP_WORDS[group]}. Estimated against true {words}, {report["paths"]} paths of the {report["half"]} half; '
        f'mean and range of the seeds, tau with its 95 % interval over paths.'
    )
    shown = [n for n in everyone if n.removesuffix(NATIVE) in GROUPS[group]]
    order = shown if group else [*shown, 'macs', 'params']
    return _panels(order, draw, caption, below, f'estimated {words}')


def _tau(entry: Mapping[str, Any]) -> str:
    low, high = entry['tau']['interval']
    return f'tau {entry["tau"]["mean"]:.2f} [{low:.2f}, {high:.2f}]'


def curves_figure(
    curves: Curves, panels: Mapping[str, str], labels: Mapping[str, str], caption: str, group: str = ''
) -> Figure:
    """Curves over path units, a panel a quantity: the mean over the seeds, and their range as a band.

    Args:
        curves: What `report.curves` gave.
        panels: Titles by quantity.
        labels: Names of the contestants in the legend.
        caption: What is seen.
        group: Whose curves: a key of `GROUPS`.

    Raises:
        ValueError: There is no curve of any panel.
    """
    colours = COLOURS[group]
    curves = {q: {n: seeds for n, seeds in table.items() if n in colours} for q, table in curves.items()}
    present = [name for name in panels if curves.get(name)]
    if not present:
        raise ValueError(f'no curve of {list(panels)}, there are {sorted(curves)}')

    def draw(axes: Any, quantity: str) -> None:
        for name, seeds in curves[quantity].items():
            length = min(map(len, seeds))  # equal for equal recipes
            table = np.array([points[:length] for points in seeds], dtype=float)  # None, not measured: nan
            table = table[:, np.isfinite(table[..., 1]).all(axis=0)]
            x, y = table[..., 0].mean(axis=0), table[..., 1]
            axes.plot(x, y.mean(axis=0), color=colours[name], linewidth=1.6, label=labels[name])
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colours[name], alpha=0.15, linewidth=0)
        axes.set_title(panels[quantity], fontsize=9)
        axes.set_xlim(left=0)

    return _panels(present, draw, caption, 'path units', '')


def _panels(names: Sequence[str], draw: Any, caption: str, xlabel: str, ylabel: str) -> Figure:
    """A grid of panels in one PNG, with one legend for all and common axis names."""
    columns = min(3 if len(names) % 3 == 0 or len(names) > 4 else 2, len(names))
    lines = -(-len(names) // columns)

    def grid(axes: Any) -> None:
        canvas = axes.figure
        axes.remove()
        canvas.set_size_inches(WIDTH, HEIGHT * lines + 0.7)
        cells = canvas.subplots(lines, columns, squeeze=False).flat
        for cell, name in zip(cells, names, strict=False):
            draw(cell, name)
            cell.tick_params(labelsize=8)
        for cell in list(canvas.axes)[len(names) :]:
            cell.set_axis_off()
        handles: dict[str, Any] = {}
        for cell in canvas.axes:
            handles |= dict(zip(*reversed(cell.get_legend_handles_labels()), strict=True))
        if handles:
            canvas.legend(handles.values(), handles.keys(), loc='outside upper center', ncols=min(4, len(handles)))
        canvas.supxlabel(xlabel, fontsize=9, color=INK)
        canvas.supylabel(ylabel, fontsize=9, color=INK)

    return _draw(grid, caption, '', '', 'png')
