"""--cfg-options: keys without effect are refused with the nearest key, those that mm users add are accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmengine.config import Config

import pinas_zoo.registry  # noqa: F401  `pinas_zoo::` in configs
from pinas_cli.main import main
from pinas_cli.options import overrides as read
from pinas_zoo.mm.engine import overrides
from pinas_zoo.mm.engine.allowed_keys import allowed_keys
from pinas_zoo.mm.engine.launch import load_config
from pinas_zoo.mm.engine.options import Options
from pinas_zoo.mm.engine.testing import _use_show_dir
from pinas_zoo.mm.preflight.bad_input import BadInputError, read_config

pytestmark = pytest.mark.mm
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / 'configs'
CLASSIFIER = 'quickstart/pinas-nano_b128-coslr_fmnist.py'
DETECTOR = 'quickstart/mask-rcnn_pinas-nano_fpn_b8-lin_scenes.py'
COCO = 'coco/mask-rcnn_pinas-b_fpn_1x_coco.py'
EPOCHS = 'imagenet/pinas-b_8xb32-coslr-270e_in1k.py'
PRETRAINING = 'quickstart/pinas-nano-supernet_b128-coslr_fmnist.py'
SEGMENTOR = 'quickstart/deeplabv3_pinas-nano-d8_b8-poly_scenes.py'
SEARCH = 'quickstart/pinas-nano-tree_128_fmnist.py'


def merged(config: str, *words: str) -> Config:
    cfg = Config.fromfile(CONFIGS / config)
    overrides.override(cfg, read(words))
    return cfg


def test_the_uses_of_a_variable_are_keys_that_are_read():
    with pytest.raises(BadInputError) as error:
        merged('quickstart/deeplabv3_pinas-nano-d8_b8-poly_scenes.py', 'root=/x')
    places = str(error.value).rpartition('its value: ')[2].split(', ')
    assert places == [f'{split}_dataloader.dataset.data_root' for split in ('train', 'val', 'test')]


@pytest.mark.parametrize(
    ('config', 'word', 'says'),
    [
        (CLASSIFIER, 'optim_wraper.optimizer.lr=0.5', 'did you mean optim_wrapper.optimizer.lr?'),
        (CLASSIFIER, 'data.root=/x', "'data' is only a variable of the config file"),
        (DETECTOR, 'root=/x', 'entries with its value: train_dataloader.dataset.data_root'),
        (COCO, 'train_pipeline.0.type=X', "'train_pipeline' is only a variable"),
        (EPOCHS, 'train_cfg.max_iters=2', 'counts epochs; did you mean train_cfg.max_epochs?'),
        (CLASSIFIER, 'train_cfg.max_epochs=2', 'max_iters?'),
        (COCO, 'model.backbone.with_cpp=True', 'did you mean model.backbone.with_cp?'),
        (COCO, 'optim_wrapper.optimizer.lrr=1', 'did you mean optim_wrapper.optimizer.lr?'),
        (COCO, 'train_dataloader.batchsize=2', 'did you mean train_dataloader.batch_size?'),
        (COCO, 'default_hooks.loger.interval=5', 'did you mean default_hooks.logger.interval?'),
        (COCO, 'default_hooks.checkpoint.intervall=5', 'did you mean default_hooks.checkpoint.interval?'),
        (COCO, 'randomness.sed=1', 'did you mean randomness.seed?'),
        (COCO, 'param_scheduler.0.bgin=3', 'did you mean param_scheduler.0.begin?'),
        (COCO, 'train_dataloader.dataset.dataroot=/x', 'did you mean train_dataloader.dataset.data_root?'),
        (COCO, 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mul=1', 'backbone.lr_mult?'),
        (COCO, 'model.backbone.init_cfg.chekpoint=x model.backbone.init_cfg.type=Pretrained', 'init_cfg.checkpoint?'),
        (COCO, 'train_dataloader.sampler.seed=4', 'training sets it to 0 itself'),
        (COCO, 'log_processor.by_epoch=True', 'training sets it to False itself'),
        (SEARCH, 'budgett=12', 'did you mean budget?'),
        (CLASSIFIER, 'optim_wrapper.optimizer.lr=abc', 'which a number replaces'),
        (CLASSIFIER, 'optim_wrapper.optimizer.lr=-1', 'must be at least 0'),
        (COCO, 'optim_wrapper.clip_grad.max_nrm=1', 'did you mean optim_wrapper.clip_grad.max_norm?'),
        (COCO, 'train_dataloader.dataset.filter_cfg.min_sise=3', 'filter_cfg.min_sise is not read; did you mean'),
        (
            COCO,
            'train_dataloader.dataset.metainfo.clases=[a]',
            'did you mean train_dataloader.dataset.metainfo.classes?',
        ),
        (COCO, 'model.test_cfg.rcnn.score_tr=0.5', 'did you mean model.test_cfg.rcnn.score_thr?'),
        (CLASSIFIER, 'lr=0.1', 'did you mean optim_wrapper.optimizer.lr?'),
        (CLASSIFIER, 'load_form=x', 'did you mean load_from?'),
        (CLASSIFIER, 'train.batch_size=4', 'did you mean train_dataloader.batch_size?'),
        (CLASSIFIER, 'train_dataloader.batch_size=2.5', 'must be an integer'),
        (CLASSIFIER, 'train_dataloader.batch_size=True', 'must be an integer'),
        (CLASSIFIER, 'randomness.seed=abc', 'must be an integer'),
        (CLASSIFIER, 'preflight=no', 'must be True or False'),
        (COCO, 'param_scheduler.0.by_epoch=maybe', 'must be True or False'),
        (CLASSIFIER, 'launcher=slurm', 'the option --launcher sets it'),
        (SEARCH, 'budget=0', 'must be at least 1'),
        (CLASSIFIER, 'optim_wrapper.optimizer.lr=nan', 'lr=nan: must be at least 0'),
        (CLASSIFIER, 'optim_wrapper.optimizer.type=Adamw', 'no such optimizer; did you mean AdamW?'),
        (CLASSIFIER, 'train_dataloader.batch_size=0', 'must be at least 1'),
        (CLASSIFIER, 'train_dataloader.num_workers=-1', 'must be at least 0'),
        (DETECTOR, 'model=3', 'a MaskRCNN there; set one of'),
        (DETECTOR, 'train_dataloader.dataset.pipeline.40.prob=1', 'pipeline is a list of'),
        (DETECTOR, 'train_dataloader.dataset.pipeline.-1.type=X', "pipeline is a list of 4 entries, 0 to 3, not '-1'"),
    ],
)
def test_no_effect(config: str, word: str, says: str) -> None:
    with pytest.raises(BadInputError) as caught:
        merged(config, *word.split())
    assert says in str(caught.value) and word.split('=')[0] in str(caught.value)


LEGAL = """
coco/mask-rcnn_pinas-b_fpn_1x_coco.py model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.prefix=net. \
    model.backbone.init_cfg.checkpoint=x.pth load_from=y.pth randomness.deterministic=True preflight=False
