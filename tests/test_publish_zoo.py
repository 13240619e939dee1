"""tools/dev/publish_zoo.py on trainings of a few iterations, in a copy of the project; then what reads the result."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from project_copy import ROOT, copy_project
from project_copy import run_in as run_alone

pytest.importorskip('mmengine')
pytestmark = [pytest.mark.mm, pytest.mark.slow]

from pinas_cli.main import main as pinas  # noqa: E402
from pinas_zoo.data import open_source  # noqa: E402
from pinas_zoo.files import file_sha256  # noqa: E402
from pinas_zoo.mm.quickstart.commands import Job  # noqa: E402
from pinas_zoo.mm.quickstart.results import publish  # noqa: E402
from pinas_zoo.mm.release.zoo import publish_zoo  # noqa: E402
from pinas_zoo.search.log import SearchLog, SearchRecord  # noqa: E402
from pinas_zoo.weights.load import read_weights  # noqa: E402
from pinas_zoo.weights.manifest import MANIFEST  # noqa: E402

run_in = partial(run_alone, forked=True)
#: Of the 10,000 test images, for the validations here and every later test of what is published.
FEW = {f'{split}_dataloader.dataset.source.limit': 500 for split in ('val', 'test')}
ARCHS = ('21-00-33-22', '01-23-32-10')
CONFIGS = Path('configs/quickstart')
NAMES = (
    'pinas_nano_a.fmnist',
    'pinas_nano_b.fmnist',
    'pinas_nano_supernet_fmnist',
    'pinas_nano_a_mask-rcnn_scenes',
    'pinas_nano_a_deeplabv3_scenes',
)


def call(command: list[str]) -> None:
    """A command of the main job in this process, which has imported everything already."""
    assert command[:2] == ['-m', 'pinas_cli'] and pinas(command[2:]) == 0, command


def retrain(root: Path, arch: str) -> Path:
    """A few iterations of a classifier; its averaged weights in a file of their own."""
    job = Job(root, quick=True)
    call(job.train(CONFIGS / 'pinas-nano_b128-coslr_fmnist.py', 'retrain', 4, **{'model.model.arch': arch}, **FEW))
    publish(root)
    return root


def train_all(root: Path, arch: str) -> Path:
    """A few iterations of everything that is published, for an architecture that no search had to find."""
    job = Job(retrain(root, arch), quick=True)
    call(job.scenes())
    call(job.train(CONFIGS / 'pinas-nano-supernet_b128-coslr_fmnist.py', 'pretrain', 4))
    supernet = {'model.supernet': job.checkpoint('pretrain')}
    call(job.train(CONFIGS / 'pinas-nano-linear_b256_fmnist.py', 'linear', 4, **supernet))
    backbone = {'model.backbone.arch': arch, 'model.backbone.init_cfg.type': 'Pretrained'}
    backbone['model.backbone.init_cfg.checkpoint'] = str(root / 'retrained.safetensors')
    for config, name, layout in (
        ('mask-rcnn_pinas-nano_fpn_b8-lin_scenes.py', 'detection', 'coco'),
        ('deeplabv3_pinas-nano-d8_b8-poly_scenes.py', 'segmentation', 'ade20k'),
    ):
        data = f'{root}/scenes/{layout}/'
        options = {f'{split}_dataloader.dataset.data_root': data for split in ('train', 'val', 'test')} | backbone
        if layout == 'coco':
            annotations = f'{data}annotations/instances_val2017.json'
            options |= {f'{split}_evaluator.ann_file': annotations for split in ('val', 'test')}
        call(job.train(CONFIGS / config, name, 4, **options))
    return root


def write_search(run: Path, arch: str) -> None:
    """The log of a search that scored the run's linear stage."""
    source = {'kind': 'fashion-mnist', 'split': 'train'}
    calibration, evaluation = ({'source': {**source, 'limit': n}, 'size': 28} for n in (6400, 256))  # a batch of digits
    data = [{'view': calibration, 'batch_size': 128, 'batches': 1}, {'view': evaluation, 'batch_size': 128}]
    checkpoint = (run / 'linear' / 'last_checkpoint').read_text()
    with SearchLog(run / 'search' / 'archs.jsonl', {'checkpoint': file_sha256(checkpoint), 'data': data}) as log:
        log.append(SearchRecord(0, '00-00-00-00', 9.0))
        log.append(SearchRecord(1, arch, 10.0))


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> list[Path]:
    """A run with everything, and one with a second classifier."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        root = tmp_path_factory.mktemp('runs')
        runs = [train_all(root / 'one', ARCHS[0]), retrain(root / 'two', ARCHS[1])]
    write_search(runs[0], ARCHS[0])
    return runs


@pytest.fixture(scope='module')
def project(runs, tmp_path_factory) -> Path:
    """A copy of the project with the published weights."""
    project = copy_project(tmp_path_factory.mktemp('zoo') / 'project')
    command = ['tools/dev/publish_zoo.py', *map(str, runs), '--hardware', 'two CPU cores', '--anew']
    done = run_in(project, *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split(':')[0] for line in done.stdout.splitlines()[-5:]] == list(NAMES)
    return project


def rows(project: Path) -> dict[str, dict]:
    """The manifest's rows of published weights."""
    content = json.loads((project / 'pinas_zoo/weights/manifest.json').read_text())['weights']
    return {row['name']: row for row in content if 'package' in row['sources'][0]}


