"""Trains a contestant's supernet and scores its paths: torch alone, in this process, on the images of the truth.

The method objects are those of every other training here (`pinas_zoo.contrast`, `pinas_zoo.methods`); the loop is
plain, so that the whole study fits a CPU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pinas_zoo.contrast import PiNAS
from pinas_zoo.data import ViewRecipe, augment_batch
from pinas_zoo.methods import LinearHead, Method, SupervisedMethod, zero_momenta
from pinas_zoo.rank import Evaluator, PathScore
from pinas_zoo.ranking.contestants import SupernetRecipe
from pinas_zoo.ranking.task import MEAN, STD, PairTask, augment, compose, index_batches, normalise
from pinas_zoo.space import Arch
from pinas_zoo.supernet import SuperNet

__all__ = [
    'cosine',
    'labelled_batches',
    'linear',
    'optimise',
    'score_method',
    'score_paths',
    'stairs',
    'supernet_of',
    'train_linear_head',
    'view_batches',
]

#: Held-out images in a batch.
SCORE_BATCH = 500

Batches = Iterator[dict[str, Tensor]]
Rate = Callable[[float], float]


# ---- batches ---------------------------------------------------------------------------------------------------------


def labelled_batches(task: PairTask, batch: int, steps: int, seed: int) -> Batches:
    """Augmented images with their labels."""
    pairs, draw = compose(task, 'train'), torch.Generator().manual_seed(seed)
    for chosen in index_batches(len(pairs), batch, steps, draw):
        yield {'image': normalise(augment(pairs.images[chosen], draw)), 'label': pairs.labels[chosen]}


def view_batches(task: PairTask, recipe: SupernetRecipe, views: int, steps: int, seed: int) -> Batches:
    """Views of the images without their labels: (N, views, 1, side, side)."""
    pairs, draw = compose(task, 'train'), torch.Generator().manual_seed(seed)
    settings = ViewRecipe(
        scale=(recipe.crop_area, 1.0),
        brightness=recipe.jitter,
        contrast=recipe.jitter,
        saturation=0,
        hue=0,
        grey_p=0,
        blur_p=recipe.blur,
        blur_sigma=(0.1, 1.0),
        flip_p=recipe.flip,
        mean=(MEAN,),
        std=(STD,),
    )
    for chosen in index_batches(len(pairs), recipe.batch, steps, draw):
        numbers = torch.rand(len(chosen), views, 10, generator=draw)
        yield {'views': augment_batch(pairs.images[chosen], numbers, task.side, settings)[:, :, :1]}


# ---- the loop --------------------------------------------------------------------------------------------------------


def cosine(done: float) -> float:
    """Factor of the rate after a share of the training: half a cosine to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float) -> float:
    """Falls to 0 at an even pace."""
    return 1 - done


def stairs(done: float) -> float:
    """A tenth after 60 % and a hundredth after 80 %, as the paper's linear stage."""
    return 0.1 ** ((done >= 0.6) + (done >= 0.8))


def optimise(
    method: Method,
    batches: Batches,
    steps: int,
    lr: float,
    rate: Rate,
    weight_decay: float = 0.0,
    warmup: int = 0,
    bfloat16: bool = False,
    before_step: Callable[[int], None] | None = None,
    after_backward: Callable[[int], None] | None = None,
) -> list[float]:
    """Trains a method with SGD of momentum 0.9.

    Args:
        method: A method whose parameters are all of the group 'weights'.
        batches: Its batches, at least one a step.
        steps: Optimiser steps.
        lr: Full learning rate.
        rate: Factor of it by the share of the steps that is done.
        weight_decay: Weight decay, where the method's groups do not say otherwise.
        warmup: Steps in which the rate rises.
        bfloat16: Forward passes under autocast.
        before_step: Called with the index of each step.
        after_backward: Called with the index of each step, before the optimiser moves.

    Returns:
        The loss of each step, summed over its parts.

    Raises:
        ValueError: The method has other groups of parameters.
        FloatingPointError: A loss is not finite.
    """
    groups = method.param_groups()
    if set(groups) != {'weights'}:
        raise ValueError(f"this loop trains the group 'weights' alone, the method has {sorted(groups)}")
    optimiser = torch.optim.SGD(groups['weights'], lr, momentum=0.9, weight_decay=weight_decay, fused=True)
    zero_momenta(optimiser)
    losses = []
    for step in range(steps):
        if before_step:
            before_step(step)
        for group in optimiser.param_groups:
            group['lr'] = lr * rate(step / steps) * min(1.0, (step + 1) / max(warmup, 1))
        batch, loss = next(batches), 0.0
        for part in range(method.parts(step)):
            with torch.autocast('cpu', torch.bfloat16, enabled=bfloat16):
                term = method.loss(batch, step, part)['loss']
            term.backward()
            loss += term.item()
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss of step {step} is {loss}')
        if after_backward:
            after_backward(step)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss)
    return losses


def supernet_of(method: Method) -> SuperNet:
    """The supernet that a method trains."""
    return method.student.backbone if isinstance(method, PiNAS) else method.supernet


def train_linear_head(supernet: SuperNet, task: PairTask, recipe: SupernetRecipe, steps: int, seed: int) -> nn.Linear:
    """The linear stage: a head on a frozen copy of the supernet, one uniform path a step."""
    with torch.random.fork_rng(devices=[]):  # the head's first weights; the training's random state goes on as it was
        torch.manual_seed(seed)
        method = LinearHead(copy.deepcopy(supernet), task.num_classes, seed=seed)
    batches = labelled_batches(task, recipe.batch, steps, seed)
    optimise(method, batches, steps, recipe.linear_lr, stairs, bfloat16=recipe.bfloat16)
    return method.head


def score_paths(
    supernet: SuperNet, head: nn.Module, task: PairTask, recipe: SupernetRecipe, archs: Sequence[Arch]
) -> list[PathScore]:
    """Scores paths on the held-out images after BN re-estimation on training images; the same for every contestant."""
    train, held = compose(task, 'train'), compose(task, 'heldout')
    count = recipe.calibration_batches * recipe.batch
    if count > len(train) or recipe.held_out > len(held):
        raise ValueError(
            f'{count} images for re-estimation and {recipe.held_out} held-out ones were asked for, the task has '
            f'{len(train)} and {len(held)}'
        )
    images, labels = held.images[: recipe.held_out], held.labels[: recipe.held_out]
    calibration = [normalise(x) for x in train.images[:count].split(recipe.batch)]
    evaluation = [(normalise(x), y) for x, y in zip(images.split(SCORE_BATCH), labels.split(SCORE_BATCH), strict=True)]
    with torch.autocast('cpu', torch.bfloat16, enabled=recipe.bfloat16):
        return Evaluator(supernet, head, calibration, evaluation)(archs)


def score_method(
    method: Method, task: PairTask, recipe: SupernetRecipe, archs: Sequence[Arch], linear_steps: int, seed: int
) -> dict[str, list[float]]:
    """Top-1 in percent and loss of each path by its name; a method without a head goes through the linear stage."""
    net = supernet_of(method)
    if isinstance(method, SupervisedMethod):
        head: nn.Module = method.head
    else:
        head = train_linear_head(net, task, recipe, linear_steps, seed)
    scores = score_paths(net, head, task, recipe, archs)
    return {net.space.format(score.arch): [round(score.top1, 4), round(score.loss, 6)] for score in scores}
