"""Every detection and segmentation config: form, names, paths, schedule, model; and the paper's details one by one."""

from __future__ import annotations

import ast
import copy
import json
import re
from pathlib import Path

import pytest
from downstream import (
    ALL,
    ARCHS,
    FOLDERS,
    RELEASED,
    ROOT,
    TRAINED,
    backbone_name,
    build,
    dicts,
    label,
    like,
    make_small,
    model_name,
    own_bases,
    read,
    write_data,
)
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

pytestmark = pytest.mark.mm

BASELINES = ('s50', 'r50', 'r50-caffe')
EVERY = TRAINED + RELEASED
every = pytest.mark.parametrize('path', EVERY, ids=label)
trained = pytest.mark.parametrize('path', TRAINED, ids=label)
PINAS = [path for path in TRAINED if 'pinas' in backbone_name(path)]
NAMES = {
    'coco': r'[a-z-]+_(pinas-[ab]|s50|r50|r50-caffe)_fpn(-plain)?_[13]x_coco',
    'ade20k': r'[a-z0-9-]+_(pinas-[ab]|s50|r50)(-d8)?_4xb4-(80|160)k_ade20k-512x512',
    'cityscapes': r'[a-z0-9-]+_(pinas-[ab]|s50|r50)(-d8)?_4xb2-(40|80)k_cityscapes-(512x1024|769x769)',
}
DATA = {
    'coco': ('data/coco/', ('annotations/instances_{}2017.json', '{}2017/')),
    'ade20k': ('data/ade/ADEChallengeData2016', ('images/{}', 'annotations/{}')),
    'cityscapes': ('data/cityscapes/', ('leftImg8bit/{}', 'gtFine/{}')),
}


# ---- files -----------------------------------------------------------------------------------------------------------


def test_every_config_of_the_project_has_a_test():
    ours = {
        'imagenet',
        'linear',
        'macro',
        'nano',
        'pretrain',
        'quickstart',
        'search',
        'transfer',
    }  # see test_configs.py
    files = [path for path in ROOT.glob('configs/**/*.py') if '_base_' not in path.parts]
    assert {path.relative_to(ROOT / 'configs').parts[0] for path in files} <= ours | set(FOLDERS)
    assert {path for path in files if path.parent.name in FOLDERS} == set(EVERY)
    assert all(path.parent.parent.name == 'configs' for path in files), 'a config in a deeper folder escapes the tests'


@pytest.mark.parametrize('folder', FOLDERS)
def test_a_folder_is_complete(folder):
    paths = [path for path in ALL[folder] if path in TRAINED]
    assert len(paths) >= 16
    for path in paths:
        if backbone_name(path).startswith('pinas-b'):
            assert like(path, 'pinas-a').is_file(), f'{path.name} has no pair with pinas_a'
    for head in {model_name(path).replace('pinas-a', 'pinas-b') for path in paths if 'pinas' in path.name}:
        of_head = [path for path in paths if model_name(path) == head]
        baselines = [like(path, name) for path in of_head for name in BASELINES if like(path, name).is_file()]
        assert len(baselines) == 1, f'{head}: one baseline, got {[path.name for path in baselines]}'


def test_a_name_is_a_recipe():
    for path in TRAINED:
        assert re.fullmatch(NAMES[path.parent.name], path.stem), path.name


@every
def test_file_is_short_and_computes_nothing(path):
    assert len(path.read_text().splitlines()) <= 50
    allowed = (ast.Module, ast.Assign, ast.Call, ast.Name, ast.keyword, ast.Constant, ast.List, ast.Tuple, ast.Dict)
    allowed += (ast.Load, ast.Store, ast.UnaryOp, ast.USub, ast.Attribute)
    for node in ast.walk(ast.parse(path.read_text())):
        assert isinstance(node, allowed), f'line {getattr(node, "lineno", "?")}: {type(node).__name__}'
        assert not isinstance(node, ast.Call) or node.func.id == 'dict'
        assert not isinstance(node, ast.Attribute) or node.value.id == '_base_', 'only values of the base are named'
    depth, level = 0, [path]
    while level:
        bases = [base for file in level for base in own_bases(file)]
        depth, level = depth + 1, [base for base in bases if '_base_' not in base.parts]  # those hold values only
    assert depth <= 3


# ---- content ---------------------------------------------------------------------------------------------------------


