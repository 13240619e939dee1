"""The report page: self-contained, escaped, legible on a phone; figures and scalars."""

from __future__ import annotations

import base64
import builtins
import json
import os
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pinas_zoo.report.page import (
    Facts,
    Figure,
    Note,
    Section,
    Step,
    Steps,
    Table,
    arch_figure,
    curve_figure,
    pareto_figure,
    read_scalars,
    search_trace_figure,
    write_report,
)
from pinas_zoo.search.log import SearchRecord
from pinas_zoo.space import PINAS, PINAS_NANO, SPACES, Candidate

CHROMIUM = shutil.which('chromium')
EVIL = '<script>alert(1)</script> & "quotes" \'too\''
#: The smallest valid PNG: one transparent pixel.
PNG = base64.b64decode(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
)


def records(count: int = 40) -> list[SearchRecord]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        arch = PINAS.sample(rng)
        score, macs = 0.6 + 0.004 * sum(arch) + rng.normal(0, 0.01), 5e9 + 1e7 * sum(arch)
        rows.append(SearchRecord(index, PINAS.format(arch), float(score), 1.0, macs, 27e6, 1.5))
    return rows


def page(path: Path) -> str:
    loss = [(float(x), 5 / (x + 1)) for x in range(60)]
    sections = [
        Section('Result', [Facts({'best': 0.71, 'box AP, searched / random': '0.412 / 0.337'}, large=True)]),
        Section(
            f'Table {EVIL}',
            [
                Table(
                    ('task', 'metric', 'searched and pre-trained', 'random initialisation', 'data'),
                    [('detection', 'box AP', 0.412345, 0.337, EVIL), ('segmentation', 'mIoU', 1, None, 'scenes')],
                    caption=EVIL,
                    strong=0,
                ),
                Note(EVIL),
                EVIL,
            ],
        ),
        Section('Steps', [Steps([Step('Search', 131.9, EVIL), Step('Derive', 2.1), Step(EVIL)])]),
        Section('Data', [Facts({EVIL: EVIL, 'hash': 'f' * 64, 'images': 12000})]),
        Section('Curves', [curve_figure({'loss': loss, EVIL: loss}, caption=EVIL, smooth=5, lines={'floor': 0.1})]),
        Section('Search', [search_trace_figure(records(), random_mean=0.68), pareto_figure(records())]),
        Section('Architecture', [arch_figure(PINAS, '301-3231-203213-032')]),
        Section('Pictures', [Figure(EVIL, PNG), Figure('wide', PNG, alt=EVIL, wide=True)]),
    ]
    return write_report(path, f'Report {EVIL}', sections, lead=EVIL).read_text()


def test_the_page_asks_for_nothing_outside(tmp_path: Path) -> None:
    html = page(tmp_path / 'deep' / 'report.html')
    assert 'http://' not in html and 'https://' not in html and '//' not in re.sub(r'base64,[^"]*', '', html)
    assert not re.search(r'<(link|script|iframe|object|embed)|@import|\bon\w+=', html.replace('lang="en"', ''))
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources and all(source.startswith(('data:image/png;base64,', '#')) for source in sources)
    assert all(reference.startswith('#') for reference in re.findall(r'url\(([^)]*)\)', html))
    assert 'name="viewport"' in html and 'prefers-color-scheme:dark' in html


def test_all_text_is_escaped(tmp_path: Path) -> None:
    html = page(tmp_path / 'report.html')
    assert '<script' not in html and '"quotes"' not in html
    assert html.count('&lt;script&gt;') >= 12
    assert list(tmp_path.iterdir()) == [tmp_path / 'report.html'], 'a temporary file was left'


def test_cells_and_times_are_readable(tmp_path: Path) -> None:
    html = page(tmp_path / 'report.html')
    for text in ('0.4123', '12,000', '2 min 12 s', '2.1 s', 'not run', '2 min 14 s', '>–<', 'class="strong"'):
        assert text in html, text
    long = write_report(tmp_path / 'long.html', 'x', [Section('s', [Steps([Step('a', 7384)])])])
    assert '2 h 03 min' in long.read_text()


