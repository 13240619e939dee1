"""Learning curves of several runs in one picture, one panel per key. matplotlib is imported only for drawing."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from math import isfinite
from pathlib import Path
from typing import Any

from pinas_zoo.report.figures import LINES, Points, canvas_of, plot_curve, read_scalars

__all__ = ['Run', 'choose_keys', 'draw_curves', 'read_run']

#: Entries of a log that are not results; left out unless asked for.
MACHINE = ('base_lr', 'data_time', 'grad_norm', 'images_per_second', 'lr', 'memory', 'momentum', 'time')


@dataclass(frozen=True)
class Run:
    """The scalars of one run.

    Args:
        name: Its line in the legend.
        scalars: Points (step, value) by key.
    """

    name: str
    scalars: Mapping[str, Points]


def read_run(log: str | Path, name: str | None = None) -> Run:
    """Reads mmengine's scalars.

    Args:
        log: A file of JSON lines, such as vis_data/scalars.json, or a work dir, whose runs are joined.
        name: Its name; None takes that of the work dir.

    Raises:
        ValueError: The log does not exist, or is unreadable or empty.
    """
    log = Path(log)
    files = [log] if log.is_file() else sorted(log.glob('*/vis_data/scalars.json')) or sorted(log.glob('scalars.json'))
    if not files:
        raise ValueError(
            f'{log} is not a log: neither a file of JSON lines, nor a work dir with */vis_data/scalars.json'
        )
    scalars = read_scalars(*files)
    if not scalars:
        raise ValueError(f'{log}: no number in {", ".join(map(str, files))}')
    if name is None:
        # WORK_DIR/TIMESTAMP/vis_data/scalars.json is named as WORK_DIR is.
        inside = log.is_file() and log.parent.name == 'vis_data'
        name = log.resolve().parents[2].name if inside else log.stem if log.is_file() else log.resolve().name
    return Run(name, scalars)


def choose_keys(runs: Sequence[Run], patterns: Sequence[str] | None = None) -> list[str]:
    """The keys to draw.

    Args:
        runs: The runs.
        patterns: Names or shell patterns such as ``loss*``; None takes everything that is not a time, memory or rate.

    Raises:
        ValueError: No key matches a pattern; the message lists the keys.
    """
    known = sorted({key for run in runs for key in run.scalars})
    if patterns is None:
        chosen = [key for key in known if key.rsplit('/', 1)[-1] not in MACHINE]
        return chosen or known
    chosen = []
    for pattern in patterns:
        fitting = [key for key in known if fnmatch(key, pattern)]
        if not fitting:
            raise ValueError(f'no key matches {pattern!r}; there are: {", ".join(known)}')
        chosen += fitting
    return list(dict.fromkeys(chosen))


def draw_curves(runs: Sequence[Run], keys: Sequence[str], smooth: int = 1, title: str = '') -> bytes:
    """Draws one panel per key, with a line for each run that has it.

    Args:
        runs: One or more runs; their names differ.
        keys: Keys to draw.
        smooth: Width of a centred mean, in points; above 1 the raw values remain visible, faint.
        title: Title above the panels.

    Returns:
        A PNG.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is nothing to draw, two runs have the same name, or `smooth` is below 1.
    """
    names = [run.name for run in runs]
    if not runs or not keys or smooth < 1 or len(set(names)) < len(names):
        raise ValueError(
            f'curves need keys, runs of different names, and smooth of at least 1; got runs {names}, '
            f'keys {list(keys)}, smooth {smooth}'
        )
    columns = min(len(keys), 3 if len(keys) > 4 else 2)
    rows = -(-len(keys) // columns)
    with canvas_of((4.6 * columns, 3.1 * rows + 0.4), {'axes.titlesize': 11, 'grid.alpha': 0.2}) as canvas:
        if title:
            canvas.suptitle(title, fontsize=13)
        grid = canvas.subplots(rows, columns, squeeze=False).flat
        end = max((step for run in runs for key in keys for step, _ in run.scalars.get(key, ())), default=0)
        for key, axes in zip(keys, grid, strict=False):
            _panel(axes, runs, key, smooth)
            axes.set_xlim(0, 1.02 * end or 1)  # the same in all panels
        for axes in grid:  # panels of the last row without a key
            axes.set_axis_off()
        _legend(canvas, names, smooth)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format='png', dpi=150, facecolor='white')
    return buffer.getvalue()


def _colour(index: int) -> str:
    return LINES[index % len(LINES)]


def _legend(canvas: Any, names: Sequence[str], smooth: int) -> None:
    """Names of several runs, and what is faint and what bold, below the panels."""
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, Any]] = {}
    if len(names) > 1:
        looks = {name: dict(color=_colour(index), linewidth=2.5) for index, name in enumerate(names)}
    if smooth > 1:
        looks[f'faint: raw, bold: mean of {smooth}'] = dict(color='black', alpha=0.3, linewidth=1)
    if looks:
        handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
        # A letter is about a twelfth of an inch wide, a line with its gaps five letters.
        fitting = max(1, int(12 * canvas.get_figwidth() / (max(map(len, looks)) + 5)))
        canvas.legend(handles=handles, loc='outside lower center', ncols=min(len(looks), fitting), frameon=False)


def _panel(axes: Any, runs: Sequence[Run], key: str, smooth: int) -> None:
    """One key of all runs that have it."""
    for index, run in enumerate(runs):
        points = [(x, y) for x, y in run.scalars.get(key, ()) if isfinite(y)]
        if not points:
            continue
        # If there are more runs than colours, dashes distinguish them.
        dashes = ('-', '--', ':', '-.')[index // len(LINES) % 4]
        plot_curve(axes, points, smooth, color=_colour(index), linestyle=dashes, linewidth=1.8, markersize=4.5)
    axes.set_title(key, loc='left')
    axes.set_xlabel('iteration')