@every
def test_names_resolve(path):
    from mmengine import registry

    cfg = read(path)
    assert cfg.default_scope == ('mmdet' if path.parent.name == 'coco' else 'mmseg')
    assert cfg.get('custom_imports') is None and cfg.env_cfg.dist_cfg.backend == 'nccl'
    loaders = [cfg[name] for name in ('train_dataloader', 'val_dataloader', 'test_dataloader') if cfg.get(name)]
    parts = {
        'DATASETS': [node for loader in loaders for node in dicts(loader.dataset) if 'pipeline' in node],
        'TRANSFORMS': [step for loader in loaders for node in dicts(loader) for step in node.get('pipeline', ())],
        'DATA_SAMPLERS': [loader[key] for loader in loaders for key in ('sampler', 'batch_sampler') if loader.get(key)],
        'HOOKS': [hook for hook in cfg.default_hooks.values() if hook],
        'METRICS': [cfg.test_evaluator],
        'VISUALIZERS': [cfg.visualizer],
        'VISBACKENDS': list(cfg.visualizer.vis_backends),
        'MODELS': [node for node in dicts(cfg.model) if node.get('type', '').endswith(('Head', 'FPN', 'Net', 'RCNN'))],
    }
    if path in TRAINED:
        parts['PARAM_SCHEDULERS'] = cfg.param_scheduler
        parts['OPTIM_WRAPPERS'], parts['OPTIMIZERS'] = [cfg.optim_wrapper], [cfg.optim_wrapper.optimizer]
    for name, nodes in parts.items():
        assert nodes, name
        with getattr(registry, name).switch_scope_and_registry(None) as scoped:
            for node in nodes:
                assert scoped.get(node['type']) is not None, f'{name} has no {node["type"]}'


