"""Hooks of a training: a guard against non-finite losses, outputs that are read late, a log of paths and throughput.

On a GPU the outputs of a step are read one step late, when they are already available.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook, LoggerHook, RuntimeInfoHook
from mmengine.runner import Runner
from mmengine.visualization.vis_backend import LocalVisBackend, TensorboardVisBackend
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.mm.engine.checkpoint_hook import NonFiniteError, unwrap
from pinas_zoo.registry import HOOKS


def batch_names(data_batch: Any) -> list[str]:
    """File names of a batch: its `name` list, or the img_path of its data samples."""
    if not isinstance(data_batch, Mapping):
        return []
    if 'name' in data_batch:
        return [str(name) for name in data_batch['name']]
    paths = (getattr(sample, 'img_path', None) for sample in data_batch.get('data_samples') or ())
    return [str(path) for path in paths if path is not None]


def path_names(model: Any, step: int | None = None) -> list[str]:
    """The paths of the model's last step, or of another one, if it provides them (`last_paths`, `last_step`)."""
    last = getattr(model, 'last_step', None)
    if step is not None and last is not None:
        model.last_step = step
    try:
        paths = getattr(model, 'last_paths', None)
    finally:
        if last is not None:
            model.last_step = last
    if paths is None:
        return []
    return [paths] if isinstance(paths, str) else [str(path) for path in paths]


@dataclass(frozen=True)
class StepFacts:
    """Facts for the report of a step: its iteration, the model's own count of it, and the files of its batch."""

    iteration: int
    step: int | None
    files: list[str]


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Stops the run at the first loss that is not finite, before anything is logged or saved.

    The iteration, the model's paths and the batch's files are logged, written to `non_finite.json` in the work_dir, and
    raised. With float16 and a loss scaler an overflow is not an error: the scaler skips that step and halves its
    scale; the statistics that the overflow reached are reset. Too many in a row stop the run too.
    """

    priority = 'HIGH'
    overflows = 16  # consecutive steps that a loss scaler may skip
    _in_a_row = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Check every output whose name contains `loss`; if there is a `LateInfoHook`, it does this instead.

        Raises:
            NonFiniteError: With the iteration, the losses, the paths and the files.
        """
        if any(hasattr(hook, 'flush') for hook in runner.hooks):
            return
        step = getattr(unwrap(runner.model), 'last_step', None)
        values = {key: float(torch.as_tensor(value).detach()) for key, value in (outputs or {}).items()}
        self.check(runner, values, StepFacts(runner.iter + 1, step, batch_names(data_batch)))

    def check(self, runner: Runner, outputs: Mapping[str, float], facts: StepFacts) -> None:
        """Look at the outputs of a step.

        Raises:
            NonFiniteError: With the iteration, the losses, the paths and the files.
        """
        losses = {key: value for key, value in outputs.items() if 'loss' in key}
        if all(math.isfinite(value) for value in losses.values()):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if scales_float16(runner.optim_wrapper) and self._in_a_row <= self.overflows:
            reset = restart_statistics(unwrap(runner.model))
            runner.logger.warning(
                f'overflow in float16 at iteration {facts.iteration}: the loss scaler skips the step '
                f'({self._in_a_row} in a row, {self.overflows} allowed); the statistics of {reset} BN layers are reset'
            )
            return
        report = {
            'iteration': facts.iteration,
            'rank': get_rank(),
            'losses': {key: repr(value) for key, value in losses.items()},
            'paths': path_names(unwrap(runner.model), facts.step),
            'files': facts.files,
        }
        Path(runner.work_dir, 'non_finite.json').write_text(json.dumps(report, indent=1) + '\n')
        message = (
            f'non-finite loss at iteration {report["iteration"]} on rank {report["rank"]}: '
            f'{report["losses"]}; paths {report["paths"]}; files {report["files"]}. '
            'Stopped; the last checkpoint is unchanged'
        )
        runner.logger.error(message)
        raise NonFiniteError(message)


def scales_float16(optim_wrapper: Any) -> bool:
    """Whether a training in float16 uses a loss scaler."""
    wrappers = optim_wrapper.values() if hasattr(optim_wrapper, 'values') else [optim_wrapper]
    scaled = [w for w in wrappers if hasattr(w, 'loss_scaler') and w.loss_scaler.is_enabled()]
    return any(getattr(wrapper, 'cast_dtype', None) in (None, torch.float16) for wrapper in scaled)


