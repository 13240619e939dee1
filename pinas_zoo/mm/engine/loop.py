"""A training loop that starts at any iteration, and bfloat16 steps on a CPU.

mmengine's loop resumes by reading k batches again, which neither gives the same random numbers nor
ends in reasonable time. Stateless data (`pinas_zoo.mm.engine.sampling`) can start at batch k directly.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import broadcast, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import BatchSampler, DataLoader

from pinas_zoo.mm.engine.batches import read_ahead
from pinas_zoo.mm.engine.checkpoint_content import RandomState, preserved_random_state, random_state
from pinas_zoo.mm.engine.sampling import SkippingBatchSampler, StatelessSampler
from pinas_zoo.registry import LOOPS, OPTIM_WRAPPERS


@LOOPS.register_module()
class ExactIterLoop(IterBasedTrainLoop):
    """Iteration loop whose continuation from k equals a run that was never stopped.

    Validation leaves the training's random states alone and scores rank 0's buffers, the ones that
    are saved. If a run was stopped after the save at k and before the validation at k ended, the
    continued run does that validation first.

    Args:
        runner: The runner.
        dataloader: Its training loader or the config of it.
        max_iters: Iterations in all.
        val_begin: First iteration that may be validated.
        val_interval: Iterations between validations.
        dynamic_intervals: As in mmengine.
        epoch_length: Iterations an epoch of a converted config, for hooks that count epochs; their
            epoch begins and ends here. None is one epoch for the whole run.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader | dict,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
        epoch_length: int | None = None,
    ) -> None:
        # Past IterBasedTrainLoop's own __init__, which starts the workers at once, at batch 0.
        super(IterBasedTrainLoop, self).__init__(runner, dataloader)
        self._max_iters = int(max_iters)
        self._max_epochs = math.ceil(self._max_iters / epoch_length) if epoch_length else 1
        self._iter = self._epoch = 0
        self.epoch_length = epoch_length
        self.val_begin = val_begin
        self.val_interval = val_interval
        self.stop_training = False
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(val_interval, dynamic_intervals)
        self.dataloader_iterator: Iterator | None = None
        self._held: RandomState | None = None
        dataset_meta = getattr(self.dataloader.dataset, 'metainfo', None)
        if dataset_meta is not None:
            runner.visualizer.dataset_meta = dataset_meta

    def random_state(self) -> RandomState:
        """The training's random states; during a validation those from before it."""
        return random_state() if self._held is None else self._held

    def run(self) -> torch.nn.Module:
        """Train to the end; returns the model."""
        runner = self.runner
        runner.call_hook('before_train')
        # Set in the message hub before anything at a boundary can save, so it tells in a
        # checkpoint whether what follows iteration k was still to come.
        pending = 0 < self._iter != runner.message_hub.get_info('finished_iter')
        if self.epoch_length:
            self._epoch = (self._iter - pending) // self.epoch_length
        self._restart_batches()
        runner.call_hook('before_train_epoch')
        if pending:
            self._finish_iteration()
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._finish_iteration()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        self.dataloader_iterator = None
        return runner.model

    def _finish_iteration(self) -> None:
        """What follows iteration k after its checkpoint: the end of an epoch, a validation."""
        runner, k = self.runner, self._iter
        runner.message_hub.update_info('finished_iter', k)
        ends_epoch = bool(self.epoch_length) and k % self.epoch_length == 0 and k < self._max_iters
        if ends_epoch:
            runner.call_hook('after_train_epoch')
            self._epoch += 1
        self._decide_current_val_interval()
        due = k % self.val_interval == 0 or k == self._max_iters
        if runner.val_loop is not None and k >= self.val_begin and due:
            self._validate()
        if ends_epoch:
            runner.call_hook('before_train_epoch')
            # Workers hold copies of the data set: a hook's change of it reaches new ones only.
            if self.dataloader.num_workers and not getattr(self.dataloader, '_iterator', None):
                self._restart_batches()

    def _validate(self) -> None:
        model = self.runner.model
        if get_world_size() > 1:
            module = model.module if is_model_wrapper(model) else model
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    broadcast(buffer, src=0)
        with preserved_random_state() as self._held:
            self.runner.val_loop.run()
        self._held = None

    def _restart_batches(self) -> None:
        """Begin to read at the current iteration."""
        batch_sampler = self.dataloader.batch_sampler
        sampler = getattr(batch_sampler, 'sampler', None)
        if isinstance(batch_sampler, SkippingBatchSampler):
            batch_sampler.start = self._iter
        elif type(batch_sampler) is BatchSampler and isinstance(sampler, StatelessSampler):
            sampler.start = self._iter * batch_sampler.batch_size
        else:
            raise ValueError(
                f'ExactIterLoop got the batch sampler {type(batch_sampler).__name__} over '
                f'{type(sampler).__name__}; it can start a StatelessSampler without batch sampler, '
                'or any batch sampler inside a SkippingBatchSampler'
            )
        with preserved_random_state():  # an iterator draws its workers' seed
            batches = iter(self.dataloader)
        self.dataloader_iterator = read_ahead(batches, self.runner.model)


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Forward passes in bfloat16 on a CPU, where mmengine's AmpOptimWrapper asserts a GPU."""

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Autocast round mmengine's own context (gradient accumulation)."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