@every
def test_model_builds(path):
    cfg = read(path)
    model = build(cfg)
    assert 2e7 < sum(p.numel() for p in model.parameters()) < 1.2e8
    backbone = cfg.model.backbone
    name = backbone_name(path).removesuffix('-d8')
    if name in ARCHS:
        assert (backbone.type, backbone.arch) == ('pinas_zoo.PiNASBackbone', ARCHS[name])
        assert backbone.get('init_cfg') is None and cfg.model.get('pretrained') is None
        assert backbone.get('output_stride', 32) == (8 if '-d8' in backbone_name(path) else 32)
    classes = {'coco': 80, 'ade20k': 150, 'cityscapes': 19}[path.parent.name]
    counts = {node['num_classes'] for node in dicts(cfg.model) if 'num_classes' in node}
    assert counts == {classes}
    mean, std = cfg.model.data_preprocessor.mean, cfg.model.data_preprocessor.std
    if name != 'r50-caffe':
        assert (mean, std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        assert cfg.model.data_preprocessor.bgr_to_rgb


@trained
def test_data_paths(path):
    cfg = read(path)
    root, places = DATA[path.parent.name]
    splits = ('training', 'validation') if path.parent.name == 'ade20k' else ('train', 'val')
    for name, split in (('train_dataloader', splits[0]), ('val_dataloader', splits[1]), ('test_dataloader', splits[1])):
        dataset = cfg[name].dataset
        dataset = dataset.get('dataset', dataset)
        assert dataset.data_root == root and not Path(root).is_absolute()
        found = [dataset.ann_file] if 'ann_file' in dataset else []
        assert (*found, *dataset.data_prefix.values()) == tuple(place.format(split) for place in places)
    if path.parent.name == 'coco':
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            assert evaluator.ann_file == root + 'annotations/instances_val2017.json'


@trained
def test_schedule_ends_with_the_training(path):
    cfg = read(path)
    by_epoch = 'max_epochs' in cfg.train_cfg
    length = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    *warm_up, last = cfg.param_scheduler
    assert last.by_epoch == by_epoch and last.begin == 0 and last.end == length
    assert all(not part.by_epoch and 0 < part.end <= 1000 for part in warm_up)
    assert max(last.get('milestones', [0])) < length
    assert cfg.train_cfg.val_interval <= length
    schedule = path.stem.split('_')[3 if path.parent.name == 'coco' else 2]
    if path.parent.name == 'coco':
        dataset = cfg.train_dataloader.dataset
        epochs = {12: 12, 90000: 12, 270000: 36}[length] * dataset.get('times', 1)
        assert epochs == {'1x': 12, '3x': 36}[schedule]
        assert cfg.auto_scale_lr.base_batch_size == 16 == 8 * cfg.train_dataloader.batch_size
    else:
        gpus, batch, iterations = map(int, re.fullmatch(r'(\d+)xb(\d+)-(\d+)k', schedule).groups())
        assert length == iterations * 1000 and cfg.train_dataloader.batch_size == batch
        assert cfg.auto_scale_lr.base_batch_size == gpus * batch
        crop = tuple(map(int, path.stem.rsplit('-', 1)[1].split('x')))
        crops = {node['crop_size'] for node in dicts(cfg.train_dataloader) if 'crop_size' in node}
        assert crops == {crop} and tuple(cfg.model.data_preprocessor.size) == crop
    assert not cfg.auto_scale_lr.enable


@pytest.fixture(scope='module')
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp('generated')
    for folder in FOLDERS:
        write_data(root / folder, folder)
    return root


@trained
def test_batches_of_generated_data(path, generated):
    """Every schedule and crop through the rewrites of tools/train.py; the models run in test_downstream_train.py."""
    from mmengine.runner import Runner

    from pinas_zoo.mm.engine import machine, rewrite

    cfg = read(path)
    make_small(cfg, generated / path.parent.name)
    machine.fit_workers(cfg)
    rewrite.make_exact(cfg, seed=0, notes=[])
    train = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    side = 96 if path.parent.name == 'coco' else 64
    assert [tuple(image.shape) for image in train['inputs']] == [(3, side, side)] * 2
    for sample in train['data_samples']:
        if path.parent.name == 'coco':
            assert len(sample.gt_instances) == 2
        else:
            assert sample.gt_sem_seg.data.shape == (1, side, side)
    val = next(iter(Runner.build_dataloader(cfg.val_dataloader, seed=0)))
    assert tuple(val['inputs'][0].shape) == (3, 96, 96)


# ---- comparisons -----------------------------------------------------------------------------------------------------

RECIPE = ('train_dataloader', 'val_dataloader', 'train_cfg', 'param_scheduler', 'optim_wrapper', 'auto_scale_lr')


@pytest.mark.parametrize('path', [p for p in PINAS if 'pinas-b' in backbone_name(p)], ids=label)
def test_both_networks_and_the_baseline_share_all_but_the_backbone(path):
    cfg, other = read(path), read(like(path, 'pinas-a'))
    other.model.backbone.arch = cfg.model.backbone.arch
    assert cfg._cfg_dict.to_dict() == other._cfg_dict.to_dict()
    for baseline in filter(Path.is_file, (like(path, name) for name in BASELINES)):
        other = read(baseline)
        for key in RECIPE:
            assert cfg[key] == other[key], f'{baseline.name}: {key}'
        for model in (cfg.model, other.model):
            for key in ('backbone', 'pretrained', *(('data_preprocessor',) if 'caffe' in baseline.name else ())):
                model.pop(key, None)
        assert cfg.model == other.model


def test_configs_of_one_name_share_the_model():
    seen = {}
    for path in TRAINED:
        model = copy.deepcopy(read(path).model)
        model.data_preprocessor.pop('size', None)
        if path.parent.name != 'coco':
            model.pop('test_cfg')  # sliding over crops of 769, whole else
        assert seen.setdefault(model_name(path), model) == model, path.name


#: What decides neither the layers of an export nor its operators: the backbone, and what only trainings use.
NOT_THE_HEAD = ('backbone', 'data_preprocessor', 'train_cfg', 'auxiliary_head', 'init_cfg', 'pretrained', 'sampler')


def parts_of(node, place='') -> frozenset[tuple[str, str]]:
    """The kinds of all parts of a head, each with its place in the config."""
    found = set()
    for key, value in node.items() if isinstance(node, dict) else ():
        if key == 'type':
            found.add((place, value if isinstance(value, str) else value.__name__))
        elif key not in NOT_THE_HEAD and not key.startswith('loss'):
            for part in value if isinstance(value, (list, tuple)) else [value]:
                found |= parts_of(part, f'{place}.{key}')
    return frozenset((at, name.rpartition('.')[2]) for at, name in found)


def test_the_export_table_has_every_head(monkeypatch):
    """docs/export.md names each distinct head of configs/, with a result or the operator that stands in the way."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools/dev'))
    import export_table

    shown = {parts_of(read(ROOT / 'configs' / path).model): name for name, path in export_table.CONFIGS.items()}
    assert len(shown) == len(export_table.CONFIGS)
    rows = json.loads(export_table.RESULTS.read_text())['heads']
    assert set(shown.values()) <= set(rows) and all(rows[name].keys() >= {'onnx', 'pt2'} for name in shown.values())
    assert all(f'| {name} |' in export_table.PAGE.read_text() for name in rows)
    scenes = [
        path for folder in ('nano', 'quickstart', 'transfer') for path in ROOT.glob(f'configs/{folder}/*_scenes.py')
    ]
    assert len(scenes) > 5
    missing = [label(path) for path in (*EVERY, *scenes) if parts_of(read(path).model) not in shown]
    assert not missing, f'no row in tools/dev/export_table.py has the head of {missing}'


# ---- the paper's forms -----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def cfg():
    return read(ROOT / 'configs/coco/mask-rcnn_pinas-b_fpn_1x_coco.py')


@pytest.fixture(scope='module')
def model(cfg):
    return build(cfg).train()


class TestPaperMaskRCNN:
    def test_sync_bn_in_backbone_fpn_and_both_heads(self, model):
        def norms(part):
            return [module for module in part.modules() if isinstance(module, _BatchNorm)]

        heads = (model.roi_head.bbox_head, model.roi_head.mask_head)
        assert [len(norms(part)) for part in (model.neck, *heads)] == [8, 4, 4]
        assert all(
            isinstance(norm, nn.SyncBatchNorm) for part in (model.backbone, model.neck, *heads) for norm in norms(part)
        )
        assert not norms(model.rpn_head) and not norms(model.roi_head.mask_head.upsample)
        assert isinstance(model.roi_head.mask_head.upsample, nn.ConvTranspose2d)

    def test_nothing_is_frozen(self, model):
        assert all(p.requires_grad for p in model.parameters())
        assert all(module.training for module in model.modules())
        assert model.backbone.frozen_stages == -1 and model.backbone.norm_eval is False

    def test_fpn_has_no_bias(self, model):
        assert all(m.bias is None for m in model.neck.modules() if isinstance(m, nn.Conv2d))

    def test_box_head_is_4conv1fc_and_class_specific(self, model):
        head = model.roi_head.bbox_head
        assert (len(head.shared_convs), len(head.shared_fcs)) == (4, 1)
        assert head.fc_reg.out_features == 4 * 80 and head.fc_cls.out_features == 81
        assert {conv.conv.out_channels for conv in head.shared_convs} == {256}
        assert head.shared_fcs[0].out_features == 1024

    def test_input(self, cfg):
        processor = cfg.model.data_preprocessor
        assert processor.bgr_to_rgb and processor.mean == [123.675, 116.28, 103.53]
        assert processor.std == [58.395, 57.12, 57.375]
        steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
        assert steps['RandomChoiceResize'].scales == [(1333, side) for side in range(640, 801, 32)]
        assert steps['RandomChoiceResize'].keep_ratio and steps['RandomFlip'].prob == 0.5
        (resize,) = [step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize']
        assert resize.scale == (1333, 800) and resize.keep_ratio

    def test_schedule(self, cfg):
        assert cfg.auto_scale_lr.base_batch_size == 16
        assert cfg.train_cfg.max_iters == 90000
        warm_up, steps = cfg.param_scheduler
        assert (warm_up.type, warm_up.start_factor, warm_up.end) == ('LinearLR', 0.001, 1000)
        assert (steps.milestones, steps.gamma) == ([60000, 80000], 0.1)
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.momentum) == ('SGD', 0.02, 0.9)

    def test_no_weight_decay_on_norms(self, cfg, model):
        from mmengine.optim import build_optim_wrapper

        groups = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer.param_groups
        decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
        norms = {id(p) for module in model.modules() if isinstance(module, _BatchNorm) for p in module.parameters()}
        assert len(decay) == len(list(model.parameters()))
        assert {decay[key] for key in norms} == {0.0}
        assert {value for key, value in decay.items() if key not in norms} == {1e-4}

    def test_three_times_the_schedule(self):
        cfg = read(ROOT / 'configs/coco/mask-rcnn_pinas-b_fpn_3x_coco.py')
        assert cfg.train_cfg.max_iters == 270000
        assert cfg.param_scheduler[1].milestones == [210000, 250000]


@pytest.mark.parametrize('folder, classes', [('ade20k', 150), ('cityscapes', 19)])
def test_paper_deeplabv3(folder, classes):
    paths = [path for path in TRAINED if path.parent.name == folder and path.stem.startswith('deeplabv3_pinas')]
    assert len(paths) == {'ade20k': 4, 'cityscapes': 8}[folder]
    for path in paths:
        cfg = read(path)
        head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
        assert (head.type, head.channels, head.num_classes) == ('pinas_zoo.ReleasedASPPHead', 256, classes)
        assert head.align_corners and auxiliary.align_corners
        assert (auxiliary.in_channels, auxiliary.channels, auxiliary.num_convs) == (1024, 256, 1)
        assert not auxiliary.concat_input and cfg.model.backbone.output_stride == 8


def test_plain_form_is_mmdets():
    for path in TRAINED:
        if path.parent.name == 'coco' and 'pinas' in path.name and not re.search(r'^mask-rcnn.*_fpn_', path.name):
            backbone = read(path).model.backbone
            assert (backbone.frozen_stages, backbone.norm_eval, 'norm_cfg' in backbone) == (1, True, False)
