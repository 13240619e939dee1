"""The bridge from a method (Pi-NAS and its peers) to mmengine's Runner.

A step runs the method's parts in turn, one backward pass each, then the optimiser. The index of the step is handed to
the method, which draws its paths from it; nothing here keeps state of its own.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from mmengine.dist import broadcast_object_list
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from pinas_zoo.contrast import PiNAS
from pinas_zoo.data import BatchedViews, FourViews, collate_views
from pinas_zoo.registry import (
    DATASETS,
    FUNCTIONS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
)
from pinas_zoo.space import SearchSpace
from pinas_zoo.supernet import SuperNet

__all__ = [
    'MethodDistributedDataParallel',
    'MethodOptimWrapperConstructor',
    'SteppedModel',
    'SupernetPretraining',
]

MODELS.register_module(module=PiNAS)
for view in (FourViews, BatchedViews):
    DATASETS.register_module(module=view)
FUNCTIONS.register_module(module=collate_views)


def run_seed(seed: int | None) -> int:
    """The seed that was set for this run, equal on all ranks; `seed` itself where it is given."""
    seeds = [torch.initial_seed() % 2**32 if seed is None else seed]
    broadcast_object_list(seeds)
    return seeds[0]


class SteppedModel(BaseModel):
    """A model whose loss depends on the index of the optimiser step.

    Subclasses implement ``forward(step, part, mode, **batch)``, and `parts` if a step has several backward passes.
    """

    def parts(self, step: int) -> int:
        """Backward passes of a step on one batch."""
        return 1

    def train_step(self, data: dict[str, Any], optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        return train_in_parts(self, self, data, optim_wrapper)


@MODEL_WRAPPERS.register_module()
class MethodDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's data-parallel wrapper, for a `SteppedModel`."""

    def train_step(self, data: dict[str, Any], optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        return train_in_parts(self, self.module, data, optim_wrapper)


def train_in_parts(
    model: nn.Module, module: SteppedModel, data: dict[str, Any], optim_wrapper: OptimWrapper | OptimWrapperDict
) -> dict[str, Tensor]:
    """One iteration: every part of the step forwards and backwards, then the optimiser moves (or accumulates).

    Args:
        model: What is called: the module, or its data-parallel wrapper.
        module: The `SteppedModel`.
        data: Batch as the loader gives it.
        optim_wrapper: mmengine's wrapper of the optimiser, or of one for each of the method's groups.

    Returns:
        What is logged: means over the parts.
    """
    several = isinstance(optim_wrapper, OptimWrapperDict)
    wrappers = list(optim_wrapper.values()) if several else [optim_wrapper]
    first = wrappers[0]  # scales the loss and counts; all accumulate alike
    iteration = MessageHub.get_current_instance().get_info('iter', 0)
    step, micro = divmod(iteration, first._accumulative_counts)
    data, parts, logs = module.data_preprocessor(data, training=True), module.parts(step), []
    for index in range(parts):
        last = index == parts - 1
        no_sync = nullcontext() if last else getattr(model, 'no_sync', nullcontext)()
        with no_sync, first.optim_context(model):
            losses = model(**data, step=step, part=micro * parts + index, mode='loss')
        loss, log = module.parse_losses(losses)
        logs.append(log)
        count = first._inner_count
        first.backward(first.scale_loss(loss))
        first._inner_count = count  # it counts iterations, not parts
    for wrapper in wrappers:
        wrapper._inner_count += 1
        if wrapper.should_update():
            wrapper.step()
            wrapper.zero_grad()
    return {key: torch.stack([log[key] for log in logs]).mean() for key in logs[0]}


@MODELS.register_module()
class SupernetPretraining(SteppedModel):
    """Trains a supernet with a method.

    Args:
        space: Search space, its name, or its dict of fields.
        method: Config of the method, e.g. ``dict(type='pinas_zoo.PiNAS', queue_length=49152)``; it gets the supernet,
            and the run's seed unless it sets one.
        channels_last: Memory format of the networks; measure which is faster on the device.
        data_preprocessor: mmengine's preprocessor; moves the batch to the device.
    """

    def __init__(
        self,
        space: str | dict[str, Any] | SearchSpace,
        method: dict[str, Any],
        channels_last: bool = False,
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        method = dict(method, seed=run_seed(method.get('seed')))
        self.method: PiNAS = MODELS.build(method, default_args=dict(supernet=SuperNet(space)))
        if channels_last:  # a convolution takes the format of its weights, so the images need not change
            self.to(memory_format=torch.channels_last)
        self.last_step = 0

    @property
    def space(self) -> SearchSpace:
        return self.method.student.backbone.space

    @property
    def last_paths(self) -> list[str]:
        """The paths of the last step, as text, for logs."""
        return [self.space.format(arch) for arch in self.method.paths(self.last_step)]

    def parts(self, step: int) -> int:
        return self.method.parts(step)

    def init_weights(self) -> None:
        """Weights are initialised at construction."""

    def forward(
        self, views: Tensor, step: int = 0, part: int = 0, mode: str = 'loss', **facts: Any
    ) -> dict[str, Tensor]:
        """The method's loss on a batch of views, (N, 4, C, H, W).

        Raises:
            ValueError: Another mode than 'loss' was asked for.
        """
        if mode != 'loss':
            raise ValueError(f"a supernet is pre-trained by mode='loss' only, got {mode!r}")
        self.last_step = step
        return self.method.loss({'views': views, **facts}, step, part)

    def log_scalars(self) -> dict[str, float]:
        """Numbers that are too dear for every step; asked for when a line is logged."""
        if not hasattr(self.method, 'teacher_distance'):  # not every method has a teacher
            return {}
        return {'teacher_distance': self.method.teacher_distance(self.method.paths(self.last_step)[0])}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MethodOptimWrapperConstructor:
    """Builds one optimiser for each of the method's parameter groups.

    Args:
        optim_wrapper_cfg: Config of the wrapper with its optimiser; for a method of several groups, a dict of such
            configs by group.
        paramwise_cfg: Not used; a method's groups say which parameters train.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.cfg = optim_wrapper_cfg

    def __call__(self, model: nn.Module) -> OptimWrapper | OptimWrapperDict:
        module = getattr(model, 'module', model)
        groups = module.method.param_groups()
        if len(groups) == 1:
            return self._wrap(dict(self.cfg), *groups.values())
        if any('Amp' in str(self.cfg[key].get('type')) for key in groups if key in self.cfg):
            raise ValueError('several optimisers have a loss scaler each: mixed precision is for methods with one')
        if unknown := set(groups) - set(self.cfg):
            raise ValueError(f'optim_wrapper has no settings for {sorted(unknown)}, the groups are {sorted(groups)}')
        return OptimWrapperDict(**{key: self._wrap(dict(self.cfg[key]), params) for key, params in groups.items()})

    @staticmethod
    def _wrap(cfg: dict[str, Any], params: list[nn.Parameter]) -> OptimWrapper:
        optimiser = OPTIMIZERS.build(dict(cfg.pop('optimizer'), params=params))
        if isinstance(optimiser, torch.optim.SGD) and optimiser.defaults['fused'] and optimiser.defaults['momentum']:
            # Fused SGD refuses to mix parameters with and without momentum, as a supernet's first steps do. From zero
            # the first update is the same.
            for parameter in params:
                optimiser.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
        cfg.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(dict(cfg, optimizer=optimiser))
