"""Saving in time: a run that its cluster is about to stop saves, and exits with a status that asks for a restart."""

import os
import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pinas_zoo.mm.engine.checkpoint_hook import ExactCheckpointHook

__all__ = ['REQUEUE_STATUS', 'SIGNALS', 'PreemptionHook']

#: Exit status of a run that saved and wants to be continued; tools/slurm_train.sh puts its job back into the queue.
REQUEUE_STATUS = os.EX_TEMPFAIL
#: What Slurm sends ahead of the time limit (``--signal=USR1@120``), and when it preempts a job.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class PreemptionHook(Hook):
    """After a signal to any rank, saves at the end of a step and exits, on all ranks after the same iteration.

    The checkpoint is not part of the rotation, so that the continued run ends as one that was never stopped. The ranks
    agree by a flag of four bytes over gloo, sent while the next step runs: a step never waits for it, and the run stops
    at most two steps after the signal, or at the end of the gradient accumulation.
    """

    priority = 'VERY_LOW'  # after the checkpoint hook, which was registered before

    def __init__(self) -> None:
        self._process = os.getpid()
        self._signalled = False
        self._group: Any = None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None  # the reduction that is under way

    def before_train(self, runner: Runner) -> None:
        """Listen to the signals."""
        for number in SIGNALS:
            signal.signal(number, self._receive)
        if get_world_size() > 1:
            self._group = dist.new_group(backend='gloo')

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # Slurm signals the data workers too, which inherit this: they continue until their process has saved.
        self._signalled |= os.getpid() == self._process

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save and exit if a rank was signalled."""
        if not self._agreed():
            return
        (checkpoint,) = (hook for hook in runner.hooks if isinstance(hook, ExactCheckpointHook))
        if not checkpoint.save_interim(runner):
            return
        runner.visualizer.close()
        runner.logger.warning(f'stopped by a signal after iteration {runner.iter + 1}: saved; --resume continues')
        if self._group is not None:
            self._work.wait()
            dist.barrier(self._group)  # one that leaves early may take down the rank that writes
        raise SystemExit(REQUEUE_STATUS)

    def _agreed(self) -> bool:
        """Whether any rank was signalled before the end of the previous iteration."""
        if self._group is None:
            return self._signalled
        stop = False
        if self._work is not None:
            self._work.wait()
            stop = bool(self._flag)
        self._flag.fill_(self._signalled)
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)
        return stop
