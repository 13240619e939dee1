"""The pictures of the study: estimates against the truth, tau over training, both shifts over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pinas_zoo.ranking.contestants import GROUP_WORDS, GROUPS
from pinas_zoo.ranking.report import HALF_WORDS, NATIVE, VIEWS, WORDS, scores_of, true_values
from pinas_zoo.ranking.truth import Truth
from pinas_zoo.report.figures import INK, LINES, Figure, draw_axes

__all__ = ['SHIFT_PANELS', 'TAU_PANELS', 'colour_of', 'curves_figure', 'forest_figure', 'scatter_figure']

#: One colour per method, the same in every picture; variants of a method share it.
COLOURS = dict(zip(('pinas', 'spos', 'fairnas', 'moco', 'no_cross_path'), LINES, strict=False)) | {
    'no_teacher': '#8a9099',
    'no_negatives': '#a8912c',
    'bnnas': '#7a5c43',
    'attentivenas': '#1f9ab5',
    'fpnas': '#5b9c3a',
    'sparse': '#c74f96',
    'entrannas': '#5d63c9',
    'rlnas': '#d98a3d',
    'pada': '#2f6f5e',
}


def colour_of(name: str) -> str:
    """The colour of a contestant, its native score and its variants (`bnnas_tenth`); black for untrained scores."""
    name = name.removesuffix(NATIVE)
    return COLOURS.get(name) or next((c for method, c in COLOURS.items() if name.startswith(f'{method}_')), INK)


SHIFT_PANELS = {
    'feature_mean': 'feature shift: channel means',
    'feature_variance': 'feature shift: channel variances',
    'feature_cka': 'feature shift: 1 - linear CKA',
    'feature_cosine': 'feature shift: 1 - cosine',
    'update_cosine': 'cosine of successive updates',
    'teacher_distance': 'distance of student and teacher',
}
TAU_PANELS = {f'tau_{name}': f'tau-b, {view.words}' for name, view in VIEWS.items()}
#: Width of a picture and height of a panel in inches.
WIDTH, HEIGHT = 8.2, 2.4
#: How the costs are labelled in their panels.
COSTS = {'macs': ('MMACs', 1e6), 'params': ('thousand parameters', 1e3)}

Curves = Mapping[str, Mapping[str, Sequence[Sequence[Sequence[float]]]]]


def scatter_figure(
    report: Mapping[str, Any],
    truth: Truth,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    view: str,
    group: str = '',
) -> Figure:
    """Estimates against the truth, one panel per contestant: mean and range over its seeds.

    Args:
        report: Result of `report.compute`.
        truth: The truth table.
        rows: Lines of the report's recipe by contestant, see `report.of_recipe`.
        view: A key of `VIEWS`.
        group: Which panels: a key of `GROUPS`.
    """
    paths, kind = truth.half(report['half']), VIEWS[view]
    seeds = np.stack([true_values(paths, kind.truth, seed) for seed in range(report['truth']['seeds'])])
    everyone = scores_of(truth, rows, report['half'], kind.estimate)
    words = WORDS[kind.truth]

    def draw(axes: Any, name: str) -> None:
        unit, scale = COSTS.get(name, ('native score' if name.endswith(NATIVE) else '', 1))
        x, scores = seeds.mean(axis=0), np.stack(everyone[name]) / scale
        # Seeds differ in level; the picture is about the order within each seed.
        scores = scores - scores.mean(axis=1, keepdims=True) + scores.mean()
        y, colour = scores.mean(axis=0), colour_of(name)
        bars = dict(fmt='none', ecolor=colour, elinewidth=0.6, alpha=0.3)
        axes.errorbar(x, y, xerr=np.abs(seeds - x).max(axis=0), yerr=np.abs(scores - y).max(axis=0), **bars)
        axes.scatter(x, y, s=9, color=colour, linewidths=0)
        title = f'{report["labels"][name]}\n{_tau(report[view]["contestants"][name])}'
        axes.set_title(title, fontsize=9)
        axes.set_ylabel(unit, fontsize=8)

    below = f'true {words}, mean and range of {len(seeds)} seeds (attainable tau: {report[view]["attainable_tau"]:.2f})'
    if report['warning']:
        below += f'\nWarning: {report["warning"]}'
    caption = (
        f'{GROUP_WORDS[group]}. Estimated {WORDS[kind.estimate]} against true {words}, {report["paths"]} paths of '
        f'{HALF_WORDS[report["half"]]}; '
        f'mean and range of the seeds, each centred; tau with its 95 % interval over paths.'
    )
    shown = [n for n in everyone if n.removesuffix(NATIVE) in GROUPS[group]]
    order = shown if group else [*shown, 'macs', 'params']
    return _panels(order, draw, caption, below, f'estimated {WORDS[kind.estimate]}')


def forest_figure(report: Mapping[str, Any], view: str) -> Figure:
    """Every contestant's tau with its interval, sorted, beside the attainable level.

    Args:
        report: Result of `report.compute`.
        view: A key of `VIEWS`.
    """
    part, kind = report[view], VIEWS[view]
    order = sorted(part['contestants'], key=lambda name: part['contestants'][name]['tau']['mean'])

    def draw(axes: Any) -> None:
        axes.figure.set_size_inches(WIDTH, 0.27 * len(order) + 1.1)
        for row, name in enumerate(order):
            entry = part['contestants'][name]['tau']
            low, high = entry['interval']
            colour = colour_of(name)
            axes.plot([low, high], [row, row], color=colour, linewidth=1.6, solid_capstyle='round')
            axes.scatter(
                entry['seeds'], [row] * len(entry['seeds']), s=12, facecolors='none', edgecolors=colour, linewidths=0.8
            )
            axes.scatter([entry['mean']], [row], s=34, color=colour, zorder=3)
        axes.set_yticks(range(len(order)), [report['labels'][name] for name in order], fontsize=9)
        axes.axvline(part['attainable_tau'], color=INK, linewidth=1, linestyle='--')
        axes.axvline(0, color=INK, linewidth=0.6)
        label = f'attainable: {part["attainable_tau"]:.2f}'
        axes.text(part['attainable_tau'] - 0.01, 0, label, ha='right', va='center', fontsize=9, color=INK)
        axes.set_ylim(-0.7, len(order) - 0.3)

    caption = (
        f'How well supernets rank: estimated {WORDS[kind.estimate]} against true {WORDS[kind.truth]}, '
        f'{report["paths"]} networks. Dot: mean of the seeds (circles); line: 95 % interval over networks.'
    )
    return draw_axes(draw, caption, "Kendall's tau", '', 'png')


def _tau(entry: Mapping[str, Any]) -> str:
    low, high = entry['tau']['interval']
    return f'tau {entry["tau"]["mean"]:.2f} [{low:.2f}, {high:.2f}]'


def curves_figure(
    curves: Curves, panels: Mapping[str, str], labels: Mapping[str, str], caption: str, group: str = ''
) -> Figure:
    """Curves over path units, one panel per quantity: the mean over the seeds, and their range as a band.

    Args:
        curves: Result of `report.curves`.
        panels: Titles by quantity.
        labels: Names of the contestants in the legend.
        caption: What the picture shows.
        group: Which curves: a key of `GROUPS`.

    Raises:
        ValueError: No panel has a curve.
    """
    curves = {q: {n: seeds for n, seeds in table.items() if n in GROUPS[group]} for q, table in curves.items()}
    present = [name for name in panels if curves.get(name)]
    if not present:
        raise ValueError(f'no curves of {list(panels)}, only of {sorted(curves)}')

    def draw(axes: Any, quantity: str) -> None:
        for name, seeds in curves[quantity].items():
            length = min(map(len, seeds))  # equal for equal recipes
            table = np.array([points[:length] for points in seeds], dtype=float)  # None, not measured: nan
            table = table[:, np.isfinite(table[..., 1]).all(axis=0)]
            x, y = table[..., 0].mean(axis=0), table[..., 1]
            axes.plot(x, y.mean(axis=0), color=colour_of(name), linewidth=1.6, label=labels[name])
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour_of(name), alpha=0.15, linewidth=0)
        axes.set_title(panels[quantity], fontsize=9)
        axes.set_xlim(left=0)

    return _panels(present, draw, caption, 'path units', '')


def _panels(names: Sequence[str], draw: Any, caption: str, xlabel: str, ylabel: str) -> Figure:
    """A grid of panels in one PNG, with one legend and shared axis names."""
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

    return draw_axes(grid, caption, '', '', 'png')
