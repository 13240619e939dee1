"""Detection and segmentation on two processes over gloo, through the scripts that users call."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import engine_utils
import pytest
import torch

for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)
pytestmark = [pytest.mark.mm, pytest.mark.slow, pytest.mark.processes]

from downstream import write_data  # noqa: E402
from downstream_runs import short_config, write_scenes  # noqa: E402

from pinas_cli.main import main as pinas  # noqa: E402

TOOLS = engine_utils.ROOT / 'tools'
ITERATIONS = 3
#: Odd: the second process is given one image twice, which must not count twice.
VAL = 5


@pytest.fixture(scope='module', params=['detection', 'segmentation'])
def trained(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Kind, config and work dir of a training on two processes."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = short_config(request.param, write_scenes(folder / 'scenes', 12, VAL), ITERATIONS)
    cfg.default_hooks.checkpoint.interval = 2
    cfg.custom_imports = {'imports': ['downstream_runs'], 'allow_failed_imports': False}
    cfg.custom_hooks = [*cfg.custom_hooks, {'type': 'pinas_zoo.GradientDumpHook'}]
    if request.param == 'detection':  # of a few iterations only recall is more than 0
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.metric_items = ['mAP', 'mAP_50', 'AR@100']
    cfg.dump(folder / 'config.py')
    run_script('dist_train.sh', folder / 'config.py', 2, '--work-dir', folder / 'run')
    return request.param, folder / 'config.py', folder / 'run'


def run_script(name: str, *arguments: object) -> None:
    """A script of tools/ with this interpreter."""
    run_bash(str(TOOLS / name), *map(str, arguments))


def run_bash(*words: str) -> None:
    """bash with these arguments; the scripts then take this interpreter, in forks."""
    result = engine_utils.run_tool(*words, timeout=900, program=['bash'])
    assert result.returncode == 0, result.stdout[-3000:]


def metrics_of(work_dir: Path) -> dict[str, float]:
    """Metrics of a test; AP in points, as mIoU is."""
    metrics = json.loads((work_dir / 'test_metrics.json').read_text())['metrics']
    return {name: value * (100 if name.startswith('coco/') else 1) for name, value in metrics.items()}


def test_gradients_are_equal(trained: tuple[str, Path, Path]) -> None:
    _, _, work_dir = trained
    first, second = (torch.load(work_dir / f'rank{rank}.pth', weights_only=True) for rank in range(2))
    files = [Counter(rank['files']) for rank in (first, second)]
    assert not files[0] & files[1] and sum(files[0].values()) == 2 * ITERATIONS  # gradients of different images
    names = first['gradients'].keys()
    assert names == second['gradients'].keys() and len(names) > 0.9 * len(first['parameters'])
    assert sum(bool(gradient.any()) for gradient in first['gradients'].values()) > 0.9 * len(names)
    for kind in ('gradients', 'parameters'):
        unequal = [name for name, tensor in first[kind].items() if not torch.equal(tensor, second[kind][name])]
        assert unequal == [], kind


def test_logged_and_saved_once(trained: tuple[str, Path, Path]) -> None:
    kind, _, work_dir = trained
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line['step'] for line in lines if 'loss' in line] == list(range(1, ITERATIONS + 1))
    name = {'detection': 'coco/bbox_AR@100', 'segmentation': 'mIoU'}[kind]
    assert len([line for line in lines if name in line]) == 1
    assert sorted(path.name for path in work_dir.glob('iter_*.pth')) == ['iter_2.pth', f'iter_{ITERATIONS}.pth']


def test_a_continued_run_ends_the_same(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, config, work_dir = trained
    if kind == 'segmentation':  # test_downstream_resume.py continues both in one process
        return
    again = tmp_path / 'again'
    again.mkdir()
    shutil.copy(work_dir / 'iter_2.pth', again)
    (again / 'last_checkpoint').write_text(str(again / 'iter_2.pth'))
    run_script('dist_train.sh', config, 2, '--work-dir', again, '--resume')
    # The config that is stored in the checkpoint says that the second run was resumed.
    found = engine_utils.differences(work_dir, again)
    assert [line for line in found if not line.startswith('.message_hub.runtime_info.cfg:')] == []
    values = engine_utils.logged(work_dir)
    assert engine_utils.logged(again) == {(step, name): value for (step, name), value in values.items() if step > 2}


def test_two_processes_score_as_one(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, config, work_dir = trained
    checkpoint = work_dir / f'iter_{ITERATIONS}.pth'

    def where(name: str) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        boxes = ['--cfg-options', f'test_evaluator.outfile_prefix={folder}/out']
        return ['--work-dir', str(folder), *(boxes if kind == 'detection' else [])]

    run_script('dist_test.sh', config, checkpoint, 2, *where('two'))
    result = engine_utils.run_tool(str(TOOLS / 'test.py'), str(config), str(checkpoint), *where('one'))
    assert result.returncode == 0, result.stdout[-3000:]
    two, one = (metrics_of(tmp_path / name) for name in ('two', 'one'))
    assert two.keys() == one.keys()
    assert max(abs(two[name] - one[name]) for name in one) < 1e-3, (two, one)
    if kind == 'segmentation':
        assert max(one.values()) > 0
    else:  # three iterations may find nothing, but they always score boxes
        boxes = [json.loads((tmp_path / name / 'out.bbox.json').read_text()) for name in ('two', 'one')]
        images = [Counter(box['image_id'] for box in found) for found in boxes]
        assert images[0] == images[1] and len(images[0]) == VAL
        scores = [sorted((box['image_id'], box['category_id'], box['score']) for box in found) for found in boxes]
        assert all(a[:2] == b[:2] and abs(a[2] - b[2]) < 1e-3 for a, b in zip(*scores, strict=True))


# ---- the README's small run --------------------------------------------------------------------------


@pytest.fixture(scope='module')
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini set that `pinas prepare coco --mini` selects from a generated set."""
    root = tmp_path_factory.mktemp('coco') / 'coco'
    write_data(root, 'coco', train=8, val=3)
    assert pinas(['prepare', 'coco', '--root', str(root), '--counts', '8', '3', '--mini', '8']) == 0
    return root.with_name('coco-mini')


def test_small_run_of_the_readme(mini: Path, tmp_path: Path) -> None:
    """Runs the README's own command: it logs, saves and evaluates."""
    blocks = re.findall(r'```bash\n(.*?)```', (engine_utils.ROOT / 'README.md').read_text(), re.DOTALL)
    ((command, *_),) = [
        re.findall(r'^bash tools/dist_train\.sh .*?[^\\]$', block, re.MULTILINE | re.DOTALL)
        for block in blocks
        if '--work-dir work_dirs/mini' in block
    ]
    assert command.split()[1:4] == ['tools/dist_train.sh', 'configs/coco/mask-rcnn_pinas-b_fpn_1x_coco.py', '2']
    assert 'data/coco-mini' in command and 'work_dirs/mini' in command

    command = command.replace('data/coco-mini', str(mini)).replace('work_dirs/mini', str(tmp_path / 'run'))
    few = 'model.train_cfg.rcnn.sampler.num=32 model.test_cfg.rpn.max_per_img=100'  # of 512 and 1,000 boxes per image
    run_bash('-c', f'{command} {few}')
    values = engine_utils.logged(tmp_path / 'run')
    assert {step for step, name in values if name == 'loss'} == {1, 2, 3, 4}
    assert {name for step, name in values if step == 4} >= {'coco/bbox_mAP', 'coco/segm_mAP'}
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth')) == ['iter_2.pth', 'iter_4.pth']