def test_files_and_rows(project, runs):
    assert list(rows(project)) == list(NAMES)
    named = {f'{name}.{suffix}' for name in NAMES for suffix in ('safetensors', 'py', 'log', 'md')}
    assert {path.name for path in (project / 'checkpoints').iterdir() if path.name.startswith('pinas_nano')} == named
    archs = [row['arch'] for row in rows(project).values()]
    assert archs == [ARCHS[0], ARCHS[1], None, ARCHS[0], ARCHS[0]]
    for row in rows(project).values():
        (result,) = row['results']
        assert (
            result['reported_by'] == 'us' and result['values'] and all(0 <= v <= 100 for v in result['values'].values())
        )
    # What was measured is what the training's last validation said.
    for name, folder, scalar in ((NAMES[0], 'retrain', 'accuracy/top1'), (NAMES[4], 'segmentation', 'mIoU')):
        (log,) = (runs[0] / folder).glob('*/vis_data/scalars.json')
        said = json.loads(log.read_text().splitlines()[-1])[scalar]
        assert next(iter(rows(project)[name]['results'][0]['values'].values())) == pytest.approx(said, abs=0.006)
    config = (project / 'checkpoints' / f'{NAMES[3]}.py').read_text()
    assert 'pinas://pinas_nano_a.fmnist' in config and str(runs[0]) not in config and ARCHS[0] in config
    meta = json.loads(read_weights(project / 'checkpoints' / f'{NAMES[4]}.safetensors')[1]['dataset_meta'])
    assert meta['classes'][-2:] == ['wall', 'floor'] and len(meta['palette']) == 12


def test_the_tests_of_shipped_weights_hold_for_them(project):
    """Files, rows, cards, timm's transform; and the metrics of all but the slowest measured again."""
    done = run_in(project, '-m', 'pytest', '-q', 'tests/test_own_weights.py', '-k', 'not mask-rcnn')
    assert done.returncode == 0 and 'passed' in done.stdout and 'no weights of our own' not in done.stdout, done.stdout


def test_tables(project):
    assert run_in(project, 'tools/dev/make_tables.py').returncode == 0
    assert run_in(project, 'tools/dev/make_tables.py', '--check').returncode == 0
    for line in (project / 'MODEL_CARD.md').read_text().splitlines():
        if line.startswith('| `pinas_nano_'):
            cells = line.split(' | ')
            assert cells[4] == '-' and '(' in cells[5]  # the paper's column is empty, ours is not
    assert '`pinas_nano_a.fmnist` (ours)' in (project / 'checkpoints/README.md').read_text()


OFFLINE = """
import socket
def refuse(*arguments, **options): raise AssertionError('the network was asked')
socket.socket.connect = socket.create_connection = refuse
import sys, timm, torch, pinas_zoo
from pinas_zoo.weights.load import read_weights
state = read_weights(sys.argv[1])[0]
for net in (
    timm.create_model('pinas_nano_a.fmnist', pretrained=True),
    timm.create_model('pinas_nano_a', pretrained=True),
    torch.hub.load('.', 'pinas_nano_a', source='local', pretrained=True),
    timm.create_model('pinas_nano', checkpoint='pinas://pinas_nano_a.fmnist'),
):
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
assert net.num_classes == 10
grey = timm.create_model('pinas_nano_b', pretrained=True, in_chans=1, num_classes=3)
assert grey(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
assert {'pinas_nano_a.fmnist', 'pinas_nano_b.fmnist'} <= set(timm.list_models('pinas*', pretrained=True))
print('whole')
"""


