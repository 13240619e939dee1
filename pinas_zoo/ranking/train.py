"""Trains a contestant's supernet and scores its paths: plain torch, in this process, on the images of the truth.

The method objects are the same as in every other training here (`pinas_zoo.methods.pinas`, `pinas_zoo.methods`); the
loop is plain, so that the whole study fits a CPU. Everything runs on the device of the method's parameters; batches are
drawn on the CPU, so that they are the same on every device.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pinas_zoo.data import augment_batch
from pinas_zoo.methods import RLNAS, LinearHead, Method, SparseSupernet, SupervisedMethod
from pinas_zoo.methods.alternating import HELD_OUT
from pinas_zoo.models.supernet import SuperNet, zero_momenta
from pinas_zoo.ranking.pictures import Task
from pinas_zoo.ranking.recipe import FORWARD, SupernetRecipe
from pinas_zoo.ranking.task import PairSet, augment, index_batches
from pinas_zoo.search.evaluate import Evaluator, PathScore
from pinas_zoo.space import Arch

__all__ = [
    'Training',
    'cosine',
    'halved_batches',
    'labelled_batches',
    'linear',
    'native_scores',
    'optimise',
    'score_method',
    'score_paths',
    'stairs',
    'to_device',
    'train_linear_head',
    'view_batches',
]

#: Held-out images per batch.
SCORE_BATCH = 500
#: Steps after which a training checks that its losses are finite, which waits for the device.
FINITE_INTERVAL = 50

Batches = Iterator[dict[str, Any]]
Rate = Callable[[float], float]
ArchOptimiser = Callable[[list[Any], float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Training:
    """Record of a training: the loss of each step, summed over its parts, and the path units used."""

    losses: list[float]
    units: float


# ---- batches ---------------------------------------------------------------------------------------------------------


def labelled_batches(task: Task, batch: int, seed: int, images: int | None = None) -> Batches:
    """Augmented images with their labels, without end; of the first `images` alone if this is given."""
    pairs, draw = task.compose('train'), torch.Generator().manual_seed(seed)
    for chosen in index_batches(len(pairs) if images is None else min(images, len(pairs)), batch, draw):
        yield _labelled(task, pairs, chosen, draw)


def halved_batches(task: Task, batch: int, seed: int) -> Batches:
    """As `labelled_batches` on one half of the pairs, with a held-out batch from the other half.

    The pairs are disjoint; the items that they are made of are the same.
    """
    pairs, draw = task.compose('train'), torch.Generator().manual_seed(seed)
    half = len(pairs) // 2
    for chosen, other in zip(*(index_batches(half, batch, draw) for _ in range(2)), strict=True):
        yield _labelled(task, pairs, chosen, draw) | {HELD_OUT: _labelled(task, pairs, other + half, draw)}


def _labelled(task: Task, pairs: PairSet, chosen: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    images = augment(pairs.images[chosen], draw)
    return {'image': task.normalise(images), 'label': pairs.labels[chosen], 'index': chosen}


def view_batches(task: Task, recipe: SupernetRecipe, views: int, seed: int) -> Batches:
    """Views of the images without their labels, without end: (N, views, channels, height, width)."""
    pairs, draw = task.compose('train'), torch.Generator().manual_seed(seed)
    settings = task.view_recipe(recipe)
    for chosen in index_batches(len(pairs), recipe.batch, draw):
        numbers = torch.rand(len(chosen), views, 10, generator=draw)
        yield {'views': task.from_views(augment_batch(pairs.images[chosen], numbers, task.size, settings))}


# ---- the loop --------------------------------------------------------------------------------------------------------


def cosine(done: float) -> float:
    """Factor of the learning rate after a share of the training: half a cosine to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def linear(done: float) -> float:
    """Decreases linearly to 0."""
    return 1 - done


def stairs(done: float) -> float:
    """A tenth after 60 % and a hundredth after 80 %, as in the paper's linear stage."""
    return 0.1 ** ((done >= 0.6) + (done >= 0.8))


def optimise(
    method: Method,
    batches: Batches,
    units: float,
    lr: float,
    rate: Rate,
    weight_decay: float = 0.0,
    warmup: int = 0,
    bfloat16: bool = False,
    clip_value: float | None = None,
    arch_optimiser: ArchOptimiser | None = None,
    before_step: Callable[[int, float], None] | None = None,
    after_backward: Callable[[int], None] | None = None,
) -> Training:
    """Trains a method with SGD of momentum 0.9 until its path units are used up.

    Args:
        method: The method; its parameter groups are 'weights', and 'arch' if there is an `arch_optimiser`.
        batches: Its batches, one per step.
        units: Path units, as `method.units` counts them; the last step is the last that still fits.
        lr: Full learning rate.
        rate: Factor of it, from the share of the path units used so far.
        weight_decay: Weight decay, unless the method's groups set their own.
        warmup: Steps in which the learning rate rises.
        bfloat16: Run the forward passes under autocast.
        clip_value: Largest gradient entry of the weights.
        arch_optimiser: Builds the optimiser of the group 'arch' from its parameters and `units`; its rate is constant.
        before_step: Called with the index of each step and the path units used before it.
        after_backward: Called with the index of each step, before the optimiser's step.

    Raises:
        ValueError: The method has other groups of parameters, or the budget is too small for a single step.
        FloatingPointError: A loss is not finite.
    """
    optimisers = _optimisers(method, units, lr, weight_decay, arch_optimiser)
    weights = [p for group in optimisers[0].param_groups for p in group['params']]
    device = weights[0].device
    losses: list[float] = []
    unread, used, step = list[Tensor](), 0.0, 0
    while used + (cost := method.units(step)) <= units + 1e-6:
        if before_step:
            before_step(step, used)
        for group in optimisers[0].param_groups:
            group['lr'] = lr * rate(used / units) * min(1.0, (step + 1) / max(warmup, 1))
        unread.append(_backward(method, to_device(next(batches), device), step, device.type, bfloat16))
        if len(unread) == FINITE_INTERVAL:
            _read(unread, losses)
        if after_backward:
            after_backward(step)
        if clip_value:
            nn.utils.clip_grad_value_(weights, clip_value, foreach=True)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        used, step = used + cost, step + 1
    if not step:
        raise ValueError(f'a step costs {cost:.3g} path units, but the budget is {units:.3g}')
    _read(unread, losses)
    return Training(losses, used)