coco/mask-rcnn_pinas-b_fpn_1x_coco.py model.backbone.frozen_stages=2 model.backbone.with_cp=True
coco/mask-rcnn_pinas-b_fpn_1x_coco.py model.backbone.init_cfg=None auto_scale_lr.enable=True resume=True sync_bn=torch
coco/mask-rcnn_pinas-b_fpn_1x_coco.py optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0.1 \
    optim_wrapper.clip_grad.max_norm=3 optim_wrapper.accumulative_counts=2 optim_wrapper.optimizer.nesterov=True
coco/mask-rcnn_pinas-b_fpn_1x_coco.py visualizer.vis_backends.1.type=WandbVisBackend default_hooks.ema.type=EMAHook \
    default_hooks.checkpoint.max_keep_ckpts=2 default_hooks.checkpoint.save_best=auto
coco/mask-rcnn_pinas-b_fpn_1x_coco.py train_dataloader.prefetch_factor=4 train_dataloader.pin_memory=True \
    train_dataloader.num_batch_per_epoch=4 train_dataloader.dataset.indices=10 test_dataloader.dataset.data_root=/x
coco/mask-rcnn_pinas-b_fpn_1x_coco.py model.test_cfg.rcnn.nms.class_agnostic=True env_cfg.cudnn_benchmark=True \
    model.roi_head.bbox_head.norm_cfg.type=BN model.roi_head.bbox_head.norm_cfg.requires_grad=True
