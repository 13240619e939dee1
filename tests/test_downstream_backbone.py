"""PiNASBackbone inside the quickstart's Mask R-CNN and DeepLabV3 on generated scenes; its weights through the tool."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)
pytestmark = pytest.mark.mm

from downstream_runs import short_config, write_backbone, write_scenes  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope, init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from pinas_zoo.mm.backbone import PiNASBackbone  # noqa: E402
from pinas_zoo.mm.engine import machine  # noqa: E402
from pinas_zoo.mm.engine.from_data import fill_from_data  # noqa: E402
from pinas_zoo.registry import MODELS, OPTIM_WRAPPERS, OPTIMIZERS  # noqa: E402
from pinas_zoo.weights.load import read_weights, save_weights  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
KINDS = ('detection', 'segmentation')


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file with a classifier of the architecture."""
    return write_backbone(tmp_path_factory.mktemp('weights') / 'backbone.safetensors')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 and 8 scenes of 128 px."""
    return write_scenes(tmp_path_factory.mktemp('scenes'), 16, 8)


@pytest.fixture
def scope() -> Any:
    """Restores the default scope."""
    before = DefaultScope.get_current_instance()
    yield init_default_scope
    init_default_scope(before.scope_name if before else 'pinas_zoo')


def prepared(kind: str, root: Path, weights: Path) -> Config:
    """A quickstart config on these scenes and weights, as tools/train.py rewrites it for a CPU."""
    cfg = short_config(kind, root, 1)
    cfg.val_dataloader.batch_size = 2
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(weights))
    fill_from_data(cfg)
    machine.replace_sync_bn(cfg, [])
    machine.fit_workers(cfg)
    return cfg


def train_and_predict(cfg: Config) -> tuple[nn.Module, dict[str, float], list]:
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    optimiser = OPTIMIZERS.build(dict(cfg.optim_wrapper.optimizer, params=list(model.parameters())))
    wrapper = OPTIM_WRAPPERS.build(dict(type='OptimWrapper', optimizer=optimiser))
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    losses = model.train().train_step(batch, wrapper)
    batch = next(iter(Runner.build_dataloader(cfg.val_dataloader, seed=0)))
    with torch.no_grad():
        predictions = model.eval().val_step(batch)
    return model, {name: float(value.detach()) for name, value in losses.items()}, predictions


def assert_backbone_learned(model: nn.Module, weights: Path) -> None:
    state = read_weights(weights)[0]
    assert type(model.backbone) is PiNASBackbone
    moved = [not torch.equal(p, state[name]) for name, p in model.backbone.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)
    close = [(p - state[name]).abs().max() < 0.01 for name, p in model.backbone.named_parameters()]
    assert all(close)  # one step away from the file


def test_mask_rcnn(scenes: Path, weights: Path, scope: Any) -> None:
    scope('mmdet')
    model, losses, predictions = train_and_predict(prepared('detection', scenes, weights))
    assert {'loss', 'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask'} <= set(losses)
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values()) and losses['loss'] > 0
    assert_backbone_learned(model, weights)
    assert len(predictions) == 2
    for sample in predictions:
        found = sample.pred_instances
        assert found.bboxes.shape == (len(found), 4) and found.masks.shape == (len(found), 128, 128)
        assert torch.isfinite(found.scores).all()


def test_deeplabv3(scenes: Path, weights: Path, scope: Any) -> None:
    scope('mmseg')
    model, losses, predictions = train_and_predict(prepared('segmentation', scenes, weights))
    assert {'loss', 'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values()) and losses['loss'] > 0
    assert_backbone_learned(model, weights)
    assert len(predictions) == 2
    for sample in predictions:
        classes = sample.pred_sem_seg.data
        assert classes.shape == (1, 128, 128) and set(classes.unique().tolist()) <= set(range(12))


def train_one_iteration(kind: str, scenes: Path, folder: Path, **options: Any) -> int:
    """tools/train.py with options for the backbone and a learning rate of 0; returns its exit status."""
    short_config(kind, scenes, 1).dump(folder / 'config.py')
    options = {f'model.backbone.{key}': value for key, value in options.items()} | {'optim_wrapper.optimizer.lr': 0.0}
    main = runpy.run_path(str(ROOT / 'tools/train.py'))['main']
    words = [f'{key}={value}' for key, value in options.items()]
    return int(main([str(folder / 'config.py'), '--work-dir', str(folder / 'run'), '--cfg-options', *words]) or 0)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_pretrained_backbone_reaches_the_model(
    kind: str, scenes: Path, weights: Path, tmp_path: Path, scope: Any
) -> None:
    options = {'init_cfg.type': 'Pretrained', 'init_cfg.checkpoint': weights, 'norm_eval': True}
    assert train_one_iteration(kind, scenes, tmp_path, **options) == 0
    state, model = read_weights(weights)[0], read_weights(tmp_path / 'run' / 'iter_1.pth')[0]
    saved = {name.removeprefix('backbone.'): value for name, value in model.items() if name.startswith('backbone.')}
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert f'{weights}: matched {len(saved)}' in log.read_text()
    assert {name.split('.')[0] for name in state.keys() - saved.keys()} == {'fc'}
    assert [name for name, tensor in saved.items() if not torch.equal(tensor, state[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_misfit_stops_the_training(
    kind: str, scenes: Path, weights: Path, tmp_path: Path, scope: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {'init_cfg.type': 'Pretrained', 'init_cfg.checkpoint': weights}
    assert train_one_iteration(kind, scenes, tmp_path, arch='00-00-00-00', **options) > 0
    assert 'has architecture 30-32-20-03, but the network has 00-00-00-00' in capsys.readouterr().err
    state, metadata = read_weights(weights)
    state['layer3.1.conv3.weight'] = state['layer3.1.conv3.weight'][:, :-1]
    save_weights(tmp_path / 'narrow.safetensors', state, metadata)
    options |= {'init_cfg.checkpoint': tmp_path / 'narrow.safetensors'}
    assert train_one_iteration(kind, scenes, tmp_path, **options) > 0
    assert 'mismatched: layer3.1.conv3.weight (256, 63, 1, 1) for (256, 64, 1, 1)' in capsys.readouterr().err
    assert not list((tmp_path / 'run').glob('*.pth'))  # before the first iteration
