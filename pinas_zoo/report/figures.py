"""Figures of a run: curves, search trace, Pareto picture. matplotlib is imported only when a figure needs it.

Drawings are inline SVG with text in `currentColor`, so that they follow the page's light or dark setting.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, cycle
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pinas_zoo.files import numbered_lines, write_bytes
from pinas_zoo.search.log import SearchRecord, finished, ranked
from pinas_zoo.search.pareto import pareto_front

Points = Sequence[tuple[float, float]]
Kind = Literal['svg', 'png']
#: Line colours that are visible on white and on near-black.
LINES = ('#3f86d1', '#e0782f', '#2f9e77', '#b065c9', '#d24d67', '#8a9099')
#: Placeholder for the text colour while matplotlib draws; becomes `currentColor` in the SVG.
INK = '#010203'


@dataclass(frozen=True)
class Figure:
    """A picture with its caption.

    Args:
        caption: Line below the picture.
        data: SVG text, or the bytes of a PNG or JPEG.
        alt: Text for screen readers; the caption if empty.
        wide: Take the full width of the page instead of half of it.

    Raises:
        ValueError: The data are neither SVG text nor PNG nor JPEG bytes, or the SVG contains a script.
    """

    caption: str
    data: str | bytes
    alt: str = ''
    wide: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            good = self.data.startswith('<svg') and '<script' not in self.data.lower()
        else:
            good = self.data.startswith((b'\x89PNG\r\n', b'\xff\xd8\xff'))
        if not good:
            raise ValueError(f'a figure must be SVG text without scripts, PNG or JPEG bytes, got {self.data[:40]!r}')

    def save(self, path: str | Path) -> None:
        """Writes the picture alone, with the suffix of its data type."""
        data = self.data
        if isinstance(data, str):
            # On its own, a drawing needs its namespaces and a colour for its text.
            spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#222"'
            data = data.replace('<svg', f'<svg {spaces}', 1).encode()
        write_bytes(path, data)


def read_scalars(path: str | Path, *more: str | Path) -> dict[str, list[tuple[float, float]]]:
    """Reads mmengine's scalars (vis_data/scalars.json, JSON lines).

    Args:
        path: The file; an incomplete last line is ignored.
        more: Files of the same run that continue it. If a step was repeated, the later file counts.

    Returns:
        Curves by name, each a list of (step, value) by ascending step.

    Raises:
        ValueError: A line before the last is unreadable, or one has no number as step or iter.
    """
    curves: dict[str, dict[float, float]] = {}
    for file in (path, *more):
        if not Path(file).is_file():
            raise FileNotFoundError(f'{file} does not exist')
        for number, _, values in numbered_lines(file):
            step = values.get('step', values.get('iter')) if isinstance(values, dict) else None
            if not isinstance(step, (int, float)):
                raise ValueError(f'{file}: line {number} has no number step or iter: {values!r:.80}')
            for name, value in values.items():
                number_like = isinstance(value, (int, float)) and not isinstance(value, bool)
                if number_like and name not in ('step', 'iter', 'epoch'):
                    curves.setdefault(name, {})[step] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def curve_figure(
    series: Mapping[str, Points],
    *,
    caption: str,
    ylabel: str = '',
    smooth: int = 1,
    lines: Mapping[str, float] | None = None,
    colours: Sequence[str] = LINES,
) -> Figure:
    """Draws curves over the iterations.

    Args:
        series: Points by curve name.
        caption: Line below the figure.
        ylabel: Name of the y axis.
        smooth: Width of a centred mean, in points; above 1 the raw values remain visible, faint.
        lines: Levels to mark with a dashed line, by name.
        colours: Colours of the curves, in their order.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No series has a point, or `smooth` is below 1.
    """
    if smooth < 1 or not any(len(points) for points in series.values()):
        raise ValueError(f'a curve needs points, and smooth of at least 1; got {list(series)} and {smooth}')

    def draw(axes: Any) -> None:
        for color, (name, points) in zip(cycle(colours), series.items(), strict=False):
            plot_curve(axes, points, smooth, color=color, linewidth=2, label=name, markersize=4)
        for name, level in (lines or {}).items():
            axes.axhline(level, color=INK, linestyle='--', linewidth=1, alpha=0.7, label=name)

    return draw_axes(draw, caption, 'iteration', ylabel, 'svg')


def plot_curve(axes: Any, points: Points, smooth: int, **look: Any) -> None:
    """Draws one curve: the raw values, faint, below their centred mean; few points as dots.

    Args:
        axes: matplotlib's axes.
        points: At least one.
        smooth: Width of the mean, in points; 1 draws the raw values only.
        look: matplotlib's settings of the line.
    """
    x, y = ([point[axis] for point in points] for axis in (0, 1))
    few = len(points) < 12
    if smooth > 1 and not few:
        axes.plot(x, y, color=look['color'], alpha=0.3, linewidth=1)
        half = smooth // 2
        y = [fmean(y[max(0, place - half) : place + half + 1]) for place in range(len(y))]
    axes.plot(x, y, marker='o' if few else None, **look)


#: Axis names by the objective of a search.
_SCORE_NAMES = {'top1': 'accuracy', 'loss': 'held-out loss'}


def _sign(objective: str) -> int:
    if objective not in _SCORE_NAMES:
        raise ValueError(f'objective {objective!r} is unknown, allowed: {sorted(_SCORE_NAMES)}')
    return -1 if objective == 'loss' else 1


def search_trace_figure(
    records: Sequence[SearchRecord | Mapping[str, Any]],
    *,
    caption: str = 'Search: every evaluation and the best so far',
    objective: str = 'top1',
    random_mean: float | None = None,
    kind: Kind = 'svg',
) -> Figure:
    """Draws the score of every evaluation and the best so far.

    Args:
        records: `SearchLog.records`, or their fields as dicts.
        caption: Line below the figure.
        objective: 'top1': scores as they are; 'loss': the loss itself, lower is better (scores are minus the loss).
        random_mean: Mean of random architectures in the unit of the axis, marked if given.
        kind: ``'svg'`` for the page, ``'png'`` for a file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `records` is empty.
    """
    rows, sign = _records(records), _sign(objective)
    values = [sign * row.score for row in rows]
    best = list(accumulate(values, min if sign < 0 else max))

    def draw(axes: Any) -> None:
        x = range(1, len(rows) + 1)
        axes.scatter(x, values, s=12, color=LINES[0], alpha=0.55, linewidths=0, label='evaluated')
        axes.step(x, best, where='post', color=LINES[1], linewidth=2, label='best so far')
        if random_mean is not None:
            axes.axhline(random_mean, color=INK, linestyle='--', linewidth=1, alpha=0.7, label='mean of random')

    return draw_axes(draw, caption, 'evaluation', _SCORE_NAMES[objective], kind)


def pareto_figure(
    records: Sequence[SearchRecord | Mapping[str, Any]],
    *,
    objective: str = 'top1',
    kind: Kind = 'svg',
) -> Figure:
    """Draws scores against multiply-accumulates with the Pareto front, and a star on the best.

    Args:
        records: `SearchLog.records`, or their fields as dicts; those without `macs` are left out.
        objective: As for `search_trace_figure`.
        kind: ``'svg'`` for the page, ``'png'`` for a file.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No record has `macs`.
    """
    rows = [row for row in _records(records) if row.macs is not None]
    if not rows:
        raise ValueError('a Pareto figure needs records with macs, got none')
    unit, scale = ('GMACs', 1e9) if max(row.macs or 0 for row in rows) >= 1e9 else ('MMACs', 1e6)
    points = [((row.macs or 0) / scale, row.score) for row in rows]
    whole = [((row.macs or 0) / scale, row.score) for row in finished(rows)]
    front, sign = [whole[index] for index in pareto_front(whole)], _sign(objective)
    points, front = ([(cost, sign * score) for cost, score in part] for part in (points, front))
    best = rows.index(ranked(rows)[0])

    def draw(axes: Any) -> None:
        axes.scatter(*zip(*points, strict=True), s=14, color=LINES[0], alpha=0.45, linewidths=0, label='evaluated')
        axes.step(*zip(*front, strict=True), where='post', color=LINES[2], linewidth=1.5, alpha=0.8)
        axes.plot(*zip(*front, strict=True), 'o', color=LINES[2], markersize=5, label='Pareto front')
        axes.plot(*points[best], '*', color=LINES[1], markersize=15, label=f'best: {rows[best].arch}')

    caption = 'Loss against cost' if objective == 'loss' else 'Accuracy against cost'
    return draw_axes(draw, caption, unit, _SCORE_NAMES[objective], kind)


def _records(records: Sequence[SearchRecord | Mapping[str, Any]]) -> list[SearchRecord]:
    if not records:
        raise ValueError('a search figure needs at least one record')
    return [row if isinstance(row, SearchRecord) else SearchRecord(**row) for row in records]


@contextmanager
def canvas_of(size: tuple[float, float], style: Mapping[str, Any]) -> Iterator[Any]:
    """matplotlib's figure in the style of this project, whatever the user's settings are.

    Args:
        size: Width and height in inches.
        style: Further settings (rcParams).

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas  # no pyplot: no global figures, no display
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'pinas-zoo[search]'") from error
    own = {'backend': 'agg', 'font.size': 10, 'axes.grid': True, 'axes.axisbelow': True}
    own |= {'axes.spines.top': False, 'axes.spines.right': False, 'axes.formatter.useoffset': False}
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **own, **style}
    with matplotlib.rc_context(settings):
        yield Canvas(figsize=size, layout='constrained')


