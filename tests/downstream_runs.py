"""Short runs of the nano detection and segmentation configs: scenes, configs, the gradients of each rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from downstream import ROOT, dicts
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pinas_zoo.data import open_source
from pinas_zoo.data.scenes.prepare import SceneSettings, prepare_scenes
from pinas_zoo.mm.engine.checkpoint_hook import unwrap
from pinas_zoo.mm.engine.hooks import batch_names
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.registry import HOOKS
from pinas_zoo.search.derive import save_backbone

DETECTION = Path('configs/quickstart/mask-rcnn_pinas-nano_fpn_b8-lin_scenes.py')
SEGMENTATION = Path('configs/quickstart/deeplabv3_pinas-nano-d8_b8-poly_scenes.py')
CONFIGS = {'detection': DETECTION, 'segmentation': SEGMENTATION}
LAYOUTS = {'detection': 'coco', 'segmentation': 'ade20k'}
#: An architecture of the nano space; the configs' own.
ARCH = '30-32-20-03'


@HOOKS.register_module()
class GradientDumpHook(Hook):
    """Writes, on every rank, the gradients that the last optimiser step took, and the files of all batches."""

    def before_train(self, runner: Runner) -> None:
        model = unwrap(runner.model)
        self.files: list[str] = []
        self.gradients: dict[str, torch.Tensor] = {}

        def keep(*_: Any) -> None:
            named = model.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}

        runner.optim_wrapper.optimizer.register_step_pre_hook(keep)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.files += batch_names(data_batch)

    def after_train(self, runner: Runner) -> None:
        parameters = dict(unwrap(runner.model).named_parameters())
        content = {'gradients': self.gradients, 'files': self.files, 'parameters': parameters}
        torch.save(content, Path(runner.work_dir, f'rank{get_rank()}.pth'))


def write_backbone(path: Path) -> Path:
    """A classifier of the architecture with random weights, as a file."""
    torch.manual_seed(7)
    save_backbone(path, PiNASNet(ARCH, 'pinas_nano', num_classes=10))
    return path


def write_scenes(root: Path, train: int, val: int) -> Path:
    """Scenes of 128 px in the layouts of COCO and ADE20K."""
    source = open_source({'kind': 'fashion-mnist', 'split': 'test', 'limit': 200})
    other = open_source({'kind': 'fashion-mnist', 'split': 'test', 'start': 200, 'limit': 100})
    prepare_scenes(root, SceneSettings(128, train, val, 0, ('coco', 'ade20k')), source, other)
    return root


def short_config(kind: str, scenes: Path, iterations: int, batch_size: int = 2, **options: Any) -> Config:
    """A quickstart config on `write_scenes`' set; it logs, and may save, every iteration.

    Args:
        kind: 'detection' or 'segmentation'.
        scenes: The set's folder.
        iterations: Length of the training.
        batch_size: Images per process.
        **options: Overrides, as `--cfg-options` with two underscores for a dot.
    """
    cfg = Config.fromfile(ROOT / CONFIGS[kind])
    root = f'{scenes}/{LAYOUTS[kind]}/'
    for node in dicts(cfg._cfg_dict):
        if 'data_root' in node:
            node['data_root'] = root
        if node.get('type') == 'CocoMetric':
            node['ann_file'] = f'{root}annotations/instances_val2017.json'
    cfg.train_dataloader.batch_size = batch_size
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    cfg.default_hooks.logger.interval = 1
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return cfg
