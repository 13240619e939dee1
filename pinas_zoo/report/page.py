"""The report page that the quickstart writes at the end, rendered with page.html.j2. No torch, no mm.

The page is a single file: inline styles, drawings as inline SVG, pictures as data URIs. It makes no requests, follows
the reader's light or dark setting, and reads well on a phone.

    write_report('report.html', 'Quickstart', [
        Section('Search', [search_trace_figure(records), pareto_figure(records)]),
        Section('Result', [Table(('task', 'ours', 'random'), [('box AP', 0.41, 0.33)])]),
    ])
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pinas_zoo.files import write_text
from pinas_zoo.report.architecture import arch_figure
from pinas_zoo.report.figures import (
    Figure,
    curve_figure,
    pareto_figure,
    read_scalars,
    search_trace_figure,
)

__all__ = [
    'Facts',
    'Figure',
    'Note',
    'Section',
    'Step',
    'Steps',
    'Table',
    'arch_figure',
    'curve_figure',
    'pareto_figure',
    'read_scalars',
    'search_trace_figure',
    'write_report',
]


@dataclass(frozen=True)
class Table:
    """A table; on a narrow screen every row becomes a card.

    Args:
        header: Column names; the first column names the row.
        rows: Cells as text or numbers; floats are shown with four digits, None as a dash.
        caption: Line above the table.
        strong: Index of the row to highlight, if any.

    Raises:
        ValueError: A row and the header differ in length.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ''
    strong: int | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f'a row needs {len(self.header)} cells {tuple(self.header)}, got {tuple(row)}')

    def numeric_columns(self) -> list[bool]:
        """Whether a column contains only numbers and dashes."""
        columns = range(len(self.header))
        return [all(isinstance(row[column], (int, float, type(None))) for row in self.rows) for column in columns]


@dataclass(frozen=True)
class Step:
    """One step of a job: its name, its wall-clock seconds (None: not run), and a word on its result."""

    name: str
    seconds: float | None = None
    outcome: str = ''


@dataclass(frozen=True)
class Steps:
    """A numbered list of steps with times, their share as bars, and the total."""

    steps: Sequence[Step]

    def total(self) -> float:
        """Seconds of all steps together."""
        return sum(step.seconds or 0 for step in self.steps)


@dataclass(frozen=True)
class Facts:
    """Named values, as a list or, if `large`, as tiles for the few numbers that matter most."""

    values: Mapping[str, object]
    large: bool = False


@dataclass(frozen=True)
class Note:
    """A remark that must not be overlooked, such as what a number does not show."""

    text: str


Item = Figure | Table | Steps | Facts | Note | str


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; neighbouring figures are side by side if there is room."""

    title: str
    items: Sequence[Item] = field(default_factory=tuple)

    def blocks(self) -> list[tuple[str, Any]]:
        """The items with their kinds; neighbouring figures become one list of the kind 'figures'.

        Raises:
            TypeError: An item is of an unknown kind.
        """
        blocks: list[tuple[str, Any]] = []
        for item in self.items:
            if not isinstance(item, Item):
                raise TypeError(
                    f'a section takes Figure, Table, Steps, Facts, Note or str items, got {type(item).__name__}'
                )
            if not isinstance(item, Figure):
                blocks.append((type(item).__name__, item))
            elif blocks and blocks[-1][0] == 'figures':
                blocks[-1][1].append(item)
            else:
                blocks.append(('figures', [item]))
        return blocks


def write_report(path: str | Path, title: str, sections: Sequence[Section], lead: str = '') -> Path:
    """Writes a self-contained HTML page; an existing page is replaced only when the new one is complete.

    Args:
        path: The file; its folder is created.
        title: Title of the page.
        sections: Its parts; plain strings among their items become paragraphs. All text is escaped.
        lead: One or two sentences below the title.

    Returns:
        The path.

    Examples:
        >>> import tempfile
        >>> path = write_report(f'{tempfile.mkdtemp()}/report.html', 'A < B', [Section('One', ['text'])])
        >>> '<h1>A &lt; B</h1>' in path.read_text()
        True
    """
    page = _environment().get_template('page.html.j2').render(title=title, lead=lead, sections=sections)
    write_text(path, page)
    return Path(path)


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # installed with torch; needed only for pages
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader('pinas_zoo.report', ''), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {'cell': _cell, 'duration': _duration, 'data_uri': _data_uri, 'drawing': Markup}
    return environment


def _data_uri(picture: bytes) -> str:
    kind = 'png' if picture.startswith(b'\x89PNG') else 'jpeg'
    return f'data:image/{kind};base64,{base64.b64encode(picture).decode()}'


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return 'not run'
    if seconds < 60:
        return f'{seconds:.1f} s'
    hours, rest = divmod(round(seconds), 3600)
    return f'{hours} h {rest // 60:02d} min' if hours else f'{rest // 60} min {rest % 60:02d} s'


def _cell(value: object) -> str:
    if value is None:
        return '–'
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'
