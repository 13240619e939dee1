"""Small hooks: a guard against non-finite losses, and the log of paths and throughput."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from mmengine.visualization.vis_backend import LocalVisBackend, TensorboardVisBackend

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


def path_names(model: torch.nn.Module) -> list[str]:
    """The paths of the model's last step, if it tells them (`last_paths`)."""
    paths = getattr(model, 'last_paths', None)
    if paths is None:
        return []
    return [paths] if isinstance(paths, str) else [str(path) for path in paths]


@HOOKS.register_module()
class NonFiniteGuardHook(Hook):
    """Stops the run at the first loss that is not finite, before anything is logged or saved.

    The iteration, the model's last paths and the batch's files are logged, written to
    `non_finite.json` in the work_dir, and raised.
    """

    priority = 'HIGH'

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Check every output whose name holds `loss`.

        Raises:
            NonFiniteError: With the iteration, the losses, the paths and the files.
        """
        losses = {
            key: float(torch.as_tensor(value).detach()) for key, value in (outputs or {}).items() if 'loss' in key
        }
        if all(math.isfinite(value) for value in losses.values()):
            return
        report = {
            'iteration': runner.iter + 1,
            'rank': get_rank(),
            'losses': {key: repr(value) for key, value in losses.items()},
            'paths': path_names(unwrap(runner.model)),
            'files': batch_names(data_batch),
        }
        Path(runner.work_dir, 'non_finite.json').write_text(json.dumps(report, indent=1) + '\n')
        message = (
            f'non-finite loss at iteration {report["iteration"]} on rank {report["rank"]}: '
            f'{report["losses"]}; paths {report["paths"]}; files {report["files"]}. '
            'Stopped; the last checkpoint stays as it is'
        )
        runner.logger.error(message)
        raise NonFiniteError(message)


@HOOKS.register_module()
class PathLogHook(Hook):
    """Puts the model's own scalars, the paths and images/s into the log at the logger's interval.

    The unwrapped model may have `log_scalars() -> dict[str, float]`, asked only when it is logged,
    and `last_paths`, the formatted architectures of its last step.
    """

    priority = 'NORMAL'  # before LoggerHook, which prints what stands in the message hub
    _since: tuple[float, int] | None = None  # time and iteration of the last log, at first of the first iteration

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Write at the interval of the run's LoggerHook."""
        now, done = time.perf_counter(), runner.iter + 1
        start, first = self._since = self._since or (now, done)
        interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 10)
        if not self.every_n_train_iters(runner, interval):
            return
        model = unwrap(runner.model)
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
        """Paths are text: mmengine's scalars cannot carry them."""
        runner.logger.info(f'Iter({runner.iter + 1}) paths: {" ".join(paths)}')
        for backend in runner.visualizer._vis_backends.values():
            if isinstance(backend, LocalVisBackend):
                backend.add_scalars({'paths': paths}, step=runner.iter + 1)
            elif isinstance(backend, TensorboardVisBackend):
                backend.experiment.add_text('train/paths', ' '.join(paths), runner.iter + 1)