def test_download_and_timm_with_the_network_off(project, runs):
    done = run_in(project, 'tools/download.py', *NAMES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f'{NAMES[0]}: {project}/checkpoints/{NAMES[0]}.safetensors'
    done = run_in(project, '-c', OFFLINE, str(runs[0] / 'retrained.safetensors'))
    assert done.stdout.strip() == 'whole', done.stderr


INFERENCERS = """
import numpy as np, sys
image = (np.random.RandomState(0).rand(96, 128, 3) * 255).astype('uint8')
from mmdet.apis import DetInferencer
from mmseg.apis import MMSegInferencer
def check(detect, segment):
    assert tuple(detect.model.dataset_meta['classes'])[-1] == sys.argv[3]
    found = detect(image, pred_score_thr=0.0, return_vis=True, no_save_vis=True)
    assert len(found['predictions'][0]['scores']) > 0 and found['visualization'][0].shape == image.shape
    assert tuple(segment.model.dataset_meta['classes'])[-1] == 'floor'
    found = segment(image, return_vis=True)
    assert found['predictions'].shape == image.shape[:2] and found['visualization'].shape == image.shape
    assert (found['predictions'] < 12).all()
names = sys.argv[1:3]
# By config and file: nothing of ours was imported.
files = [(f'checkpoints/{name}.py', f'checkpoints/{name}.safetensors') for name in names]
check(DetInferencer(*files[0], device='cpu'), MMSegInferencer(*files[1], device='cpu'))
# By name, through model-index.yml; the weights come from pinas://NAME.
import pinas_zoo.registry
check(
    DetInferencer(names[0], scope='pinas_zoo', device='cpu'), MMSegInferencer(names[1], scope='pinas_zoo', device='cpu')
)
print('whole')
"""


def test_inferencers(project):
    last = open_source({'kind': 'fashion-mnist', 'split': 'test', 'limit': 1}).classes[
        -1
    ]  # of digits where it is missing
    done = run_in(project, '-c', INFERENCERS, *NAMES[3:], last)
    assert done.stdout.strip().endswith('whole'), done.stderr[-3000:]


def test_refusals(project, runs, tmp_path, monkeypatch):
    from pinas_zoo.mm.release import zoo

    manifest, out = tmp_path / 'manifest.json', tmp_path / 'out'
    shutil.copy(MANIFEST, manifest)
    before = manifest.read_bytes()
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')  # the recipes, beside `out`
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match='no finished training'):
        publish_zoo([tmp_path], out, manifest=manifest, anew=True)
    with pytest.raises(ValueError, match=r'would both be published as pinas_nano_a\.fmnist'):
        publish_zoo([runs[1], runs[1]], out, manifest=manifest, anew=True)
    alone = tmp_path / 'alone'
    for name in ('scenes', 'segmentation'):
        shutil.copytree(runs[0] / name, alone / name)
    with pytest.raises(ValueError, match=f'{ARCHS[0]} is not among the published classifiers'):
        publish_zoo([alone], out, manifest=manifest, anew=True)
    monkeypatch.setattr(zoo, 'LIMIT', 1000)
    with pytest.raises(ValueError, match='bytes, allowed are 1000'):
        publish_zoo([runs[1]], out, manifest=manifest, anew=True)
    monkeypatch.undo()
    (config,) = (runs[1] / 'retrain').glob('*.py')
    shutil.copytree(runs[1], tmp_path / 'odd')
    with open(tmp_path / 'odd' / 'retrain' / config.name, 'a') as file:
        file.write("\ntest_evaluator.update(prefix='/home/somebody')\n")
    with pytest.raises(ValueError, match='contains paths of this machine'):
        publish_zoo([tmp_path / 'odd'], out, manifest=manifest, anew=True)
    assert manifest.read_bytes() == before and not (out.is_dir() and list(out.iterdir()))