@torch.no_grad()
def restart_statistics(model: torch.nn.Module) -> int:
    """Resets BN statistics that are not finite to those of a new layer; returns the number of such layers."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    found = 0
    for mean, var in ((layer.running_mean, layer.running_var) for layer in layers):
        if mean is None or var is None:
            continue
        good = mean.isfinite() & var.isfinite()
        found += not bool(good.all())
        mean.copy_(mean.where(good, 0))
        var.copy_(var.where(good, 1))
    return found


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
    """Starts the copy of a step's outputs, asynchronously if they are on a GPU."""
    names = list(outputs)
    scalars = [torch.as_tensor(outputs[name]).detach().reshape(()) for name in names]
    device = next((value.device for value in scalars if value.device.type == 'cuda'), None)
    if device is None:
        return _Copy(facts, names, torch.stack([value.double() for value in scalars]), None)
    # Also if there are none, so that there is a value to stack; float64 represents them all exactly.
    stacked = torch.stack([value.to(device, torch.float64, non_blocking=True) for value in scalars])
    host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True).copy_(stacked, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Copy(facts, names, host, arrived)


@HOOKS.register_module()
class LateInfoHook(RuntimeInfoHook):
    """mmengine's hook of that name, whose outputs reach the message hub late, after `NonFiniteGuardHook`.

    An output on a GPU is read one step later. All are read at the logger's interval, before a validation or a save, and
    at the end: whatever is logged or saved has passed the guard.
    """

    _waiting: Sequence[_Copy] = ()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Take a step's outputs, and read those that are due.

        Raises:
            NonFiniteError: See `NonFiniteGuardHook`.
        """
        if outputs:
            step = getattr(unwrap(runner.model), 'last_step', None)
            facts = StepFacts(runner.iter + 1, step, batch_names(data_batch))
            self._waiting = [*self._waiting, _copy(outputs, facts)]
        if self._logged_now(runner, batch_idx):
            self.flush(runner)
            return
        waits = int(self._waiting[-1].arrived is not None) if self._waiting else 0
        while len(self._waiting) > waits:
            self._read(runner)

    def after_train(self, runner: Runner) -> None:
        """Read the outputs that are pending."""
        self.flush(runner)

    def flush(self, runner: Runner) -> None:
        """Read all outputs."""
        while self._waiting:
            self._read(runner)

    def _logged_now(self, runner: Runner, batch_idx: int) -> bool:
        """Whether a logger may read the hub after this iteration."""
        if self.is_last_train_iter(runner) or self.end_of_epoch(runner.train_dataloader, batch_idx):
            return True
        return any(self.every_n_train_iters(runner, hook.interval) for hook in _hooks(runner, LoggerHook))

    def _read(self, runner: Runner) -> None:
        copy, *self._waiting = self._waiting
        outputs = copy.read()
        for guard in _hooks(runner, NonFiniteGuardHook):
            guard.check(runner, outputs, copy.facts)
        for name, value in outputs.items():
            runner.message_hub.update_scalar(f'train/{name}', value)


def _hooks(runner: Runner, kind: type) -> Iterator[Any]:
    return (hook for hook in runner.hooks if isinstance(hook, kind))


@HOOKS.register_module()
class PathLogHook(Hook):
    """Adds the model's own scalars, the paths and images/s to the log at the logger's interval.

    The unwrapped model may have `log_scalars() -> dict[str, float]`, called only when it is logged,
    and `last_paths`, the formatted architectures of its last step.
    """

    priority = 'NORMAL'  # before LoggerHook, which prints the content of the message hub
    _since: tuple[float, int] | None = None  # time and iteration of the last log, initially of the first iteration

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Write at the interval of the run's LoggerHook."""
        now, done = time.perf_counter(), runner.iter + 1
        start, first = self._since = self._since or (now, done)
        interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 10)
        if not self.every_n_train_iters(runner, interval):
            return
        model: Any = unwrap(runner.model)
        scalars = model.log_scalars() if hasattr(model, 'log_scalars') else {}
        if done > first:
            images = runner.train_dataloader.batch_sampler.batch_size * get_world_size() * (done - first)
            scalars = {**scalars, 'images_per_second': images / max(now - start, 1e-9)}
        self._since = (now, done)
        for key, value in scalars.items():
            runner.message_hub.update_scalar(f'train/{key}', value)
        paths = path_names(model)
        if paths and is_main_process():
            self._write_paths(runner, paths)

    @staticmethod
    def _write_paths(runner: Runner, paths: list[str]) -> None:
        """Paths are text, which mmengine's scalars cannot store."""
        runner.logger.info(f'Iter({runner.iter + 1}) paths: {" ".join(paths)}')
        for backend in runner.visualizer._vis_backends.values():
            if isinstance(backend, LocalVisBackend):
                backend.add_scalars({'paths': paths}, step=runner.iter + 1)
            elif isinstance(backend, TensorboardVisBackend):
                backend.experiment.add_text('train/paths', ' '.join(paths), runner.iter + 1)
