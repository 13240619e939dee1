"""The stages of the main job with tiny tools in place of the real ones: stale, failed, killed, side by side."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip('mmengine')
pytestmark = pytest.mark.mm

from pinas_zoo.mm.quickstart import record  # noqa: E402
from pinas_zoo.mm.quickstart.commands import Job  # noqa: E402
from pinas_zoo.mm.quickstart.console import read_position  # noqa: E402
from pinas_zoo.mm.quickstart.engine import CORES, Context, Engine, Stage, StageError  # noqa: E402
from pinas_zoo.mm.quickstart.job import STAGES  # noqa: E402

TOOL = Path(__file__).with_name('quickstart_tool.py')
NAMES = [stage.name for stage in STAGES]
DIGITS = ('digits', 'a' * 64)


def tiny(stage: Stage) -> Stage:
    """The stage with the tiny tool: the same place in the graph, the same outputs."""
    command = lambda job: [str(TOOL), str(job.root), stage.name, *stage.outputs]  # noqa: E731
    return replace(stage, command=command, configs=(), code=('files.py',))


def engine(
    root: Path, data: tuple[str, str] = DIGITS, change: Callable[[Stage], Stage] = lambda stage: stage
) -> Engine:
    stages = [change(tiny(stage)) for stage in STAGES]
    return Engine(Context(root, data, {}, 'bash tools/quickstart.sh'), stages, Job(root))


def run(root: Path, capsys: pytest.CaptureFixture[str], **options: object) -> list[str]:
    """Runs all; returns the lines that were printed."""
    capsys.readouterr()
    engine(root, **options).run()
    return capsys.readouterr().out.splitlines()


def ran(lines: list[str]) -> set[str]:
    """Names of the stages that ran."""
    titles = {stage.title: stage.name for stage in STAGES}
    return {
        titles[line.split('] ')[1].removesuffix(' ...').removesuffix(', continued')]
        for line in lines
        if line.endswith(' ...')
    }


def after(*names: str) -> set[str]:
    """These stages and all that depend on them."""
    found = set(names)
    for stage in STAGES:
        found |= {stage.name} if found & set(stage.after) else set()
    return found


@pytest.fixture(scope='module')
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('run')
    engine(root).run()
    return root


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run: a run may be moved."""
    return shutil.copytree(finished, tmp_path / 'run')


