"""A model, a data set and a metric of a few lines for tests of the engine.

Everything random is used on purpose: three generators in the data, dropout in the model.
"""

import os
import random
import signal
from pathlib import Path

import mmengine.config.config
import mmengine.runner.runner
import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from pinas_zoo.registry import DATASETS, HOOKS, METRICS, MODELS

SIDE = 8

if 'TOY_QUICK' in os.environ:  # both take longer than the training: yapf over the config, and a look at compilers
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    mmengine.runner.runner.collect_env = dict


@DATASETS.register_module()
class ToyDataset:
    """Labelled noise: the index determines the label, the generators the rest."""

    metainfo = {'classes': ('dark', 'light'), 'palette': np.arange(6).reshape(2, 3)}

    def __init__(self, length: int = 20, poison: int | None = None, holes: bool = False) -> None:
        self.length = length
        self.poison = poison
        self.holes = holes

    def __len__(self) -> int:
        return self.length

    def get_data_info(self, index: int) -> dict:
        return {'width': 4 + index % 3, 'height': 5}

    def __getitem__(self, index: int) -> dict | None:
        if self.holes and index % 3 == 0:
            return None
        image = torch.randn(3, SIDE, SIDE) + index % 2
        image += float(np.random.rand()) + random.random() + np.random.normal()
        if index == self.poison:
            image[:] = float('nan')
        return {'image': image, 'label': index % 2, 'name': f'toy/{index}.png', 'index': index}


@MODELS.register_module()
class ToyModel(BaseModel):
    """Convolution, BN, dropout, classifier."""

    def __init__(self, norm_cfg: dict | None = None) -> None:
        super().__init__()
        self.norm_type = (norm_cfg or {}).get('type')
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.last_paths: list[str] = []

    def forward(self, image: torch.Tensor, label: torch.Tensor, mode: str = 'loss', **_: object) -> dict | list:
        features = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        logits = self.head(nn.functional.dropout(features, 0.5, self.training))
        if mode == 'predict':
            return [{'hit': bool(hit)} for hit in logits.argmax(1) == label]
        self.last_paths = [f'3{len(image)}1-0']
        return {'loss': nn.functional.cross_entropy(logits, label)}

    def log_scalars(self) -> dict[str, float]:
        return {'feature_std': float(self.head.weight.detach().std())}


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Accuracy as np.float64, a type that makes a checkpoint unreadable without pickle."""

    def process(self, data_batch: dict, data_samples: list) -> None:
        self.results.extend(sample['hit'] for sample in data_samples)

    def compute_metrics(self, results: list) -> dict:
        return {'acc': np.float64(np.mean(results))}


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends its process a signal before a step: $TOY_SIGNAL is 'RANK ITERATION SIGNAL'; not if it was started again."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        rank, iteration, name = os.environ.get('TOY_SIGNAL', '-1 0 SIGKILL').split()
        again = any(os.environ.get(f'{who}_RESTART_COUNT', '0') != '0' for who in ('TORCHELASTIC', 'SLURM'))
        if (get_rank(), runner.iter + 1) == (int(rank), int(iteration)) and not again:
            os.kill(os.getpid(), getattr(signal, name))


@HOOKS.register_module()
class RankDumpHook(Hook):
    """Writes every rank's final state, and counts the epochs that hooks saw."""

    def before_train(self, runner: Runner) -> None:
        self.epochs: list[int] = []

    def after_train_epoch(self, runner: Runner) -> None:
        self.epochs.append(runner.epoch)

    def after_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        content = {'parameters': dict(model.named_parameters()), 'epochs': self.epochs}
        torch.save(content, Path(runner.work_dir, f'rank{get_rank()}.pth'))