def test_an_existing_page_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(tmp_path / 'report.html', 'old', [])

    def fail(_: int) -> None:
        raise OSError('disk full')

    monkeypatch.setattr('pinas_zoo.files.os.fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        write_report(path, 'new', [])
    assert '<h1>old</h1>' in path.read_text()


def test_malformed_parts_are_refused() -> None:
    with pytest.raises(ValueError, match='needs 2 cells'):
        Table(('a', 'b'), [(1, 2), (3,)])
    for data in (b'GIF89a', '<div>', '<svg><script>1</script></svg>', ''):
        with pytest.raises(ValueError, match='a figure must be SVG text'):
            Figure('x', data)
    with pytest.raises(TypeError, match='got int'):
        write_report('unused.html', 'x', [Section('s', [3])])  # type: ignore[list-item]
    assert not Path('unused.html').exists()


# ---- figures --------------------------------------------------------------------------------------------------------


def test_figures_are_inline_svg_that_follows_the_text_colour() -> None:
    for figure in (
        curve_figure({'a': [(0, 1), (1, 2)]}, caption='c'),
        search_trace_figure(records()),
        pareto_figure([asdict(record) for record in records()]),
        arch_figure(PINAS, PINAS.parse('301-3231-203213-032')),
    ):
        assert isinstance(figure.data, str) and 'currentColor' in figure.data
        start = figure.data[: figure.data.index('>')]
        assert 'viewBox' in start and ' width=' not in start and ' height=' not in start
    assert search_trace_figure(records()).data == search_trace_figure(records()).data


def test_figures_are_saved_as_files(tmp_path: Path) -> None:
    search_trace_figure(records(), kind='png').save(tmp_path / 'trace.png')
    pareto_figure(records(), kind='png').save(tmp_path / 'pareto.png')
    for name in ('trace.png', 'pareto.png'):
        data = (tmp_path / name).read_bytes()
        assert data.startswith(b'\x89PNG') and len(data) > 5000
    for figure in (pareto_figure(records()), arch_figure(PINAS_NANO, '01-23-01-23')):
        figure.save(tmp_path / 'figure.svg')
        assert ElementTree.parse(tmp_path / 'figure.svg').getroot().tag == '{http://www.w3.org/2000/svg}svg'


@pytest.mark.parametrize('space', SPACES.values(), ids=SPACES)
def test_the_drawn_architecture_has_every_block(space) -> None:
    arch = space.sample(np.random.default_rng(0))
    figure = arch_figure(space, arch)
    assert space.format(arch) in figure.caption
    digits = re.findall(r'font-weight="700">(\d)</text>', figure.data)
    assert tuple(map(int, digits)) == arch
    for index, candidate in enumerate(space.candidates):
        labels = {space.is_skip(p, index) for p, choice in enumerate(arch) if choice == index}
        drawn = ('skip',) if labels == {True} else candidate.label() if labels else ()
        if isinstance(candidate, Candidate):
            kernel = '' if candidate.kernel == 3 else f' k{candidate.kernel}'
            assert candidate.label() == (
                f'r{candidate.radix} c{candidate.cardinality}',
                f'w{candidate.base_width}{kernel}',
            )
        assert all(f'>{label}</text>' in figure.data for label in drawn)
    with pytest.raises(ValueError, match='not an architecture'):
        arch_figure(space, '0')


def test_the_drawn_sizes_are_those_of_the_images() -> None:
    assert '32 channels · 5 × 10 px' in arch_figure(SPACES['pinas_patch'], '42-12', size=(20, 40)).data
    assert '32 channels · 5 × 5 px' in arch_figure(SPACES['pinas_patch'], '42-12').data


def test_skips_kernels_and_long_stages_are_drawn() -> None:
    candidates = (Candidate(), Candidate(kernel=5), Candidate(skip=True))
    space = replace(PINAS_NANO, name='long', depths=(13, 1, 1, 1), candidates=candidates)
    figure = arch_figure(space, (0, *(2, 1) * 6, 0, 1, 0))
    assert figure.data.count('>skip</text>') == 6 and '>w64 k5</text>' in figure.data
    height, right = float(re.search(r'viewBox="-2 0 370 ([\d.]+)"', figure.data)[1]), 366
    for x, y, size in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', figure.data):
        assert float(x) + float(size) <= right and float(y) < height


def test_figures_need_something_to_draw() -> None:
    with pytest.raises(ValueError, match='needs points'):
        curve_figure({'a': []}, caption='c')
    with pytest.raises(ValueError, match='smooth of at least 1'):
        curve_figure({'a': [(0, 1)]}, caption='c', smooth=0)
    with pytest.raises(ValueError, match='at least one record'):
        search_trace_figure([])
    with pytest.raises(ValueError, match='records with macs'):
        pareto_figure([replace(records()[0], macs=None)])
    with pytest.raises(ValueError, match="'svg' or 'png'"):
        pareto_figure(records(), kind='gif')  # type: ignore[arg-type]


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith('matplotlib'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(ImportError, match=r"pip install 'pinas-zoo\[search\]'"):
        pareto_figure(records())


# ---- scalars --------------------------------------------------------------------------------------------------------


def test_scalars_of_mmengine(tmp_path: Path) -> None:
    path, more = tmp_path / 'a.json', tmp_path / 'b.json'
    lines = [
        {'lr': 0.03, 'loss': 5.0, 'epoch': 1, 'iter': 10, 'step': 10, 'path': '01-23'},
        {'lr': 0.02, 'loss': 4.0, 'epoch': 1, 'iter': 20, 'step': 20, 'ok': True},
        {'accuracy/top1': 88.0, 'step': 20},
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines) + '{"lr": 0.01, "lo')
    curves = read_scalars(path)
    assert curves == {
        'lr': [(10, 0.03), (20, 0.02)],
        'loss': [(10, 5.0), (20, 4.0)],
        'accuracy/top1': [(20, 88.0)],
    }
    # The continued run repeats step 20: its value counts.
    more.write_text('{"loss": 4.5, "iter": 20}\n{"loss": 3.0, "iter": 30}\n')
    assert read_scalars(path, more)['loss'] == [(10, 5.0), (20, 4.5), (30, 3.0)]
    path.write_text('')
    assert read_scalars(path) == {}


def test_damaged_scalars_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'scalars.json'
    path.write_text('{"loss": 1, "step"\n{"loss": 1, "step": 2}\n')
    with pytest.raises(ValueError, match='line 1 is unreadable'):
        read_scalars(path)
    path.write_text('{"loss": 1}\n{"loss": 1, "step": 2}\n')
    with pytest.raises(ValueError, match='line 1 has no number step or iter'):
        read_scalars(path)


# ---- in a browser ---------------------------------------------------------------------------------------------------

MEASURE = """<script>addEventListener('load', () => {
const all = [...document.querySelectorAll('body *')].filter(e => !e.closest('thead'));
const right = Math.max(...all.map(e => e.getBoundingClientRect().right));
const small = [...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height);
const found = {inner: innerWidth, scroll: document.documentElement.scrollWidth, right: right,
  broken: [...document.images].filter(i => !i.naturalWidth).length,
  svg: document.querySelectorAll('svg').length, small: Math.min(...small)};
parent.postMessage(JSON.stringify(found), '*')})</script></body>"""
#: A browser's window is at least 500 px wide, a frame is as narrow as it is told to be.
FRAME = """<!doctype html><body style="margin:0"><iframe src="report.html" style="width:%dpx;height:2400px;border:0">
</iframe><pre></pre><script>addEventListener('message', e => document.querySelector('pre').textContent = e.data)
</script></body>"""


def open_in_chromium(path: Path, profile: Path) -> str:
    """Loads a page and returns its DOM."""
    quiet = ('gpu', 'background-networking', 'component-update', 'sync')
    command = [CHROMIUM, '--headless', '--no-sandbox', '--no-first-run', '--hide-scrollbars']
    command += [*(f'--disable-{name}' for name in quiet), f'--user-data-dir={profile}']
    command += ['--window-size=1280,2400', '--virtual-time-budget=5000', '--dump-dom', path.as_uri()]
    # Its own process group: a browser that hangs is ended with its children.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.communicate(timeout=120)[0].decode()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_opens_in_a_browser_without_overflow(width: int, tmp_path: Path) -> None:
    path = tmp_path / 'report.html'
    path.write_text(page(path).replace('</body>', MEASURE))
    (tmp_path / 'frame.html').write_text(FRAME % width)
    dom = open_in_chromium(tmp_path / 'frame.html', tmp_path / 'profile')
    match = re.search(r'<pre>(\{.*?\})</pre>', dom)
    assert match, dom[:500]
    found = json.loads(match[1])
    assert found['inner'] == width
    assert found['scroll'] <= width and found['right'] <= width, found
    assert found['broken'] == 0 and found['svg'] == 4
    assert found['small'] >= 10, 'text of the drawing is too small to read'
