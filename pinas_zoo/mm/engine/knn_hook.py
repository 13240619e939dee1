"""Quality of the features while a supernet trains without labels: k-nearest-neighbour accuracy as a hook."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.data import SupervisedView
from pinas_zoo.mm.engine.checkpoint_content import preserved_random_state
from pinas_zoo.mm.engine.checkpoint_hook import unwrap
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.probes.knn import knn_top1
from pinas_zoo.registry import HOOKS
from pinas_zoo.space import Arch

__all__ = ['KNNHook', 'path_features']


@torch.no_grad()
def path_features(supernet: SuperNet, arch: Arch, batches: Sequence[Tensor]) -> Tensor:
    """Pooled features of one path, with BN on the statistics of each batch; the supernet is unchanged, bit for bit.

    Shape: batches of (N, C, H, W) -> (sum of N, num_features)
    """
    with _batch_statistics(supernet):
        return torch.cat([supernet(images, arch).mean((2, 3)) for images in batches])


@contextmanager
def _batch_statistics(module: nn.Module) -> Iterator[None]:
    """BN normalises by its batch and does not update running statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    saved = [(norm.track_running_stats, norm.running_mean, norm.running_var) for norm in norms]
    training = module.training
    module.eval()
    for norm in norms:
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    try:
        yield
    finally:
        module.train(training)
        for norm, (track, mean, var) in zip(norms, saved, strict=True):
            norm.track_running_stats, norm.running_mean, norm.running_var = track, mean, var


@HOOKS.register_module()
class KNNHook(Hook):
    """Logs the k-nearest-neighbour accuracy of the supernet's features on held-out images.

    The loss of a contrast says little about the features: it falls and rises with the rate at which keys age. This
    metric needs labels, but only to evaluate; nothing is trained with it. The scalar is `knn_top1` (percent, the mean
    over some paths), logged from step 0 on, where it is the value of random weights.

    Args:
        bank: Arguments of `SupervisedView` (source, size, ...): labelled training images.
        queries: The same for held-out images.
        interval: Steps between two measurements; the last step is measured too.
        paths: Number of paths, drawn with `seed`.
        k: Neighbours.
        temperature: Temperature of the vote's weights.
        batch_size: Number of images that BN normalises over.
        seed: Seed of the paths.

    Raises:
        ValueError: A count is below 1.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        bank: dict[str, Any],
        queries: dict[str, Any],
        interval: int = 200,
        paths: int = 4,
        k: int = 20,
        temperature: float = 0.07,
        batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        if min(interval, paths, k, batch_size) < 1:
            raise ValueError(
                f'interval, paths, k and batch_size must be at least 1, got {interval}, {paths}, {k}, {batch_size}'
            )
        self.bank, self.queries = bank, queries
        self.interval, self.paths, self.batch_size, self.seed = interval, paths, batch_size, seed
        self.k, self.temperature = k, temperature
        self._data: tuple[list[Tensor], Tensor, list[Tensor], Tensor] | None = None

    def before_train(self, runner: Runner) -> None:
        """Random weights."""
        if runner.iter == 0:
            self._measure(runner, 0)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Measure at the interval and at the end."""
        if self.every_n_train_iters(runner, self.interval) or runner.iter + 1 == runner.max_iters:
            self._measure(runner, runner.iter + 1)

    def _measure(self, runner: Runner, step: int) -> None:
        if not is_main_process():
            return
        supernet = supernet_in(unwrap(runner.model))
        with preserved_random_state():  # the measurement has no effect on the training
            value = self.accuracy(supernet)
        runner.logger.info(f'Iter({step}) knn_top1: {value:.2f}')
        runner.visualizer.add_scalars({'knn_top1': value}, step=step)

    def accuracy(self, supernet: SuperNet) -> float:
        """Mean over the paths, in percent."""
        if self._data is None:
            self._data = (*self._load(self.bank, supernet.device), *self._load(self.queries, supernet.device))
        bank, bank_labels, queries, labels = self._data
        rng = np.random.default_rng([self.seed, 13])
        values = []
        for arch in [supernet.space.sample(rng) for _ in range(self.paths)]:
            features = [path_features(supernet, arch, batches) for batches in (bank, queries)]
            values.append(knn_top1(features[0], bank_labels, features[1], labels, self.k, self.temperature))
        return float(np.mean(values))

    def _load(self, view: dict[str, Any], device: torch.device) -> tuple[list[Tensor], Tensor]:
        """All images in batches, the last one included, and their labels."""
        data = SupervisedView(**view, train=False)
        samples = [data[index] for index in range(len(data))]
        images = torch.stack([sample['image'] for sample in samples]).to(device)
        labels = torch.tensor([sample['label'] for sample in samples], device=device)
        # Batches of nearly equal size: BN over a small remainder would differ.
        return list(images.tensor_split(-(-len(images) // self.batch_size))), labels


def supernet_in(model: nn.Module) -> SuperNet:
    """The supernet that a model trains, without a teacher's copy.

    Raises:
        ValueError: There is none.
    """
    for module in model.modules():
        if isinstance(module, SuperNet):
            return module
    raise ValueError(f'{type(model).__name__} has no supernet; use this hook for pre-training only')
