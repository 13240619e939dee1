"""TensorBoard by default and Weights & Biases by one option, for our configs and for those on mmdet's and mmseg's."""

from __future__ import annotations

import importlib.machinery
import re
import sys
import types
from pathlib import Path

import pytest
from downstream import ROOT, one_per_model, read

pytestmark = pytest.mark.mm

#: Ours that are trained, and one of each downstream model. The search writes no scalars.
OWN = [
    path
    for folder in ('pretrain', 'linear', 'imagenet', 'quickstart')
    for path in (ROOT / 'configs' / folder).glob('*.py')
]
CONFIGS = [path for path in sorted(OWN) if not re.search('tree_|shortlist_', path.name)] + one_per_model()


def label(path: Path) -> str:
    return f'{path.parent.name}/{path.stem}'


def kinds(cfg) -> list[str]:
    return [backend.type for backend in cfg.visualizer.vis_backends]


@pytest.fixture
def wandb(monkeypatch):
    """A fake that records its calls; the real package is not among our requirements."""
    module = types.ModuleType('wandb')
    module.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
    module.started, module.logged = [], []
    module.init = lambda **settings: module.started.append(settings)
    module.log = lambda values, **settings: module.logged.append(values)
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return module


@pytest.mark.parametrize('path', CONFIGS, ids=label)
def test_one_entry_of_every_config(path, wandb):
    from pinas_zoo.mm.engine.trackers import use_wandb

    cfg = read(path)
    assert kinds(cfg) == ['LocalVisBackend', 'TensorboardVisBackend']
    cfg.merge_from_dict({'visualizer.vis_backends.1.type': 'WandbVisBackend'})
    assert kinds(cfg) == ['LocalVisBackend', 'WandbVisBackend']
    cfg = read(path)
    cfg.work_dir = 'work_dirs/my-run'
    for _ in range(2):
        use_wandb(cfg, 'mine')
        assert kinds(cfg) == ['LocalVisBackend', 'WandbVisBackend']
    assert cfg.visualizer.vis_backends[1].init_kwargs == {'project': 'mine', 'name': 'my-run'}


def test_configs_with_other_backends(wandb):
    from mmengine.config import Config

    from pinas_zoo.mm.engine.trackers import use_wandb

    cfg = Config({'visualizer': {'type': 'DetLocalVisualizer', 'vis_backends': [{'type': 'LocalVisBackend'}]}})
    use_wandb(cfg, 'mine')
    assert kinds(cfg) == ['LocalVisBackend', 'WandbVisBackend'] and cfg.visualizer.type == 'DetLocalVisualizer'
    cfg = Config({})
    use_wandb(cfg, 'mine')
    assert kinds(cfg) == ['LocalVisBackend', 'WandbVisBackend'] and cfg.visualizer.type == 'Visualizer'


def test_scalars_arrive(wandb, tmp_path):
    from mmengine.config import Config
    from mmengine.registry import VISUALIZERS
    from mmengine.visualization import Visualizer  # noqa: F401  registers itself

    from pinas_zoo.mm.engine.trackers import use_wandb

    cfg = Config({'work_dir': str(tmp_path / 'run')})
    use_wandb(cfg, 'mine')
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'name': 'test_trackers', 'save_dir': str(tmp_path)})
    visualizer.add_scalars({'loss': 0.5}, step=3)
    (settings,) = wandb.started
    assert settings['project'] == 'mine' and settings['name'] == 'run'
    assert wandb.logged == [{'loss': 0.5}] or wandb.logged == [{'loss': 0.5, 'step': 3}]
    assert '"loss": 0.5' in (tmp_path / 'vis_data' / 'scalars.json').read_text()


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    """By our option before anything is built, by the config's entry when the backend is first used."""
    from mmengine.config import Config
    from mmengine.visualization import WandbVisBackend

    from pinas_zoo.mm.engine.trackers import use_wandb

    monkeypatch.setitem(sys.modules, 'wandb', None)
    cfg = Config({})
    with pytest.raises(ImportError, match=r'^Weights & Biases needs its package: pip install wandb$'):
        use_wandb(cfg, 'mine')
    assert 'visualizer' not in cfg
    backend = WandbVisBackend(save_dir=str(tmp_path))
    with pytest.raises(ImportError, match=r'^Please run "pip install wandb" to install wandb$'):
        backend.add_config(cfg)
