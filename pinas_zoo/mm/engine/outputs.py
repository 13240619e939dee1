"""Outputs of the steps without waiting for each: on a GPU they are read one step late, by which time they are there."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner
from torch import Tensor

from pinas_zoo.mm.engine.checkpoint_hook import unwrap
from pinas_zoo.mm.engine.hooks import NonFiniteGuardHook, StepFacts, batch_names
from pinas_zoo.registry import HOOKS

__all__ = ['LateInfoHook']


@dataclass
class _Copy:
    """Scalars of a step on their way to the host."""

    facts: StepFacts
    names: list[str]
    values: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> dict[str, float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


def _copy(outputs: dict[str, Any], facts: StepFacts) -> _Copy:
    """Begins the copy of a step's outputs; does not wait for it where they are on a GPU."""
    names = list(outputs)
    scalars = [torch.as_tensor(outputs[name]).detach().reshape(()) for name in names]
    device = next((value.device for value in scalars if value.device.type == 'cuda'), None)
    if device is None:
        return _Copy(facts, names, torch.stack([value.double() for value in scalars]), None)
    # Of any number, so that a value is there to be stacked; float64 holds them all exactly.
    stacked = torch.stack([value.to(device, torch.float64, non_blocking=True) for value in scalars])
    host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True).copy_(stacked, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Copy(facts, names, host, arrived)


@HOOKS.register_module()
class LateInfoHook(RuntimeInfoHook):
    """mmengine's hook of that name, whose outputs go through `NonFiniteGuardHook` into the message hub late.

    They are read at once at the logger's interval, before a validation or a save, and at the end: what is logged or
    saved has passed the guard.

    Args:
        lag: Steps that an output may wait; None is 1 on a GPU and 0 on a CPU, where nothing waits.
    """

    def __init__(self, lag: int | None = None) -> None:
        if lag is not None and lag < 0:
            raise ValueError(f'LateInfoHook got lag={lag}, allowed: at least 0, or None')
        self.lag = lag
        self._waiting: deque[_Copy] = deque()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Take a step's outputs, and read those that are due.

        Raises:
            NonFiniteError: See `NonFiniteGuardHook`.
        """
        if outputs:
            step = getattr(unwrap(runner.model), 'last_step', None)
            facts = StepFacts(runner.iter + 1, step, batch_names(data_batch))
            self._waiting.append(_copy(outputs, facts))
        if self._logged_now(runner, batch_idx):
            self.flush(runner)
            return
        while len(self._waiting) > self._lag():
            self._read(runner)

    def after_train(self, runner: Runner) -> None:
        """Read what waits."""
        self.flush(runner)

    def flush(self, runner: Runner) -> None:
        """Read all outputs."""
        while self._waiting:
            self._read(runner)

    def _lag(self) -> int:
        if self.lag is not None:
            return self.lag
        return int(self._waiting[-1].arrived is not None) if self._waiting else 0

    def _logged_now(self, runner: Runner, batch_idx: int) -> bool:
        """Whether a logger may read the hub after this iteration."""
        if self.is_last_train_iter(runner) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            return True
        return any(self.every_n_train_iters(runner, hook.interval) for hook in _hooks(runner, LoggerHook))

    def _read(self, runner: Runner) -> None:
        copy = self._waiting.popleft()
        outputs = copy.read()
        for guard in _hooks(runner, NonFiniteGuardHook):
            guard.check(runner, outputs, copy.facts)
        for name, value in outputs.items():
            runner.message_hub.update_scalar(f'train/{name}', value)


def _hooks(runner: Runner, kind: type) -> Iterator[Any]:
    return (hook for hook in runner.hooks if isinstance(hook, kind))
