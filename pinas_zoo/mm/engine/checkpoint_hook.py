"""Checkpoints from which a run continues exactly."""

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from pinas_zoo.mm.engine import checkpoint_content as states
from pinas_zoo.mm.engine.resume_config import compared_parts, require_fit, take_config
from pinas_zoo.registry import HOOKS
from pinas_zoo.weights.loading import stated_facts


class NonFiniteError(RuntimeError):
    """A loss or a parameter is not finite; training cannot continue."""


class ResumeMismatchError(ValueError):
    """The run that wrote a checkpoint and the run that continues it differ."""


def unwrap(model: Any) -> torch.nn.Module:
    """The model inside a distributed wrapper, or itself."""
    return model.module if is_model_wrapper(model) else model


def flush_outputs(runner: Runner) -> None:
    """Reads the outputs that hooks read late (`LateInfoHook`), before something is saved or validated."""
    for hook in runner.hooks:
        if hasattr(hook, 'flush'):
            hook.flush(runner)


@HOOKS.register_module()
class ExactCheckpointHook(CheckpointHook):
    """Checkpoints from which a run continues bit for bit, in files that are never incomplete.

    Beside mmengine's content a file contains every rank's random states and the conditions of the run
    (`engine`: world size, threads, batch size, seed, torch). Only plain values are stored. A new
    file and `last_checkpoint` are on disk before an old file is removed. Saves that are due within a
    gradient accumulation are postponed to its end.

    Continuing with another world size or seed is an error, since the data would be different; with another thread
    count, batch size per process, number of samples, torch version, device, cudnn or precision, or without
    deterministic kernels, it is a warning: the run continues correctly, but no longer bit for bit.

    Args:
        interval: Iterations between saves.
        by_epoch: Whether interval and save_begin count the epochs of `ExactIterLoop`. Files are named by the
            iteration either way.
        history: Number of newest entries of each logged scalar that are kept and stored.
        strict: False turns those errors into warnings.
        kwargs: Further arguments of mmengine's CheckpointHook.

    Raises:
        ValueError: A storage backend was given.
    """

    backend_args: dict[str, Any] | None
    interval: int
    save_begin: int

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = False,
        history: int = 20_000,
        strict: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(interval=interval, by_epoch=False, **kwargs)
        if self.backend_args or self.file_client_args:
            raise ValueError(
                f'ExactCheckpointHook got backend_args={self.backend_args} and file_client_args='
                f'{self.file_client_args}, but writes local files only: leave both out'
            )
        self.backend_args = {'backend': 'pinas_zoo_atomic'}
        self.counts_epochs = by_epoch
        self.history = history
        self.strict = strict
        self._due = False
        self._gathered: list[states.RandomState] | None = None
        self._resumed: dict[str, Any] | None = None
        self._replaced: list[str] = []
        self._dropped: set[str] = set()
        self._interim = False
        self._interim_path: Path | None = None  # what this run continues; removed after the next save

    # ---- saving

    def before_train(self, runner: Runner) -> None:
        """Continue where the resumed checkpoint was saved."""
        super().before_train(runner)
        if self.counts_epochs:
            length = runner.train_loop.epoch_length or runner.max_iters  # without epochs the whole run is one
            self.interval, self.save_begin = self.interval * length, self.save_begin * length
            self.counts_epochs = False
        if self._resumed is not None:
            self.last_ckpt = runner.message_hub.get_info('last_ckpt')
            if is_main_process():  # files that the stopped run had replaced but not yet removed
                for path in self._resumed['replaced']:
                    Path(path).unlink(missing_ok=True)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save where due, at the end of the current accumulation."""
        last = self.is_last_train_iter(runner)
        self._due |= self.every_n_train_iters(runner, self.interval, self.save_begin)
        self._due |= self.save_last and last
        if self._due and self._is_whole(runner, runner.iter + 1):
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._save_checkpoint(runner)
            self._due = False

    def save_interim(self, runner: Runner) -> bool:
        """Save after the current iteration, outside of the rotation; call it on all ranks.

        Returns:
            False within a gradient accumulation, where nothing is saved.
        """
        if not self._is_whole(runner, runner.iter + 1):
            return False
        if Path(self.last_ckpt or '').name != self.filename_tmpl.format(runner.iter + 1):  # saved just now
            self._interim = True
            self._save_checkpoint(runner)
        return True

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Save the best; the file that it replaces is removed afterwards."""
        with self.file_backend.deferred(keep=self._best_paths):
            super().after_val_epoch(runner, metrics)

    def _best_paths(self) -> list[str | None]:
        paths = getattr(self, 'best_ckpt_path_dict', {})
        return [getattr(self, 'best_ckpt_path', None), *paths.values()]

    def _is_whole(self, runner: Runner, step: int) -> bool:
        whole = step % states.accumulation_steps(runner.optim_wrapper) == 0
        return whole or step == runner.max_iters

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        """mmengine's saving in the order: new file, last_checkpoint, then the old files."""
        if not self._is_whole(runner, step):  # a new best inside an accumulation
            return
        flush_outputs(runner)
        self._check_finite(runner)
        self._replaced = [] if self._interim else self._rotate(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        for buffer in runner.message_hub.log_scalars.values():
            if len(buffer.data[0]) > self.history:
                buffer._log_history = buffer._log_history[-self.history :]
                buffer._count_history = buffer._count_history[-self.history :]
            buffer.max_length = self.history
        # Gathered here, which all ranks reach: before_save_checkpoint is called on rank 0 only.
        self._gathered = states.gather_random_states(runner.train_loop.random_state())
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=False,
            backend_args=self.backend_args,
            **self.args,
        )
        self._gathered = None
        if is_main_process():
            pointer = str(Path(runner.work_dir) / 'last_checkpoint')
            self.file_backend.put_text(self.last_ckpt, pointer)
            for path in self._replaced:
                Path(path).unlink(missing_ok=True)
            if self._interim_path is not None and self._interim_path.name != name:
                self._interim_path.unlink(missing_ok=True)
        self._interim_path = None

    def _rotate(self, runner: Runner, step: int) -> list[str]:
        """Add `step` to the kept checkpoints; returns the files that it replaces."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        replaced = []
        if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
            old = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            replaced.append(self.file_backend.join_path(self.out_dir, old))
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return replaced

    @staticmethod
    def _check_finite(runner: Runner) -> None:
        """A finite loss may have a gradient that is not finite: never save the result of that."""
        named = list(unwrap(runner.model).named_parameters())
        if not named:
            return
        finite = torch.stack([torch.isfinite(parameter).all() for _, parameter in named]).tolist()
        for (name, _), good in zip(named, finite, strict=True):
            if not good:
                raise NonFiniteError(
                    f'the parameter {name} is not finite after iteration {runner.iter + 1}; '
                    'nothing was saved, the last checkpoint is unchanged'
                )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Convert the content to plain values, and add random states and conditions (rank 0)."""
        dropped: list[str] = []
        hub = states.hub_to_plain(checkpoint.pop('message_hub'), self.history, dropped)
        names = {'state_dict', 'optimizer'} & set(checkpoint)
        kept = {name: checkpoint.pop(name) for name in sorted(names)}
        plain = states.to_plain(dict(checkpoint), dropped)
        lost: list[str] = []
        plain.update(states.to_plain(kept, lost), message_hub=hub)
        if lost:
            raise TypeError(f'a checkpoint may contain only tensors and plain values, got {", ".join(lost)}')
        new = [name for name in dropped if name not in self._dropped]
        if new:
            self._dropped.update(new)
            runner.logger.warning(f'left out of checkpoints, not plain values: {", ".join(new)}')
        plain['meta'].update(stated_facts(runner.model))
        checkpoint.clear()
        checkpoint.update(plain)
        if self._gathered is not None:  # None: a best checkpoint, weights only
            checkpoint['random_states'] = self._gathered
            checkpoint['engine'] = self._conditions(runner) | {'config': compared_parts(runner.cfg)}
            checkpoint['replaced'] = list(self._replaced)
            if self._interim:
                checkpoint['interim'] = True

    # ---- resuming

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Rebuild the message hub; when resuming, compare the conditions of both runs."""
        if 'message_hub' in checkpoint:
            hub = checkpoint['message_hub']
            checkpoint['message_hub'] = states.hub_from_plain(hub, self.history)
        if 'meta' in checkpoint:
            checkpoint['meta'] = states.from_plain(checkpoint['meta'])
            checkpoint['meta'].pop('config', None)  # mmengine would run it as code
        require_fit(runner, checkpoint)
        if not runner._resume:
            return
        if runner.cfg.get('resume_with_config'):
            take_config(runner, checkpoint)
        if 'random_states' not in checkpoint:
            runner.logger.warning(
                'the checkpoint contains no random states (not written by ExactCheckpointHook, or a '
                'best checkpoint): this run continues, but not exactly'
            )
            return
        self._compare(runner, checkpoint['engine'])
        if checkpoint.get('interim'):
            self._interim_path = Path(runner.cfg.load_from)
        self._resumed = {
            'states': checkpoint['random_states'],
            'replaced': checkpoint.get('replaced', []),
        }

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore the random states, once, when all hooks and the data have been set up."""
        if self._resumed is not None and get_rank() < len(self._resumed['states']):
            states.set_random_state(self._resumed['states'][get_rank()])
        self._resumed = None

    @staticmethod
    def _conditions(runner: Runner) -> dict[str, int | str]:
        """What must be equal for a run to continue exactly."""
        randomness = runner._randomness_cfg
        offset = get_rank() if randomness.get('diff_rank_seed') else 0
        return {
            'world_size': get_world_size(),
            'seed': int(runner.seed) - offset,
            'threads': torch.get_num_threads(),
            'batch_size': int(runner.train_dataloader.batch_sampler.batch_size),
            'samples': len(runner.train_dataloader.dataset),
            'torch': str(torch.__version__),
            'device': torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu',
            'cudnn': str(torch.backends.cudnn.version()) if torch.cuda.is_available() else 'none',
            'precision': states.precision_of(runner.optim_wrapper),
            'deterministic': str(torch.are_deterministic_algorithms_enabled()),
        }

    def _compare(self, runner: Runner, saved: dict[str, Any]) -> None:
        current = self._conditions(runner)
        errors: list[str] = []
        warnings: list[str] = []
        for key, now in current.items():
            if key in saved and saved[key] != now:  # files of older versions lack some
                text = f'{key} {saved.get(key)} in the checkpoint, {now} now'
                fatal = self.strict and key in ('world_size', 'seed')
                (errors if fatal else warnings).append(text)
        if errors:
            raise ResumeMismatchError(
                f'cannot continue this run: {"; ".join(errors)}. Use the same values, or set '
                'default_hooks.checkpoint.strict=False to continue inexactly'
            )
        if warnings:
            runner.logger.warning(f'continuing, but not bit for bit: {"; ".join(warnings)}')
