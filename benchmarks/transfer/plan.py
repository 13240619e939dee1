"""What the transfer study compares: tasks, arms, runs, and the files that they start from."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from mmengine.config import Config, ConfigDict

from pinas_zoo.mm.engine.checkpoint_content import find_checkpoint
from pinas_zoo.mm.release.trainings import Training
from pinas_zoo.space import PINAS_NANO
from pinas_zoo.weights.load import read_weights

__all__ = ['ARMS', 'DETECTION', 'SEGMENTATION', 'TASKS', 'Inputs', 'Run', 'Task', 'planned']

CONFIGS = Path('configs/transfer')
NANO = Path('configs/quickstart')
DETECTION = NANO / 'mask-rcnn_pinas-nano_fpn_b8-lin_scenes.py'
SEGMENTATION = NANO / 'deeplabv3_pinas-nano-d8_b8-poly_scenes.py'
#: Prefix of a run's backbone in the file that it starts from.
ARMS = ('random', 'supervised', 'pinas', 'resnet')
#: Entries of a dumped config that belong to a process, not to a training.
OF_A_PROCESS = ('work_dir', 'load_from', 'resume', 'launcher')


@dataclass(frozen=True)
class Task:
    """A task of the study.

    Args:
        config: Config with the nano network.
        baseline: Config with the plain ResNet.
        metrics: From the recorded name to the name in the log and its factor to points.
    """

    config: Path
    baseline: Path
    metrics: dict[str, tuple[str, float]]


TASKS = {
    'detection': Task(
        DETECTION,
        CONFIGS / 'mask-rcnn_resnet-nano_fpn_b8-lin_scenes.py',
        {
            'box AP': ('coco/bbox_mAP', 100.0),
            'mask AP': ('coco/segm_mAP', 100.0),
            'box AP50': ('coco/bbox_mAP_50', 100.0),
            'mask AP50': ('coco/segm_mAP_50', 100.0),
        },
    ),
    'segmentation': Task(
        SEGMENTATION,
        CONFIGS / 'deeplabv3_resnet-nano-d8_b8-poly_scenes.py',
        {'mIoU': ('mIoU', 1.0), 'pixel accuracy': ('aAcc', 1.0)},
    ),
}


@dataclass(frozen=True)
class Run:
    """One training: a task, an arm, a seed (of the heads' weights and the data's order)."""

    task: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder and log."""
        return f'{self.task}-{self.arm}-seed{self.seed}'


def planned(tasks: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """The runs in order, seed by seed, so that an early stop leaves complete comparisons."""
    return [Run(task, arm, seed) for seed, task, arm in product(seeds, tasks, arms)]


@dataclass(frozen=True)
class Inputs:
    """What the study starts from, as tools/quickstart.sh and tools/dev/nano_weights.sh leave it in their folder.

    Args:
        root: Folder with `backbone.safetensors` (the supernet's weights), `retrain` (the same network with labels) and
            `scenes`.
        scenes: Scenes to use instead of those of `root`.
    """

    root: Path
    scenes: Path

    @property
    def pinas(self) -> Path:
        """File with the weights of the unsupervised supernet's path."""
        return self.root / 'backbone.safetensors'

    @cached_property
    def retraining(self) -> Training:
        """The training with labels.

        Raises:
            FileNotFoundError: It has not saved anything yet.
        """
        folder = self.root / 'retrain'
        checkpoint = find_checkpoint(folder, 'auto')
        if checkpoint is None:
            raise FileNotFoundError(f'{folder} has no checkpoint; run tools/dev/nano_weights.sh first')
        return Training(folder, Path(checkpoint))

    @property
    def supervised(self) -> Path:
        """Checkpoint of the training with labels."""
        return self.retraining.checkpoint

    def resnet_config(self, channels: tuple[int, ...]) -> Config:
        """The config of the training with labels, with the plain ResNet instead of the nano network."""
        cfg = copy.deepcopy(self.retraining.cfg)
        for key in OF_A_PROCESS:
            cfg.pop(key, None)
        net = dict(model_name='resnet_nano', channels=channels, drop_rate=cfg.model.model.get('drop_rate', 0.0))
        cfg.model.model = ConfigDict(net)
        cfg.custom_imports = dict(imports=['pinas_zoo.mm.resnet'], allow_failed_imports=False)
        return cfg

    @property
    def arch(self) -> str:
        """The architecture of both.

        Raises:
            ValueError: They differ, or are not of the nano space.
        """
        metadata = read_weights(self.pinas, tensors=False)[1]
        archs = {self.pinas.name: metadata['arch'], 'retrain': self.retraining.cfg.model.model.arch}
        if len(set(archs.values())) > 1:
            raise ValueError(f'{self.root} must contain one architecture, got {archs}')
        if json.loads(metadata['space'])['name'] != PINAS_NANO.name:
            raise ValueError(f'{self.pinas} must be of space {PINAS_NANO.name}, but it states {metadata["space"]}')
        return metadata['arch']
