"""The main job with a few iterations per stage, without a data set or a network; and its page in a browser.

What stages do when something has changed, fails or is killed: test_quickstart_stages.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)
pytestmark = [pytest.mark.mm, pytest.mark.slow]

from fork_server import python  # noqa: E402
from test_report import CHROMIUM, FRAME, MEASURE, open_in_chromium  # noqa: E402

from pinas_zoo import registry  # noqa: E402
from pinas_zoo.data.fashion_mnist import DEBIAN_FOLDER  # noqa: E402
from pinas_zoo.data.small_sets import resolve_digits  # noqa: E402
from pinas_zoo.mm.quickstart.commands import Job  # noqa: E402
from pinas_zoo.mm.quickstart.job import STAGES, open_engine  # noqa: E402
from pinas_zoo.mm.quickstart.record import code_version  # noqa: E402

ROOT = Path(__file__).parents[1]
#: Modules that a stage may load, whose code its result does not depend on.
WITHOUT_EFFECT = ('__init__.py', '*/__init__.py', 'report/*', 'mm/quickstart/*', 'mm/inference/*')
#: And those that the first import of the package loads, since it registers the names of the networks.
NAMES = {'scenes': ('models/*', 'weights/*', 'dist.py', 'space/*')}


@pytest.fixture(scope='module')
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """No data set and no network."""
    variables = {'PINAS_CACHE_DIR': str(tmp_path_factory.mktemp('cache')), 'PINAS_OFFLINE': '1'}
    if DEBIAN_FOLDER.is_dir():
        variables['PINAS_FASHION_MNIST'] = 'digits'
    return {**os.environ, **variables, 'PYTHONPATH': str(ROOT)}


def start(root: Path, environment: dict[str, str]) -> subprocess.Popen:
    # Its stages are forks of one process that has imported what is not ours.
    program = python(ours=False, log_imports=True)
    command = [program, '-m', 'pinas_cli', 'quickstart', '--root', str(root), '--quick']
    # Files, not pipes: nobody reads while it runs, and the log of imports would fill a pipe.
    with open(root / 'stdout', 'w') as out, open(root / 'stderr', 'w') as errors:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=errors, env=environment)


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[Path, str]:
    """A quick run that was interrupted while it trained, and then called again; its folder and what it printed."""
    root = tmp_path_factory.mktemp('quickstart')
    first = start(root, environment)
    while not (root / 'pretrain').exists() and first.poll() is None:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 130
    second = start(root, environment)
    status, errors = second.wait(), (root / 'stderr').read_text().splitlines()
    assert status == 0, '\n'.join(line for line in errors if not line.startswith('import time'))
    return root, (root / 'stdout').read_text()


def test_the_first_line_names_the_data(finished: tuple[Path, str]) -> None:
    lines = finished[1].splitlines()
    assert lines[0].startswith("data: scikit-learn's digits (") and '10 classes' in lines[0]
    assert any('unsupervised supernet' in line and 'continued' in line for line in lines)
    assert '<title>Pi-NAS on scikit-learn&#39;s digits</title>' in (finished[0] / 'report.html').read_text()


def test_the_table_has_every_figure(finished: tuple[Path, str]) -> None:
    root, out = finished
    table = (root / 'table.txt').read_text()
    assert table in out and 'report: ' in out
    for row in ('chosen network, trained alone', 'nearest neighbours', 'retrained', 'box AP', 'mask AP', 'mIoU'):
        assert re.search(rf'{row}.*\d', table), row


def test_the_same_call_with_other_data_names_the_stale_stages(
    finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    job, digits = Job(finished[0], quick=True), resolve_digits()
    assert set(open_engine(job, digits).plan().values()) == {'done'}
    other = replace(digits, title='Fashion-MNIST', fingerprint='f' * 64)
    reason = "stale: the data changed from scikit-learn's digits to Fashion-MNIST"
    plan = open_engine(job, other).plan()
    assert plan['scenes'] == plan['pretrain'] == reason and all(word.startswith('stale') for word in plan.values())


def test_stages_name_all_the_code_that_they_run(finished: tuple[Path, str]) -> None:
    for stage in STAGES:
        log = (finished[0] / 'logs' / f'{stage.name}.log').read_text()
        modules = set(re.findall(r'import time:.*\| +(pinas_zoo[\w.]*)$', log, re.MULTILINE))
        assert 'pinas_zoo' in modules, stage.name
        files = {f'{module.partition(".")[2].replace(".", "/")}' for module in modules}
        loaded = {file + ('.py' if (ROOT / f'pinas_zoo/{file}.py').is_file() else '/__init__.py') for file in files}
        free = (*WITHOUT_EFFECT, *NAMES.get(stage.name, ()))
        loaded = {file for file in loaded if not any(fnmatch(file.lstrip('/'), pattern) for pattern in free)}
        assert loaded <= code_version(stage.code).keys(), stage.name


def test_no_log_says_that_the_package_is_not_installed(finished: tuple[Path, str]) -> None:
    for log in (finished[0] / 'logs').iterdir():
        assert 'is not installed' not in log.read_text(), log.name
    children = [child for child in vars(registry).values() if isinstance(child, registry.Registry)]
    assert children and all(child._locations for child in children if child.scope == 'pinas_zoo')


def test_the_commands_to_try_next_work(finished: tuple[Path, str], environment: dict[str, str]) -> None:
    root, out = finished
    commands = [line.strip() for line in out.partition('To try next:\n')[2].splitlines() if line.strip()]
    assert len(commands) == 3
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f'{command}\n{done.stderr[-2000:]}'
    assert (root / 'drawn' / 'predictions.jsonl').read_text()
    assert 'coco/bbox_mAP' in json.loads((root / 'test' / 'test_metrics.json').read_text())['metrics']
    assert 'torch.Size([1, ' in done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason='chromium is not installed')
@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_is_whole_and_fits(finished: tuple[Path, str], width: int, tmp_path: Path) -> None:
    page = (finished[0] / 'report.html').read_text()
    assert not re.search(r'(src|href)="(?!#|data:)', page), 'the page asks for something outside itself'
    (tmp_path / 'report.html').write_text(page.replace('</body>', MEASURE))
    (tmp_path / 'frame.html').write_text(FRAME % width)
    dom = open_in_chromium(tmp_path / 'frame.html', tmp_path / 'profile')
    found = json.loads(re.search(r'<pre>(\{.*?\})</pre>', dom)[1])
    assert found['inner'] == width and found['broken'] == 0
    assert found['scroll'] <= width and found['right'] <= width, found