def draw_axes(draw: Callable[[Any], None], caption: str, xlabel: str, ylabel: str, kind: Kind) -> Figure:
    """Draws on one pair of axes in the style of the page.

    Args:
        draw: Function that draws on the given axes.
        caption: Caption of the figure.
        xlabel: Name of the horizontal axis.
        ylabel: Name of the vertical axis.
        kind: ``'svg'`` for the page, ``'png'`` for a file.

    Raises:
        ValueError: `kind` is neither.
        ImportError: matplotlib is not installed.
    """
    if kind not in ('svg', 'png'):
        raise ValueError(f"kind must be 'svg' or 'png', got {kind!r}")
    ink: dict[str, Any] = {f'{name}.color': INK for name in ('text', 'xtick', 'ytick', 'grid')}
    ink |= {'axes.labelcolor': INK, 'axes.edgecolor': INK, 'grid.alpha': 0.15}
    ink |= {'svg.hashsalt': 'pinas_zoo', 'legend.fontsize': 9, 'legend.framealpha': 0}
    with canvas_of((4.4, 3.2), ink) as canvas:
        axes = canvas.add_subplot()
        draw(axes)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(names := axes.get_legend_handles_labels()[1]) > 1:
            # Above the axes, where it does not cover points.
            canvas.legend(loc='outside upper center', ncols=min(3, len(names)), handlelength=1.4, columnspacing=1.2)
        buffer = io.BytesIO()
        if kind == 'png':
            canvas.savefig(buffer, format='png', dpi=200, facecolor='white')
            return Figure(caption, buffer.getvalue())
        plain = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        canvas.savefig(buffer, format='svg', transparent=True, metadata=plain)
    svg = buffer.getvalue().decode()
    svg = svg[svg.index('<svg') :].strip().replace(INK, 'currentColor')
    # matplotlib repeats every text in a comment.
    svg = re.sub(r'<!--.*?-->', '', svg, flags=re.DOTALL)
    # Inline in HTML the namespaces are implied; a fixed size would not shrink with the column.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', '', svg)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r'<svg\1', svg)
    svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r'<svg\1', svg)
    return Figure(caption, svg)
