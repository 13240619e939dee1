"""Stand-alone training of one path, which gives the accuracy and loss of the ground truth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pinas_zoo.models.blocks import init_weights
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.ranking.pictures import Task
from pinas_zoo.ranking.task import augment, index_batches
from pinas_zoo.space import Arch, SearchSpace

__all__ = ['Recipe', 'Result', 'clock_of', 'fit', 'train_net', 'train_path']

Batches = Iterator[tuple[Tensor, Tensor]]

#: Test images per batch.
TEST_BATCH = 500


@dataclass(frozen=True)
class Recipe:
    """How a path is trained: SGD with Nesterov momentum, cosine learning rate, averaged weights.

    Args:
        steps: Optimiser steps.
        batch: Images per step.
        lr: Highest learning rate, reached after `warmup` steps.
        warmup: Steps of linear warm-up.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of all parameters.
        shift: Largest shift of the augmentation in pixels.
        decay: Decay of the weight average, which begins in the middle of the training.
        clip_norm: Largest norm of the gradients; larger ones are scaled down.
        calibration: Batches on which the averaged network's BN statistics are re-estimated.
        bfloat16: Autocast to bfloat16.
    """

    steps: int = 1000
    batch: int = 32
    lr: float = 0.1
    warmup: int = 50
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 2
    decay: float = 0.98
    clip_norm: float = 2.0
    calibration: int = 32
    bfloat16: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of a forward pass on a device."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0: warm-up times half a cosine."""
        return self.lr * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Result:
    """A training's test accuracy in percent, test loss, and seconds: of processor time on a CPU, else elapsed."""

    top1: float
    loss: float
    seconds: float


def train_path(
    space: SearchSpace, task: Task, recipe: Recipe, arch: Arch, seed: int, device: torch.device | str = 'cpu'
) -> Result:
    """Trains one path from scratch on a device and tests it, see `train_net`.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    device = torch.device(device)
    clock = clock_of(device)
    begin = clock()
    net = train_net(space, task, recipe, arch, seed, device)
    top1, test_loss = score_net(net, recipe, task, device)
    if not math.isfinite(test_loss):
        raise FloatingPointError(f'the test loss of arch {space.format(arch)} with seed {seed} is {test_loss}')
    return Result(top1, test_loss, clock() - begin)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Processor time for a CPU, elapsed time for other devices; in seconds."""
    return time.process_time if device.type == 'cpu' else time.perf_counter


def train_net(space: SearchSpace, task: Task, recipe: Recipe, arch: Arch, seed: int, device: torch.device) -> PiNASNet:
    """Trains one path from scratch on a device.

    Batches and augmentation depend only on the seed: all paths of one seed see the same images in the same order, so
    that common effects do not blur their ranking; two seeds share nothing.
    """
    pairs = task.compose('train')
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PiNASNet(arch, space, num_classes=task.num_classes, in_chans=task.in_chans)
        init_weights(net, zero_init_last=True)  # as the supernet starts; two seeds then differ less
    net = to_memory_format(net.to(device), torch.channels_last)

    def batches() -> Batches:
        for chosen in index_batches(len(pairs), recipe.batch, draw):
            images = task.normalise(augment(pairs.images[chosen], draw, recipe.shift).to(device))
            yield images, pairs.labels[chosen].to(device)

    def plain() -> Iterator[Tensor]:
        for chosen in index_batches(len(pairs), recipe.batch, draw):
            yield task.normalise(pairs.images[chosen].to(device))

    fit(net, recipe, batches(), plain(), device)
    return net


def fit(net: nn.Module, recipe: Recipe, batches: Batches, plain: Iterator[Tensor], device: torch.device) -> None:
    """Trains a network by cross-entropy, averages its weights and re-estimates its BN statistics.

    Args:
        net: The network; its outputs are class scores, one set per image or per location.
        recipe: How it is trained.
        batches: Inputs and labels, one pair per step.
        plain: Inputs without augmentation, for the BN statistics; read after the last step.
        device: Where all of this is.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True, fused=True
    )
    average: list[Tensor] = []
    for step, (images, labels) in enumerate(islice(batches, recipe.steps)):
        for group in optimizer.param_groups:
            group['lr'] = recipe.lr_at(step)
        with recipe.autocast(device):
            logits = net(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm, foreach=True)
        optimizer.step()
        if step == recipe.steps // 2:
            average = [p.detach().clone() for p in parameters]
        elif average:
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - recipe.decay)
    with torch.no_grad():
        for parameter, value in zip(parameters, average, strict=True):
            parameter.copy_(value)
        with recipe.autocast(device):
            update_bn(islice(plain, recipe.calibration), net.train())


@torch.no_grad()
def score_net(net: nn.Module, recipe: Recipe, task: Task, device: torch.device) -> tuple[float, float]:
    """Top-1 in percent and mean cross-entropy on the test pairs."""
    pairs, hits, loss = task.compose('test'), 0, 0.0
    net.eval()
    for images, labels in zip(pairs.images.split(TEST_BATCH), pairs.labels.split(TEST_BATCH), strict=True):
        labels = labels.to(device)
        with recipe.autocast(device):
            logits = net(task.normalise(images.to(device))).double()
        hits += int((logits.argmax(dim=1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction='sum'))
    return 100 * hits / len(pairs), loss / len(pairs)
