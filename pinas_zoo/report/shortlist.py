"""Figures of a shortlist: networks that a search chose and random ones, each trained alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pinas_zoo.report.figures import LINES, Figure, draw_axes

__all__ = ['Network', 'estimate_figure', 'group_figure', 'networks_of']

#: One colour per meaning, in both figures and in that of the search.
COLOURS = {'top': LINES[0], 'random': LINES[5]}
CHOSEN = LINES[1]


@dataclass(frozen=True)
class Network:
    """A network of a shortlist.

    Args:
        groups: 'top', 'random' or both.
        estimate: Its loss in the supernet.
        accuracy: Its accuracy when trained alone, in percent.
        chosen: Whether it was selected in the end.
    """

    groups: tuple[str, ...]
    estimate: float
    accuracy: float
    chosen: bool


def networks_of(shortlist: Mapping[str, Any]) -> list[Network]:
    """The networks in the content of a `shortlist.json`."""
    metric, estimate = shortlist['metric'], shortlist['kendall_tau']['estimate']
    return [
        Network(tuple(row['groups']), row['estimate'][estimate], row['test'][metric], row['arch'] == shortlist['arch'])
        for row in shortlist['networks']
    ]


def group_figure(networks: Sequence[Network], caption: str) -> Figure:
    """Draws the accuracies of both groups of a shortlist as dots, with their means.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: A group is empty.
    """
    groups = {name: [net for net in networks if name in net.groups] for name in COLOURS}
    if not all(groups.values()):
        raise ValueError(f'both groups need a network, got { ({name: len(nets) for name, nets in groups.items()}) }')

    def draw(axes: Any) -> None:
        for row, (name, nets) in enumerate(groups.items()):
            values = sorted(net.accuracy for net in nets)
            # Neighbours are drawn at different heights, so that equal values appear as two dots.
            heights = [row + 0.09 * (place % 3 - 1) for place in range(len(values))]
            axes.scatter(values, heights, s=42, color=COLOURS[name], alpha=0.85, linewidths=0, zorder=3)
            mean = fmean(values)
            label = 'mean of the group' if not row else None
            axes.plot([mean, mean], [row - 0.28, row + 0.28], color=COLOURS[name], linewidth=2.5, zorder=2, label=label)
            axes.text(mean, row - 0.34, f'{mean:.1f}', ha='center', va='bottom', fontsize=9)
        for net in networks:
            if net.chosen:
                axes.plot(net.accuracy, 0, '*', color=CHOSEN, markersize=14, zorder=4, label='chosen')
        axes.set_yticks(range(len(groups)), [f'{len(nets)} {NAMES[name]}' for name, nets in groups.items()])
        axes.set_ylim(len(groups) - 0.45, -0.6)
        axes.grid(axis='y', visible=False)
        axes.margins(x=0.08)

    return draw_axes(draw, caption, 'accuracy, each network trained alone / %', '', 'svg')


NAMES = {'top': 'best of\nthe search', 'random': 'random'}


def estimate_figure(networks: Sequence[Network], caption: str) -> Figure:
    """Draws the loss in the supernet against the accuracy of each network of a shortlist alone.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `networks` is empty.
    """
    if not networks:
        raise ValueError('an estimate figure needs at least one network')

    def draw(axes: Any) -> None:
        for name, colour in COLOURS.items():
            nets = [net for net in networks if net.groups[0] == name]
            points = [net.estimate for net in nets], [net.accuracy for net in nets]
            label = NAMES[name].replace('\n', ' ')
            axes.scatter(*points, s=42, color=colour, alpha=0.85, linewidths=0, label=label, zorder=3)
        for net in networks:
            if net.chosen:
                axes.plot(net.estimate, net.accuracy, '*', color=CHOSEN, markersize=14, label='chosen', zorder=4)
        axes.margins(0.08)

    return draw_axes(draw, caption, 'held-out loss in the supernet (lower is better)', 'accuracy alone / %', 'svg')