def test_nothing_runs_twice(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(done, capsys)
    assert not ran(lines) and len(lines) == len(STAGES) and all(': done before, ' in line for line in lines)
    assert set(engine(done).plan().values()) == {'done'}


# ---- stale -----------------------------------------------------------------------------------------------------------


def test_other_data_make_every_stage_stale(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(done, capsys, data=('Fashion-MNIST', 'b' * 64))
    assert 'unsupervised supernet: stale: the data changed from digits to Fashion-MNIST' in lines[1]
    assert sum(': stale: ' in line for line in lines) == len(STAGES) and ran(lines) == set(NAMES)
    assert (done / 'stale' / 'search' / 'best.json').read_text() == 'search', 'what was there is not lost'


def test_a_changed_setting_is_named(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(stage: Stage) -> Stage:
        command = lambda job: [*tiny(stage).command(job), 'train_cfg.max_iters=4']  # noqa: E731
        return replace(stage, command=command, outputs=stage.outputs) if stage.name == 'publish' else stage

    (done / 'publish.content').write_text('other weights')
    lines = run(done, capsys, change=change)
    assert any(
        'publish the retrained network: stale: settings changed: ' in line and 'max_iters' in line for line in lines
    )
    assert ran(lines) == after('publish')
    assert any(': stale: publish first' in line for line in lines)


def test_equal_results_do_not_make_the_next_stages_stale(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The search runs again with the same result: the stages after it stay done."""
    lines = run(done, capsys, change=lambda stage: replace(stage, threads=2) if stage.name == 'search' else stage)
    assert any('search: stale: settings changed: threads 1 -> 2' in line for line in lines)
    assert ran(lines) == {'search'}


def test_code_counts_and_comments_do_not(
    done: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = tmp_path_factory.mktemp('package')
    original = (record.PACKAGE / 'files.py').read_text()
    monkeypatch.setattr(record, 'PACKAGE', package)
    (package / 'files.py').write_text('# A comment.\n' + original.replace('"""Files: ', '"""Documents: '))
    assert not ran(run(done, capsys))
    (package / 'files.py').write_text(original + 'SOMETHING = 1\n')
    record._code_sha256.cache_clear()
    lines = run(done, capsys)
    assert any('supernet: stale: code changed: files.py' in line for line in lines) and ran(lines) == set(NAMES)
    with pytest.raises(ValueError, match="'nowhere.py' is neither a module nor a folder"):
        record.code_version(['nowhere.py'])


@pytest.mark.parametrize('damage', [Path.unlink, lambda path: path.write_text('other')], ids=['missing', 'changed'])
def test_a_damaged_result_is_made_again(done: Path, capsys: pytest.CaptureFixture[str], damage: Callable) -> None:
    damage(done / 'retrained.safetensors')
    lines = run(done, capsys)
    assert any('stale: retrained.safetensors ' in line for line in lines) and ran(lines) == {'publish'}


def test_every_setting_of_a_config_counts(tmp_path: Path) -> None:
    config = tmp_path / 'config.py'
    config.write_text('model = dict(type="A", sizes=[1, 2])\n')
    command = ['tools/train.py', str(config), '--work-dir', f'{tmp_path}/run', '--cfg-options', 'a.b=3']
    settings = record.resolved_settings(command, [config], tmp_path, 2)
    wanted = {'config.py: model.type': 'A', 'config.py: model.sizes.1': '2', 'option a.b': '3', 'threads': '2'}
    assert wanted.items() <= settings.items() and 'torch' in settings
    assert settings['command'] == 'tools/train.py ROOT/config.py --work-dir ROOT/run --cfg-options'


# ---- failed and killed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['scenes', 'search', 'detection'])
def test_a_failed_stage_is_not_done_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / 'fail').write_text(name)
    with pytest.raises(StageError) as error:
        engine(tmp_path).run()
    message = str(error.value)
    assert 'failed with status 1' in message and 'this stage was told to fail' in message
    assert message.splitlines()[-1].startswith('To continue: fix the cause and call `bash tools/quickstart.sh` again')
    plan = engine(tmp_path).plan()
    assert plan[name] == 'interrupted' and all(plan[stage] == 'new' for stage in after(name) - {name})
    kept = {stage for stage, word in plan.items() if word == 'done'}
    (tmp_path / 'fail').unlink()
    lines = run(tmp_path, capsys)
    assert ran(lines) == set(NAMES) - kept
    assert 'starts at 3' in (tmp_path / 'logs' / f'{name}.log').read_text()


def test_a_stage_that_writes_nothing_has_failed(tmp_path: Path) -> None:
    stage = tiny(STAGES[0])
    with pytest.raises(StageError, match=r'did not write absent\.txt'):
        Engine(
            Context(tmp_path, DIGITS, {}, 'x'),
            [replace(stage, outputs=('absent.txt',), command=lambda job: stage.command(job))],
            Job(tmp_path),
        ).run()
    assert engine(tmp_path).plan()['scenes'].startswith(('stale', 'interrupted'))


@pytest.mark.parametrize('name', NAMES)
def test_a_kill_in_any_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """kill -9 of the job alone: its tool keeps running and locks the folder; the next call waits for it."""
    (tmp_path / 'hold').write_text(name)
    process = multiprocessing.get_context('fork').Process(target=lambda: engine(tmp_path).run())
    process.start()
    while not (tmp_path / 'holds').is_file() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = {stage for stage, word in engine(tmp_path).plan().items() if word == 'done'}
    assert not before & after(name)
    (tmp_path / 'hold').unlink()
    lines = run(tmp_path, capsys)
    assert ran(lines) == set(NAMES) - before
    assert any(number(name) in line and 'continued' in line for line in lines)
    assert set(engine(tmp_path).plan().values()) == {'done'}
    assert re.search(r'starts at [234]', (tmp_path / 'logs' / f'{name}.log').read_text()), 'began anew'


def number(name: str) -> str:
    return f'[{NAMES.index(name) + 1}/{len(NAMES)}]'


def test_an_interrupted_stage_of_other_settings_starts_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'fail').write_text('search')
    with pytest.raises(StageError):
        engine(tmp_path).run()
    (tmp_path / 'fail').unlink()
    lines = run(tmp_path, capsys, change=lambda stage: replace(stage, threads=2) if stage.name == 'search' else stage)
    assert any('search: stale: settings changed: threads' in line for line in lines)
    assert (tmp_path / 'logs' / 'search.log').read_text().startswith('search starts at 0')


# ---- side by side ----------------------------------------------------------------------------------------------------


def test_stages_share_the_cores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never more threads than cores; detection and segmentation do run side by side."""

    class Watched(Engine):
        seen: list[dict[str, int]] = []

        def _wait(self) -> None:
            self.seen.append({name: running.stage.threads for name, running in self.running.items()})
            super()._wait()

    plain = engine(tmp_path)
    watched = Watched(plain.context, list(plain.stages.values()), plain.job)
    watched.run()
    assert max(sum(together.values()) for together in watched.seen) == CORES
    assert any({'detection', 'segmentation'} <= together.keys() for together in watched.seen)
    log = (tmp_path / 'logs' / 'pretrain.log').read_text()
    assert 'pretrain starts at 0' in log


def test_the_order_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='stage linear must come after'):
        Engine(Context(tmp_path, DIGITS, {}, 'x'), [STAGES[2], STAGES[1]], Job(tmp_path))


def test_a_foreign_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'stages.json').write_text('{"version": 0}')
    with pytest.raises(ValueError, match='not a record of this version.*another --root'):
        engine(tmp_path)


# ---- console ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'line, phase, done, total',
    [
        ('11/26 15:00:01 - mmengine - INFO - Iter(train) [ 20/260]  lr: 6e-02  eta: 0:00:12', 'train', 20, 260),
        ('11/26 15:00:01 - mmengine - INFO - Iter(val) [10/13]    eta: 0:00:02', 'val', 10, 13),
        ('11/26 15:00:01 - mmengine - INFO - Epoch(train) [2][ 50/100]  lr: 1', 'train', 50, 100),
        (' 53%|#####3    | 68/128 [00:04<00:03, 15.11path/s, best 80.1 %]', '', 68, 128),
        ('3 of 13 networks: 01-23-32-10, 81.2 %', '', 3, 13),
        ('loss 3.1 of nothing 5/0 [', None, 0, 0),
    ],
)
def test_positions_are_read(line: str, phase: str | None, done: int, total: int) -> None:
    position = read_position(line)
    assert (
        position is None if phase is None else (position.phase, position.done, position.total) == (phase, done, total)
    )
