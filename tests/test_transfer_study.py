"""The transfer study: its runs, its file, its page; and four tiny runs of it."""

from __future__ import annotations

import json
import re
import runpy
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)
pytestmark = pytest.mark.mm

from downstream_runs import ARCH, write_backbone, write_scenes  # noqa: E402
from fork_server import python  # noqa: E402

from benchmarks.transfer import report as transfer_report  # noqa: E402
from benchmarks.transfer.plan import ARMS, OF_A_PROCESS, Inputs, Run, planned  # noqa: E402
from benchmarks.transfer.results import ResultsFile  # noqa: E402
from benchmarks.transfer.study import Study  # noqa: E402
from pinas_zoo.mm.quickstart.commands import Job  # noqa: E402
from pinas_zoo.weights.load import read_weights, save_weights  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RETRAIN = Path('configs/quickstart/pinas-nano_b128-coslr_fmnist.py')
RESULTS, PAGE = ROOT / 'benchmarks/transfer/results.json', ROOT / 'docs/transfer.md'


@pytest.fixture(scope='module')
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Tiny scenes, a file of random weights, and a training with labels of the same network, four iterations long."""
    root = tmp_path_factory.mktemp('inputs')
    write_backbone(root / 'backbone.safetensors')
    job = Job(root, quick=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'executable', python())
        job.call(job.train(RETRAIN, 'retrain', 4, **{'model.model.arch': ARCH}), 'retrain', 'retrain')
    return Inputs(root, write_scenes(root / 'scenes', 8, 4))


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def options_of(command: list[str]) -> dict[str, str]:
    return dict(word.split('=', 1) for word in command[command.index('--cfg-options') + 1 :])


# ---- runs --------------------------------------------------------------------------------------------


def test_seed_by_seed() -> None:
    runs = planned(['detection', 'segmentation'], ['random', 'pinas'], [0, 1])
    assert len(runs) == len(set(runs)) == 8
    assert {run.seed for run in runs[:4]} == {0}
    assert len({run.name for run in runs}) == 8


def test_arms_differ_in_the_backbone_alone(inputs: Inputs, tmp_path: Path) -> None:
    study = Study(tmp_path, tmp_path / 'transfer.json', inputs)
    (tmp_path / 'resnet').mkdir()
    (tmp_path / 'resnet/last_checkpoint').write_text('resnet.pth')
    (tmp_path / 'resnet/resnet.pth').touch()
    for task in ('detection', 'segmentation'):
        options = {arm: options_of(study.command(Run(task, arm, 5))) for arm in ARMS}
        others = [{k: v for k, v in o.items() if not k.startswith('model.')} for o in options.values()]
        assert others[1:] == others[:-1] and others[0]['randomness.seed'] == '5'
        wanted = {f'{split}_dataloader.dataset.data_root' for split in ('train', 'val', 'test')}
        wanted |= {f'{split}_evaluator.ann_file' for split in ('val', 'test') if task == 'detection'}
        assert wanted <= {key for key, value in others[0].items() if value.startswith(str(inputs.scenes))}
        starts = {arm: o.get('model.backbone.init_cfg.checkpoint') for arm, o in options.items()}
        files = {'supervised': str(inputs.supervised), 'pinas': str(inputs.pinas)}
        files['resnet'] = str(tmp_path / 'resnet/resnet.pth')
        assert starts == {'random': None, **files}
        assert {arm for arm, o in options.items() if o.get('model.backbone.arch') == ARCH} == set(ARMS) - {'resnet'}


def test_recipe_holds_the_budget(inputs: Inputs, tmp_path: Path) -> None:
    recipe = Study(tmp_path, tmp_path / 'transfer.json', inputs).results.recipe
    assert recipe['resnet']['macs'] == pytest.approx(recipe['nano']['macs'], rel=0.01)
    for task in ('detection', 'segmentation'):
        assert recipe[task]['iterations'] > 0 and recipe[task]['optim_wrapper']['optimizer']['lr'] > 0
    assert recipe['scenes']['train'] == 8


def test_files_must_hold_one_architecture(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / 'retrain').symlink_to(inputs.root / 'retrain')
    state, metadata = read_weights(inputs.pinas)
    save_weights(tmp_path / 'backbone.safetensors', state, metadata | {'arch': '00-00-00-00'})
    with pytest.raises(ValueError, match='must contain one architecture.*00-00-00-00'):
        Study(tmp_path, tmp_path / 'x.json', Inputs(tmp_path, inputs.scenes))
    with pytest.raises(FileNotFoundError, match='nowhere/retrain has no checkpoint'):
        _ = Inputs(tmp_path / 'nowhere', inputs.scenes).supervised


def test_the_baseline_has_the_nano_networks_recipe(inputs: Inputs) -> None:
    ours, theirs = inputs.resnet_config((9, 18, 36, 54)), inputs.retraining.cfg
    assert ours.model.model.model_name == 'resnet_nano' and theirs.model.model.arch == ARCH
    changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert changed - set(OF_A_PROCESS) == {'model', 'custom_imports'}
    assert {key for key in ours.model if ours.model[key] != theirs.model[key]} == {'model'}


# ---- the file of the figures -------------------------------------------------------------------------


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    files = [ResultsFile(tmp_path / 'r.json', {'lr': 1}, tmp_path / 'lock') for _ in range(4)]
    threads = [
        threading.Thread(target=lambda file=file, n=n: [file.append({'n': n + i}) for i in range(10)])
        for n, file in zip(range(0, 40, 10), files)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run['n'] for run in files[0].read()['runs']) == list(range(40))


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'r.json'
    ResultsFile(path, {'detection': {'iterations': 4}}, tmp_path / 'lock').append({'n': 0})
    text = path.read_text()
    other = ResultsFile(path, {'detection': {'iterations': 8}}, tmp_path / 'lock')
    with pytest.raises(ValueError, match='another recipe.*detection.iterations: 4 there, 8 now'):
        other.append({'n': 1})
    assert path.read_text() == text


# ---- the page ----------------------------------------------------------------------------------------


def synthetic() -> dict[str, Any]:
    """Metrics of two seeds, with round means; the ResNet has none in segmentation."""
    cost = {'macs': 265_000_000, 'params': 663_000}
    runs = [
        {'task': task, 'arm': arm, 'seed': seed, 'metrics': metrics, 'seconds': 10.0, 'continued': False}
        | {'versions': {'torch': '2', 'threads': 1}}
        for number, arm in enumerate(ARMS)
        for seed in (1, 0)
        for task, metrics in (
            ('detection', {'box AP': 10.0 * number + seed, 'mask AP': 5.0}),
            ('segmentation', {'mIoU': 50.0 + 2 * seed}),
        )
        if (arm, task) != ('resnet', 'segmentation')
    ]
    recipe = {'quick': False, 'arch': ARCH, 'nano': cost, 'resnet': cost}
    recipe |= {task: {'iterations': 160, 'batch_size': 8} for task in ('detection', 'segmentation')}
    recipe['labels'] = {'recipe': 'some.py, 9 iterations', 'data': 'some data'}
    recipe['scenes'] = {'train': 600, 'val': 100, 'size': 128}
    return {'recipe': recipe, 'pretraining': {'supervised': {'top1': 87.5}}, 'runs': runs}


def test_table() -> None:
    text = transfer_report.table(synthetic())
    rows = {line.split(' | ')[1]: line.strip('| \n').split(' | ')[4:] for line in text.splitlines() if '| n' in line}
    assert rows['random weights'] == ['0.50 ± 0.71', '5.00 ± 0.00', '51.00 ± 1.41']
    assert rows['with labels'] == ['10.50 ± 0.71 (+10.00)', '5.00 ± 0.00 (+0.00)', '51.00 ± 1.41 (+0.00)']
    assert re.search(r'plain ResNet .*\| 30\.50 ± 0\.71 \(\+30\.00\) \| .* \| - \|\n', text)
    facts = ['seeds 0, 1', ARCH, '160 iterations of 8 images, 10 s per run', '600 training', '87.50 %', 'torch 2']
    for fact in [*facts, 'some.py, 9 iterations']:
        assert fact in text, fact
    assert 'say nothing' not in text
    quick = synthetic()
    quick['recipe']['quick'] = True
    assert 'say nothing' in transfer_report.table(quick)


def test_page_is_written_and_checked(tmp_path: Path) -> None:
    results, page = tmp_path / 'transfer.json', tmp_path / 'transfer.md'
    results.write_text(json.dumps(synthetic()))
    page.write_text('before\n<!-- table: benchmarks/transfer/results.json -->\n<!-- end of table -->\nafter\n')
    assert not transfer_report.is_current(results, page)
    table = transfer_report.write_page(results, page)
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('after\n') and table in text
    assert transfer_report.is_current(results, page)
    assert page.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
    page.write_text('no place')
    with pytest.raises(ValueError, match='needs the lines <!-- table'):
        transfer_report.write_page(results, page)


@pytest.mark.skipif(not RESULTS.is_file(), reason='the study has not been run')
def test_the_page_of_the_project_is_current() -> None:
    assert transfer_report.is_current(RESULTS, PAGE)
    results = json.loads(RESULTS.read_text())
    assert not results['recipe']['quick'] and PAGE.with_suffix('.png').is_file()
    keys = [(run['task'], run['arm'], run['seed']) for run in results['runs']]
    assert len(keys) == len(set(keys))


# ---- tiny runs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_runs_continues_and_reports(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture, forked_python: None
) -> None:
    main = runpy.run_path(str(ROOT / 'benchmarks/transfer/__main__.py'))['main']
    call = ['run', '--source', str(inputs.root), '--work-dir', str(tmp_path), '--quick', '--seeds', '0', '--tasks']
    assert main([*call, 'segmentation', '--arms', 'pinas', 'resnet']) == 0
    assert 'about 0 min left' in capsys.readouterr().out
    assert main([*call, 'segmentation', 'detection', '--arms', 'resnet']) == 0
    out = capsys.readouterr().out
    assert '2 runs, 1 of them done before' in out and 'pre-training' not in out
    results = json.loads((tmp_path / 'results.json').read_text())
    keys = [(run['task'], run['arm']) for run in results['runs']]
    assert keys == [('segmentation', 'pinas'), ('segmentation', 'resnet'), ('detection', 'resnet')]
    assert set(results['pretraining']) == {'supervised', 'resnet'}
    assert all(run['seconds'] > 0 and run['loss'] > 0 for run in results['runs'])
    assert results['runs'][0]['metrics']['mIoU'] > 0
    for name, start in (('pinas', inputs.pinas), ('resnet', tmp_path / 'resnet/iter_4.pth')):
        log = (tmp_path / f'logs/segmentation-{name}-seed0.log').read_text()
        assert re.search(rf'{re.escape(str(start))}: matched \d+, .*missing 0, unexpected 0, mismatched 0', log), name
    page = tmp_path / 'transfer.md'
    page.write_text('<!-- table: benchmarks/transfer/results.json -->\n<!-- end of table -->\n')
    report = ['report', '--results', str(tmp_path / 'results.json'), '--page', str(page)]
    assert main([*report, '--check']) == 1 and main(report) == 0 and main([*report, '--check']) == 0
    assert main([*call, 'detection', '--arms', 'random', '--out', str(page)]) == 1  # no file of figures
