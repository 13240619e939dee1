"""The main job, with a few iterations per step: interrupted, continued, and its page in a browser."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_report import CHROMIUM, FRAME, MEASURE, open_in_chromium

pytestmark = [pytest.mark.mm, pytest.mark.slow]

ROOT = Path(__file__).parents[1]


def start(root: Path) -> subprocess.Popen:
    command = [sys.executable, '-m', 'pinas_zoo.mm.quickstart.job', '--root', str(root), '--quick']
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A quick run that was killed with all its children in its second step, and then called again."""
    root = tmp_path_factory.mktemp('quickstart')
    first = start(root)
    deadline = time.monotonic() + 600
    while not (root / 'pretrain').exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    second = start(root)
    out, _ = second.communicate()
    assert second.returncode == 0, out
    return root, out


def test_a_later_run_continues(finished):
    root, out = finished
    assert 'scenes for detection and segmentation: done before' in out
    state = json.loads((root / 'steps.json').read_text())
    assert len(state['seconds']) == 12 and min(state['seconds'].values()) > 0
    for name in ('backbone.safetensors', 'retrained.safetensors', 'search/best.json', 'search/trace.png'):
        assert (root / name).stat().st_size > 0


def test_the_table_has_every_figure(finished):
    root, out = finished
    table = (root / 'table.txt').read_text()
    assert table in out
    for row in ('search: found / mean', 'retrained from scratch: top-1', 'box AP', 'mask AP', 'mIoU'):
        assert re.search(rf'{row}.*\d', table), row


def test_derived_files_load_by_themselves(finished):
    import timm
    import torch

    import pinas_zoo  # noqa: F401

    root, _ = finished
    arch = json.loads((root / 'search/best.json').read_text())['arch']
    for name, classes in (('backbone', 0), ('retrained', 10)):
        net = timm.create_model('pinas_nano', checkpoint=root / f'{name}.safetensors', num_classes=classes).eval()
        assert net.space.format(net.arch) == arch
        assert net(torch.zeros(1, 3, 28, 28)).isfinite().all()


@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_is_whole_and_fits(finished, width, tmp_path):
    page = (finished[0] / 'report.html').read_text()
    assert not re.search(r'(src|href)="(?!#|data:)', page), 'the page asks for something outside itself'
    (tmp_path / 'report.html').write_text(page.replace('</body>', MEASURE))
    (tmp_path / 'frame.html').write_text(FRAME % width)
    dom = open_in_chromium(tmp_path / 'frame.html', tmp_path / 'profile')
    found = json.loads(re.search(r'<pre>(\{.*?\})</pre>', dom)[1])
    assert found['inner'] == width and found['broken'] == 0
    assert found['scroll'] <= width and found['right'] <= width, found
