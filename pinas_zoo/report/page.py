"""The report page that the quickstart ends with. No torch, no mm.

The page is one file: styles inline, drawings as inline SVG, pictures as data URIs. It makes no request, follows the
reader's light or dark setting, and reads well on a phone.

    write_report('report.html', 'Quickstart', [
        Section('Search', [search_trace_figure(records), pareto_figure(records)]),
        Section('Result', [Table(('task', 'ours', 'random'), [('box AP', 0.41, 0.33)])]),
    ])
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

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
        strong: Index of the row to stress, if any.

    Raises:
        ValueError: A row has another length than the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ''
    strong: int | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f'a row needs {len(self.header)} cells {tuple(self.header)}, got {tuple(row)}')


@dataclass(frozen=True)
class Step:
    """One step of a job: its name, its wall-clock seconds (None: not run), and a word on its outcome."""

    name: str
    seconds: float | None = None
    outcome: str = ''


@dataclass(frozen=True)
class Steps:
    """A numbered list of steps with times, their share as bars, and the total."""

    steps: Sequence[Step]


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
    """A headed part of the page; neighbouring figures stand side by side where there is room."""

    title: str
    items: Sequence[Item] = field(default_factory=tuple)


def write_report(path: str | Path, title: str, sections: Sequence[Section], lead: str = '') -> Path:
    """Writes a self-contained HTML page; an existing page stays whole until the new one is.

    Args:
        path: The file; its folder is created.
        title: Title of the page.
        sections: Its parts; plain strings among their items are paragraphs. All text is escaped.
        lead: One or two sentences below the title.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> path = write_report(f'{tempfile.mkdtemp()}/report.html', 'A < B', [Section('One', ['text'])])
        >>> '<h1>A &lt; B</h1>' in path.read_text()
        True
    """
    links = ''.join(f'<a href="#s{i}">{escape(section.title)}</a>' for i, section in enumerate(sections))
    body = ''.join(
        f'<section id="s{i}"><h2>{escape(section.title)}</h2>{_items(section.items)}</section>'
        for i, section in enumerate(sections)
    )
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ''
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>{CSS}</style></head>\n'
        f'<body><header><h1>{escape(title)}</h1>{intro}<nav>{links}</nav></header>\n<main>{body}</main></body></html>\n'
    )
    write_text(path, page)
    return Path(path)


def _items(items: Sequence[Item]) -> str:
    out, run = [], []
    for item in [*items, None]:
        if isinstance(item, Figure):
            run.append(_figure(item))
            continue
        if run:
            out.append(f'<div class="figures">{"".join(run)}</div>')
            run = []
        if item is not None:
            out.append(_item(item))
    return '\n'.join(out)


def _item(item: Item) -> str:
    if isinstance(item, str):
        return f'<p>{escape(item)}</p>'
    if isinstance(item, Note):
        return f'<p class="note">{escape(item.text)}</p>'
    if isinstance(item, Facts):
        pairs = ''.join(f'<div><dt>{escape(k)}</dt><dd>{_cell(v)}</dd></div>' for k, v in item.values.items())
        return f'<dl class="{"tiles" if item.large else "facts"}">{pairs}</dl>'
    if isinstance(item, Steps):
        return _steps(item.steps)
    if isinstance(item, Table):
        return _table(item)
    raise TypeError(f'a section holds Figure, Table, Steps, Facts, Note or str, got {type(item).__name__}')


def _figure(figure: Figure) -> str:
    alt = escape(figure.alt or figure.caption)
    if isinstance(figure.data, str):
        picture = f'<div class="drawing" role="img" aria-label="{alt}">{figure.data}</div>'
    else:
        kind = 'png' if figure.data.startswith(b'\x89PNG') else 'jpeg'
        data = base64.b64encode(figure.data).decode()
        picture = f'<img alt="{alt}" src="data:image/{kind};base64,{data}">'
    style = ' class="wide"' if figure.wide else ''
    return f'<figure{style}>{picture}<figcaption>{escape(figure.caption)}</figcaption></figure>'


def _table(table: Table) -> str:
    numeric = [
        all(isinstance(row[column], (int, float, type(None))) for row in table.rows)
        for column in range(len(table.header))
    ]
    style = [' class="number"' if is_number else '' for is_number in numeric]
    head = ''.join(f'<th scope="col"{style[i]}>{escape(name)}</th>' for i, name in enumerate(table.header))
    rows = []
    for index, row in enumerate(table.rows):
        cells = ''.join(
            f'<td data-name="{escape(table.header[i])}"{style[i]}>{_cell(row[i])}</td>' for i in range(1, len(row))
        )
        strong = ' class="strong"' if index == table.strong else ''
        rows.append(f'<tr{strong}><th scope="row">{_cell(row[0])}</th>{cells}</tr>')
    caption = f'<caption>{escape(table.caption)}</caption>' if table.caption else ''
    return f'<table>{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _steps(steps: Sequence[Step]) -> str:
    total = sum(step.seconds or 0 for step in steps)
    rows = []
    for step in steps:
        share = 100 * (step.seconds or 0) / total if total else 0
        outcome = f'<small>{escape(step.outcome)}</small>' if step.outcome else ''
        rows.append(
            f'<li><span>{escape(step.name)}{outcome}</span><time>{_duration(step.seconds)}</time>'
            f'<i style="width:{share:.1f}%"></i></li>'
        )
    rows.append(f'<li class="total"><span>Total</span><time>{_duration(total)}</time></li>')
    return f'<ol class="steps">{"".join(rows)}</ol>'


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
        return escape(str(value))
    return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1c2024;--soft:#5b6470;--line:#dfe3e8;--accent:#2667b0;
--warm:#fff6e6;--edge:#d98a1f}
@media(prefers-color-scheme:dark){:root{--page:#14171a;--card:#1d2125;--ink:#e8eaed;--soft:#a3acb7;--line:#343a41;
--accent:#7fb4ee;--warm:#2b2417;--edge:#d99a3f}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif;overflow-wrap:anywhere;-webkit-text-size-adjust:100%}
header,main{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:36px}
h1{font-size:clamp(26px,4vw,36px);line-height:1.2;margin:0 0 8px}
h2{font-size:21px;line-height:1.3;margin:0 0 14px}
p{margin:0 0 14px;max-width:75ch}
.lead{color:var(--soft);font-size:17px}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;margin:4px 0 22px}
a{color:var(--accent);text-decoration:none}
a:hover{text-decoration:underline}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:24px;margin:0 0 22px}
section>:last-child{margin-bottom:0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:24px;margin:0 0 18px;
align-items:start}
figure{margin:0;min-width:0}
figure.wide{grid-column:1/-1}
figure img,.drawing svg{display:block;width:100%;height:auto}
figure img{border-radius:6px}
figure:not(.wide) .drawing{max-width:560px;margin:0 auto}
figcaption{color:var(--soft);font-size:14px;margin-top:8px;text-align:center}
table{border-collapse:collapse;width:100%;margin:0 0 18px;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:14px;padding-bottom:6px}
th,td{text-align:left;padding:8px 12px;border-bottom:1px solid var(--line);vertical-align:top}
thead th{font-size:14px;color:var(--soft);border-bottom-width:2px}
tbody th{font-weight:500}
.number{text-align:right}
tr.strong>*{font-weight:700}
.note{background:var(--warm);border-left:4px solid var(--edge);border-radius:4px;padding:10px 14px;max-width:none}
dl{margin:0 0 18px}
dt{color:var(--soft);font-size:14px}
dd{margin:0;font-variant-numeric:tabular-nums}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,240px),1fr));gap:12px 24px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px}
.tiles>div{border:1px solid var(--line);border-radius:10px;padding:12px 14px;display:flex;flex-direction:column-reverse;
justify-content:flex-end}
.tiles dd{font-size:26px;font-weight:700;line-height:1.25}
.steps{list-style:none;counter-reset:step;margin:0 0 18px;padding:0}
.steps li{counter-increment:step;position:relative;display:flex;gap:12px;padding:9px 0 11px;
border-bottom:1px solid var(--line)}
.steps li::before{content:counter(step);flex:0 0 26px;height:26px;border-radius:13px;text-align:center;font-size:14px;
line-height:26px;background:var(--line)}
.steps span{flex:1}
.steps small{display:block;color:var(--soft);font-size:14px}
.steps time{white-space:nowrap;font-variant-numeric:tabular-nums}
.steps i{position:absolute;left:0;bottom:-1px;height:3px;border-radius:2px;background:var(--accent)}
.steps .total{font-weight:700;border-bottom:0}
.steps .total::before{content:"";background:none}
@media(max-width:600px){
header,main{padding:0 12px}
header{padding-top:22px}
section{padding:16px 14px;border-radius:10px;margin-bottom:14px}
.tiles{grid-template-columns:1fr 1fr}
.tiles dd{font-size:22px}
table,caption,tbody,tr,tbody th,td{display:block}
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
tr{border-bottom:1px solid var(--line);padding:8px 0}
tr:last-child{border-bottom:0}
tbody th,td{border:0;padding:2px 0}
tbody th{font-weight:700}
td{display:flex;justify-content:space-between;gap:16px;text-align:right}
td::before{content:attr(data-name);color:var(--soft);text-align:left}
}
@media print{section{break-inside:avoid}}
"""
