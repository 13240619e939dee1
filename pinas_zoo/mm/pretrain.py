"""The bridge from a method (Pi-NAS and its peers) to mmengine's Runner.

A step runs the method's parts in turn, one backward pass each, then the optimiser. The method gets the index of the
step and draws its paths from it; nothing here keeps state between steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, cast

import torch
from mmengine.device import get_device
from mmengine.logging import MessageHub, print_log
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from pinas_zoo.data import BatchedViews, FourViews, HalvedView, collate_views
from pinas_zoo.dist import average, gather_objects
from pinas_zoo.methods import ARCH_OPTIMISERS, METHODS, Method
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.mm.engine.batches import preprocessor_config
from pinas_zoo.mm.engine.loop import run_seed
from pinas_zoo.models.recorder import CudaRecorder
from pinas_zoo.models.supernet import SuperNet, zero_momenta
from pinas_zoo.registry import (
    DATASETS,
    FUNCTIONS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
)
from pinas_zoo.space import SearchSpace, get_space

__all__ = [
    'MethodDistributedDataParallel',
    'MethodOptimWrapperConstructor',
    'SteppedModel',
    'SupernetPretraining',
]

for method in (PiNAS, *METHODS.values()):
    MODELS.register_module(module=method)
for optimiser in ARCH_OPTIMISERS.values():
    OPTIMIZERS.register_module(module=optimiser)
for view in (FourViews, BatchedViews, HalvedView):
    DATASETS.register_module(module=view)
FUNCTIONS.register_module(module=collate_views)


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
    """mmengine's data-parallel wrapper, for a `SteppedModel`.

    Args:
        module: The model.
        reduce: 'all' has DDP reduce every gradient during the backward pass, also of the blocks that did not run, which
            it has to search (`find_unused_parameters`). 'active' reduces those that exist, after the backward pass; all
            ranks must train the same blocks, as methods do that draw paths from (seed, step). docs/gpu.md compares.
        kwargs: Further arguments of mmengine's wrapper.

    Raises:
        ValueError: An unknown `reduce`.
    """

    #: Steps in which 'active' compares the ranks' lists of gradients.
    COMPARED: ClassVar[int] = 8

    def __init__(self, module: nn.Module, reduce: str = 'all', **kwargs: Any) -> None:
        if reduce not in ('all', 'active'):
            raise ValueError(f"reduce={reduce!r}, allowed: 'all', 'active'")
        super().__init__(module, **kwargs)
        self.reduce, self.reduced_steps = reduce, 0
        self.parameter_list = list(module.parameters())  # the walk over the modules takes milliseconds

    def reduce_active(self) -> int:
        """Averages the gradients that exist over the ranks. Returns the bytes that this rank contributed.

        Raises:
            RuntimeError: Another rank has gradients of other parameters.
        """
        parameters = self.parameter_list
        active = [index for index, parameter in enumerate(parameters) if parameter.grad is not None]
        if self.reduced_steps < self.COMPARED:
            found = gather_objects(active)
            if any(other != active for other in found):
                counts = [len(other) for other in found]
                raise RuntimeError(
                    f"reduce='active': the ranks have gradients of different parameters (numbers: {counts}); use "
                    "model_wrapper_cfg.reduce='all' for this method"
                )
        self.reduced_steps += 1
        return average([grad for index in active if (grad := parameters[index].grad) is not None])

    def train_step(self, data: dict[str, Any], optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        return train_in_parts(self, self.module, data, optim_wrapper)


def train_in_parts(
    model: nn.Module, module: SteppedModel, data: dict[str, Any], optim_wrapper: OptimWrapper | OptimWrapperDict
) -> dict[str, Tensor]:
    """One iteration: forward and backward pass of every part of the step, then the optimiser steps (or accumulates).

    Args:
        model: The module to call: the model, or its data-parallel wrapper.
        module: The `SteppedModel`.
        data: Batch as the loader returns it.
        optim_wrapper: mmengine's wrapper of the optimiser, or of one per parameter group of the method.

    Returns:
        What is logged: means over the parts.
    """
    several = isinstance(optim_wrapper, OptimWrapperDict)
    wrappers = list(optim_wrapper.values()) if several else [optim_wrapper]
    first = wrappers[0]  # scales the loss and counts; all accumulate in the same way
    active = getattr(model, 'reduce', 'all') == 'active'
    iteration = MessageHub.get_current_instance().get_info('iter', 0)
    step, micro = divmod(iteration, first._accumulative_counts)
    data, parts, logs = module.data_preprocessor(data, training=True), module.parts(step), []
    for index in range(parts):
        last = index == parts - 1
        no_sync = nullcontext() if last and not active else getattr(model, 'no_sync', nullcontext)()
        with no_sync, first.optim_context(model):
            losses = model(**data, step=step, part=micro * parts + index, mode='loss')
        loss, log = module.parse_losses(losses)
        logs.append(log)
        count = first._inner_count
        first.backward(first.scale_loss(loss))
        first._inner_count = count  # it counts iterations, not parts
    for wrapper in wrappers:
        wrapper._inner_count += 1
    if active and first.should_update():
        cast('MethodDistributedDataParallel', model).reduce_active()
    for wrapper in wrappers:
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
        zero_init_last: Every block of the supernet starts as its shortcut; see `SuperNet`.
        channels_last: Memory format of the networks; measure which one is faster on the device.
        cuda_graphs: On a GPU, run the blocks from CUDA graphs captured at their first use
            (`pinas_zoo.models.graphs`): 'auto' if the method supports it, True requires it, False is eager.
        compiled: Compile the blocks by `torch.compile` at their first use, which takes minutes; see docs/gpu.md.
        data_preprocessor: Settings of the `BatchPreprocessor`, which moves the batch to the device; or another one.
    """

    def __init__(
        self,
        space: str | dict[str, Any] | SearchSpace,
        method: dict[str, Any],
        zero_init_last: bool = True,
        channels_last: bool = False,
        cuda_graphs: bool | str = 'auto',
        compiled: bool = False,
        data_preprocessor: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(preprocessor_config(data_preprocessor, channels_last))
        self.space = get_space(space)
        method = dict(method, seed=run_seed(method.get('seed')))
        supernet = SuperNet(self.space, zero_init_last=zero_init_last)
        self.method: Method = MODELS.build(method, default_args=dict(supernet=supernet))
        if channels_last:  # a convolution uses the format of its weights, so the images need not change
            self.to(memory_format=torch.channels_last)
        if cuda_graphs not in (True, False, 'auto'):
            raise ValueError(f"cuda_graphs must be True, False or 'auto', got {cuda_graphs!r}")
        use_graphs = getattr(self.method, 'use_graphs', None)
        if cuda_graphs is True and use_graphs is None:
            raise ValueError(
                f"{type(self.method).__name__} cannot run from CUDA graphs: use cuda_graphs='auto' or False"
            )
        if cuda_graphs and use_graphs is not None and get_device() == 'cuda':
            use_graphs(CudaRecorder(), partial(print_log, logger='current'))
        if compiled:
            from pinas_zoo.models.compiling import compile_blocks

            compile_blocks(self)
        self.last_step = 0

    @property
    def last_paths(self) -> list[str]:
        """The paths of the last step, as text, for logs."""
        return [self.space.format(arch) for arch in self.method.paths(self.last_step)]

    def parts(self, step: int) -> int:
        return self.method.parts(step)

    def init_weights(self) -> None:
        """Does nothing: weights are initialised at construction."""

    def forward(self, step: int = 0, part: int = 0, mode: str = 'loss', **batch: Any) -> dict[str, Tensor]:
        """The method's loss on a batch, see `Method.loss`.

        Raises:
            ValueError: Another mode than 'loss' was requested.
        """
        if mode != 'loss':
            raise ValueError(f"a supernet is pre-trained by mode='loss' only, got {mode!r}")
        self.last_step = step
        return self.method.loss(batch, step, part)

    def log_scalars(self) -> dict[str, float]:
        """The method's numbers that are too expensive for every step; computed when a line is logged."""
        return self.method.log_scalars(self.last_step)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class MethodOptimWrapperConstructor:
    """Builds one optimiser for each of the method's parameter groups.

    Args:
        optim_wrapper_cfg: Config of the wrapper with its optimiser; for a method with several groups, a dict of such
            configs by group.
        paramwise_cfg: Not used; a method's groups define which parameters are trained.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.cfg = optim_wrapper_cfg

    def __call__(self, model: nn.Module) -> OptimWrapper | OptimWrapperDict:
        module: Any = getattr(model, 'module', model)
        groups = module.method.param_groups()
        if len(groups) == 1:
            return self._wrap(dict(self.cfg), *groups.values())
        wrappers = {key: self._wrap(dict(self.cfg[key]), groups[key]) for key in groups if key in self.cfg}
        if any(isinstance(wrapper, AmpOptimWrapper) for wrapper in wrappers.values()):
            raise ValueError(
                'several optimisers would each have a loss scaler: float16 is only for methods with one. Use bfloat16, '
                "type='pinas_zoo.BFloat16OptimWrapper', or leave --amp out"
            )
        if missing := set(groups) - set(self.cfg):
            raise ValueError(
                f'optim_wrapper has no settings for {sorted(missing)}: give each of {sorted(groups)} a dict with an '
                f'optimizer, got {sorted(self.cfg)}'
            )
        return OptimWrapperDict(**wrappers)

    @staticmethod
    def _wrap(cfg: dict[str, Any], params: list[nn.Parameter] | list[dict[str, Any]]) -> OptimWrapper:
        optimiser = OPTIMIZERS.build(dict(cfg.pop('optimizer'), params=params))
        if isinstance(optimiser, torch.optim.SGD) and optimiser.defaults['fused'] and optimiser.defaults['momentum']:
            zero_momenta(optimiser)
        cfg.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(dict(cfg, optimizer=optimiser))


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Forward passes in bfloat16 on any device, without a loss scaler: its range is float32's."""

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Autocast around mmengine's own context (gradient accumulation)."""
        with super().optim_context(model), torch.autocast(get_device(), dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module(name='AmpOptimWrapper')
def mixed_precision(**settings: Any) -> OptimWrapper:
    """bfloat16 without loss scaling if the device supports it, else mmengine's AmpOptimWrapper with these settings.

    ``dtype='float16'`` selects mmengine's, on a GPU.
    """
    wants_it = settings.get('dtype') != 'float16'
    if get_device() != 'cpu' and not (wants_it and torch.cuda.is_bf16_supported(including_emulation=False)):
        return AmpOptimWrapper(**settings)
    print_log(f'{get_device()}: mixed precision is autocast to bfloat16, without loss scaling', 'current')
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        settings.pop(key, None)
    return BFloat16OptimWrapper(**settings)