coco/mask-rcnn_pinas-b_fpn_1x_coco.py train_cfg._delete_=True train_cfg.by_epoch=True train_cfg.max_epochs=5
imagenet/pinas-b_8xb32-coslr-270e_in1k.py train_cfg.max_epochs=3 train_cfg.val_interval=2 model.model.drop_rate=0.1
quickstart/pinas-nano_b128-coslr_fmnist.py train_cfg.max_iters=4 train_dataloader.batch_size=8 model.mixup=0.2
quickstart/pinas-nano-tree_128_fmnist.py budget=12 searcher.initial=8 calibration.batches=1  arch=30-02-00-10
"""


@pytest.mark.parametrize('line', LEGAL.strip().replace('\\\n', '').splitlines())
def test_what_mm_users_add(line: str) -> None:
    config, *words = line.split()
    cfg = merged(config, *words)
    plain = Config.fromfile(CONFIGS / config)
    plain.merge_from_dict(read(words))
    assert cfg._cfg_dict == plain._cfg_dict


def refused(cfg: Config) -> Iterator[tuple[str, str]]:
    """Keys of a config that would be refused if they were overrides, dict by dict."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict):
            allowed = allowed_keys(cfg, node, path)
            yield from ((path, key) for key in node if allowed is not None and key not in allowed)
        items = enumerate(node) if isinstance(node, (list, tuple)) else node.items() if isinstance(node, dict) else ()
        for key, value in items:
            yield from walk(value, f'{path}.{key}')

    for top in overrides.top_level_keys(cfg) & set(cfg):
        yield from walk(cfg[top], top)


@pytest.mark.slow
def test_no_key_of_our_configs_is_refused() -> None:
    """What configs contain is valid, so the same keys must be accepted as overrides."""
    files = sorted(
        {path.parent: path for path in sorted(CONFIGS.glob('*/*.py')) if path.parent.name != '_base_'}.values()
    )
    files += sorted(CONFIGS.glob('quickstart/*.py')) + sorted(CONFIGS.glob('coco/*.py'))[::7]
    assert len(files) > 15
    found = {str(path): list(refused(Config.fromfile(path))) for path in files}
    assert not {path: keys for path, keys in found.items() if keys}


def test_optional_settings_of_a_search_are_known() -> None:
    """What search and shortlist read with a default may be missing from their configs."""
    files = [ROOT / 'pinas_zoo' / 'mm' / f'{name}.py' for name in ('search', 'shortlist')]
    read_keys = {key for file in files for key in re.findall(r"cfg\.get\('(\w+)'", file.read_text())}
    assert {'objective', 'workers', 'arch'} <= read_keys <= overrides.top_level_keys(Config(dict(space='pinas')))


def test_others_code_may_read_anything(tmp_path: Path) -> None:
    path = tmp_path / 'config.py'
    path.write_text("custom_imports = dict(imports=['json'])\nmodel = dict(type='pinas_zoo.Classifier')\n")
    cfg = Config.fromfile(path)
    overrides.override(cfg, {'mine.value': 1})
    assert cfg.mine.value == 1


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(CONFIGS / CLASSIFIER), '--work-dir', str(tmp_path), '--cfg-options', 'optim_wraper.optimizer.lr=1']
    assert main(['train', *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith('pinas train: error: --cfg-options optim_wraper') and len(error.splitlines()) == 1
    search = [str(CONFIGS / SEARCH), '--checkpoint', 'none.pth', '--cfg-options', 'budgett=1']
    assert main(['search', *search]) == 1 and 'budget?' in capsys.readouterr().err


@pytest.mark.parametrize('config', [CLASSIFIER, DETECTOR, COCO, PRETRAINING])
def test_an_installed_base_equals_its_path(config: str, tmp_path: Path) -> None:
    read = []
    for name, base in (('named', f'pinas_zoo::{config}'), ('path', str(CONFIGS / config))):
        (tmp_path / f'{name}.py').write_text(f'_base_ = {base!r}\n')
        read.append(load_config(tmp_path / f'{name}.py', Options(work_dir='run')).to_dict())
        assert read_config(tmp_path / f'{name}.py').model == read[0]['model']
    assert read[0] == read[1]


def test_show_dir_draws_every_image_into_that_folder() -> None:
    """mmseg's hook draws one image of 50; mmdet's joins a relative folder to that of the log."""
    detector, segmentor = (read_config(CONFIGS / config) for config in (COCO, SEGMENTOR))
    for cfg in (detector, segmentor):
        _use_show_dir(cfg, 'drawn')
        assert cfg.default_hooks.visualization.draw and cfg.default_hooks.visualization.interval == 1
    assert detector.default_hooks.visualization.test_out_dir == str(Path('drawn').absolute())
    assert segmentor.visualizer.save_dir == 'drawn'


def test_a_config_that_does_not_exist() -> None:
    with pytest.raises(BadInputError, match=r'_1x_coc.py: the config does not exist; did you mean .*_1x_coco.py\?'):
        read_config(CONFIGS / COCO.replace('coco.py', 'coc.py'))
    with pytest.raises(BadInputError, match='nowhere/x.py: the config does not exist$'):
        read_config('nowhere/x.py')