def _optimisers(
    method: Method, units: float, lr: float, weight_decay: float, arch_optimiser: ArchOptimiser | None
) -> list[torch.optim.Optimizer]:
    """SGD of the weights, and the optimiser of the architecture if there is one; arguments as for `optimise`."""
    groups = method.param_groups()
    if set(groups) != ({'weights', 'arch'} if arch_optimiser else {'weights'}):
        raise ValueError(
            f"the groups must be 'weights', and 'arch' with an arch_optimiser; the method has {sorted(groups)}"
        )
    sgd = torch.optim.SGD(groups['weights'], lr, momentum=0.9, weight_decay=weight_decay, fused=True)
    zero_momenta(sgd)
    return [sgd, arch_optimiser(groups['arch'], units)] if arch_optimiser else [sgd]


def _backward(method: Method, batch: dict[str, Any], step: int, device_type: str, bfloat16: bool) -> Tensor:
    """All parts of a step forwards and backwards; returns the sum of their losses."""
    terms = []
    for part in range(method.parts(step)):
        with torch.autocast(device_type, torch.bfloat16, enabled=bfloat16):
            terms.append(method.loss(batch, step, part)['loss'])
        terms[-1].backward()
    return torch.stack([term.detach().double() for term in terms]).sum()


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch, including the batches in it, on a device."""
    return {
        key: to_device(value, device) if isinstance(value, dict) else value.to(device, non_blocking=True)
        for key, value in batch.items()
    }


def _read(unread: list[Tensor], losses: list[float]) -> None:
    """Moves losses from the device to `losses`, which waits for the device; refuses one that is not finite."""
    new = torch.stack(unread).tolist() if unread else []
    for step, loss in enumerate(new, len(losses)):
        if not math.isfinite(loss):
            raise FloatingPointError(f'the loss of step {step} is {loss}')
    losses += new
    unread.clear()


def train_linear_head(supernet: SuperNet, task: Task, recipe: SupernetRecipe, steps: int, seed: int) -> nn.Linear:
    """The linear stage: a head on a frozen copy of the supernet, one uniform path per step."""
    with torch.random.fork_rng(devices=[]):  # for the head's initial weights; the training's random state is unchanged
        torch.manual_seed(seed)
        method = LinearHead(copy.deepcopy(supernet), task.num_classes, seed=seed).to(supernet.device)
    batches = labelled_batches(task, recipe.batch, seed)
    optimise(method, batches, steps * FORWARD, recipe.linear_lr, stairs, bfloat16=recipe.bfloat16)
    return method.head


def score_paths(
    supernet: SuperNet, head: nn.Module, task: Task, recipe: SupernetRecipe, archs: Sequence[Arch]
) -> list[PathScore]:
    """Scores paths on the held-out images after BN re-estimation on training images; the same for every contestant."""
    train, held = task.compose('train'), task.compose('heldout')
    count = recipe.calibration_batches * recipe.batch
    if count > len(train) or recipe.held_out > len(held):
        raise ValueError(
            f'{count} images for re-estimation and {recipe.held_out} held-out ones were requested, the task has '
            f'{len(train)} and {len(held)}'
        )
    images, labels = held.images[: recipe.held_out], held.labels[: recipe.held_out]
    device = supernet.device
    calibration = [task.normalise(x.to(device)) for x in train.images[:count].split(recipe.batch)]
    batches = zip(images.to(device).split(SCORE_BATCH), labels.to(device).split(SCORE_BATCH), strict=True)
    evaluation = [(task.normalise(x), y) for x, y in batches]
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
        return Evaluator(supernet, head, calibration, evaluation)(archs)


def score_method(
    method: Method, task: Task, recipe: SupernetRecipe, archs: Sequence[Arch], linear_steps: int, seed: int
) -> dict[str, list[float]]:
    """Top-1 in percent and loss of each path by name; a method without a head gets one in the linear stage."""
    net = method.folded() if isinstance(method, SparseSupernet) else method.supernet
    if isinstance(method, SupervisedMethod) and not isinstance(method, RLNAS):
        head: nn.Module = method.head
    else:
        head = train_linear_head(net, task, recipe, linear_steps, seed)
    scores = score_paths(net, head, task, recipe, archs)
    return {net.space.format(score.arch): [round(score.top1, 4), round(score.loss, 6)] for score in scores}


def native_scores(method: Method, archs: Sequence[Arch]) -> dict[str, float] | None:
    """The method's native score of each path by name; None if it has none."""
    name = method.supernet.space.format
    scores = {name(arch): method.score(arch) for arch in archs}
    known = {name: score for name, score in scores.items() if score is not None}
    return known if len(known) == len(scores) else None
