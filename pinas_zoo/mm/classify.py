"""Linear stage on a frozen supernet, and supervised retraining of a derived network, without mmpretrain."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torch.utils.data import default_collate

import pinas_zoo  # noqa: F401  registers the timm names
from pinas_zoo.data import SupervisedView
from pinas_zoo.methods.base import top1_percent
from pinas_zoo.methods.linear import LinearHead
from pinas_zoo.mm.engine.batches import preprocessor_config
from pinas_zoo.mm.engine.loop import run_seed
from pinas_zoo.mm.pretrain import SteppedModel
from pinas_zoo.models.blocks import init_weights
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.registry import DATASETS, FUNCTIONS, METRICS, MODELS
from pinas_zoo.space import SearchSpace, get_space
from pinas_zoo.weights.loading import load_supernet

__all__ = ['Classifier', 'LinearStage', 'TopAccuracy']

DATASETS.register_module(module=SupervisedView)
FUNCTIONS.register_module(name='default_collate', module=default_collate)


@MODELS.register_module()
class LinearStage(SteppedModel):
    """A linear head on the frozen supernet, `LinearHead`, for the Runner.

    Args:
        space: Search space, its name, or its dict of fields.
        num_classes: Classes of the head.
        supernet: Checkpoint of the pre-training; None keeps random weights (if a checkpoint of this stage is loaded).
        seed: Paths are drawn from (seed, step); None takes the run's seed.
        channels_last: Memory format of the supernet.
        data_preprocessor: Settings of the `BatchPreprocessor`, or another one.
    """

    def __init__(
        self,
        space: str | dict[str, Any] | SearchSpace,
        num_classes: int,
        supernet: str | None = None,
        seed: int | None = None,
        channels_last: bool = False,
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(preprocessor_config(data_preprocessor, channels_last))
        self.space = get_space(space)
        net = SuperNet(self.space) if supernet is None else load_supernet(supernet, self.space)
        # Its parts have their own names in checkpoints, so the method itself is not registered as a module.
        self.__dict__['method'] = LinearHead(net, num_classes, seed=run_seed(seed))
        self.supernet, self.head = self.method.supernet, self.method.head
        if channels_last:
            to_memory_format(self.supernet, torch.channels_last)
        self.last_step = 0

    @property
    def last_paths(self) -> list[str]:
        return [self.space.format(arch) for arch in self.method.paths(self.last_step)]

    def init_weights(self) -> None:
        """Does nothing: weights are initialised at construction."""

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        step: int = 0,
        part: int = 0,
        mode: str = 'loss',
        **facts: Any,
    ) -> dict[str, Tensor]:
        """Cross-entropy and top-1 accuracy in percent. Shape: image (N, C, H, W), label (N,)."""
        if mode != 'loss':
            raise ValueError(f"the linear stage has mode='loss' only, got {mode!r}; paths are scored by pinas search")
        self.last_step = step
        return self.method.loss({'image': image, 'label': label}, step, part)


@MODELS.register_module()
class Classifier(BaseModel):
    """A timm model with its supervised loss: retraining and evaluation of a derived network.

    Args:
        model: Arguments of `timm.create_model`, e.g. ``dict(model_name='pinas', arch=..., drop_rate=0.2)``.
        num_classes: Classes.
        mixup: Alpha of mixup during training; 0 disables it.
        label_smoothing: Share of the target that is spread over the classes.
        zero_init_last: Every block starts as its shortcut.
        channels_last: Memory format.
        data_preprocessor: Settings of the `BatchPreprocessor`, or another one.
    """

    def __init__(
        self,
        model: dict[str, Any],
        num_classes: int,
        mixup: float = 0.0,
        label_smoothing: float = 0.0,
        zero_init_last: bool = False,
        channels_last: bool = False,
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        if mixup < 0 or not 0 <= label_smoothing < 1:
            raise ValueError(
                f'mixup must be at least 0, label_smoothing from 0 to below 1; got {mixup} and {label_smoothing}'
            )
        super().__init__(preprocessor_config(data_preprocessor, channels_last))
        try:
            self.net = timm.create_model(num_classes=num_classes, **model)
        except RuntimeError as error:
            if 'Unknown model' not in str(error):
                raise
            raise ValueError(f'{error}: neither timm nor this project has one of that name') from None
        if zero_init_last:
            init_weights(self.net, zero_init_last=True)
        if channels_last:
            to_memory_format(self.net, torch.channels_last)
        # timm's Mixup draws from numpy's global generator, whose state is saved in our checkpoints.
        self.mixup = Mixup(mixup, label_smoothing=label_smoothing, num_classes=num_classes) if mixup else None
        self.criterion = SoftTargetCrossEntropy() if mixup else LabelSmoothingCrossEntropy(label_smoothing)

    def init_weights(self) -> None:
        """Does nothing: weights are initialised at construction."""

    def forward(
        self, image: Tensor, label: Tensor | None = None, mode: str = 'tensor', **facts: Any
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Logits ('tensor'), losses ('loss'), or one dict of scores and label per image ('predict')."""
        target = label
        if mode == 'loss' and self.mixup is not None:
            image, target = self.mixup(image, label)
        logits = self.net(image)
        if mode == 'tensor':
            return logits
        assert label is not None and target is not None
        if mode == 'predict':
            return [{'scores': s, 'label': y} for s, y in zip(logits, label, strict=True)]
        # Of two mixed images, the one with the larger share.
        wanted = label if target is label else target.argmax(dim=1)
        return {'loss': self.criterion(logits, target), 'top1': top1_percent(logits, wanted)}


@METRICS.register_module()
class TopAccuracy(BaseMetric):
    """Top-k accuracies in percent, and the mean cross-entropy.

    Args:
        topk: Values of k.
        collect_device: Where the results of several ranks are gathered.
        prefix: Prefix of the names.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1,), collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Tensor]]) -> None:
        # For the whole batch at once: every read of a value waits for the device.
        scores = torch.stack([sample['scores'] for sample in data_samples]).float()
        label = torch.stack([torch.as_tensor(sample['label'], device=scores.device) for sample in data_samples])[
            :, None
        ]
        own = scores.gather(1, label)
        ahead = ~(scores <= own)  # a NaN is ahead of everything
        before = torch.arange(scores.shape[1], device=scores.device) < label
        ahead |= before & (scores == own)  # of equal scores the first wins, as with argmax
        loss = -scores.log_softmax(dim=1).gather(1, label)[:, 0]
        self.results.extend(zip(ahead.sum(1).tolist(), loss.tolist(), strict=True))

    def compute_metrics(self, results: list[tuple[int, float]]) -> dict[str, float]:
        ranks, losses = np.array(results).T
        metrics = {f'top{k}': float((ranks < k).mean() * 100) for k in self.topk}
        return metrics | {'loss': float(losses.mean())}
