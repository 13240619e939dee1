"""Training that starts at any iteration: data that are functions of (seed, draw number), and the loop.

mmengine's loop resumes by reading k batches again, which neither gives the same random numbers nor ends in reasonable
time. Here the sampler (`StatelessSampler`) computes where iteration k begins, and the data set wrapper seeds every
sample, so batches do not depend on the number of workers, on their persistence, or on how often a run was stopped.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.dist import broadcast, broadcast_object_list, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import DataLoader, Dataset

from pinas_zoo.mm.engine.batches import Draw, fill_batches, read_ahead, start_batches
from pinas_zoo.mm.engine.checkpoint_content import RandomState, preserved_random_state, random_state
from pinas_zoo.mm.engine.checkpoint_hook import flush_outputs
from pinas_zoo.registry import DATASETS, LOOPS


@contextmanager
def _kept_states() -> Iterator[None]:
    """Runs with one thread; restores the states of random, numpy and torch and the number of threads."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads()
    # Workers have one thread; the bits of sums over a large image depend on the number of threads.
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(seed: int, draw: int) -> None:
    """Seed random, numpy and torch from (seed, draw)."""
    words = np.random.SeedSequence([seed, draw]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # Not torch.manual_seed, which would seed the CUDA devices too.
    torch.default_generator.manual_seed(int(words[2]))


def run_seed(seed: int | None) -> int:
    """The seed that was set for this run, equal on all ranks; `seed` itself if it is given."""
    if seed is not None:
        return int(seed)
    seeds = [torch.initial_seed() % 2**32]
    broadcast_object_list(seeds)
    return seeds[0]


class DatasetWrapper(Dataset[Any]):
    """Forwards unknown attributes to the data set inside, for reading and writing.

    This makes it transparent for hooks and batch samplers of mmdet and mmseg.

    Args:
        dataset: A data set or its config, built in the default scope.
    """

    #: Attributes of the wrapper; subclasses add theirs.
    OWN: ClassVar[frozenset[str]] = frozenset({'dataset'})

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name in self.OWN or name.startswith('__'):  # not set yet: unpickling, copying
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.OWN:
            super().__setattr__(name, value)
        else:  # mmdet's PipelineSwitchHook assigns `dataset.pipeline`
            setattr(self.dataset, name, value)


def _index(item: int | Draw) -> int:
    return item[0] if isinstance(item, tuple) else item


@DATASETS.register_module()
class SeededDataset(DatasetWrapper):
    """Makes a data set's samples functions of (seed, draw number).

    Plain indices give unseeded samples: they come from samplers other than StatelessSampler.

    Args:
        dataset: A data set or its config, built in the default scope.
        seed: Equal on all ranks; None takes the run's.
        max_refetch: Further draws for a sample that is None (mmdet and mmseg data sets
            replace theirs themselves, with numpy, which is seeded here too).
    """

    OWN = DatasetWrapper.OWN | {'seed', 'max_refetch'}

    def __init__(self, dataset: Any, seed: int | None = None, max_refetch: int = 15) -> None:
        super().__init__(dataset)
        self.seed = run_seed(seed)
        self.max_refetch = max_refetch

    def __getitem__(self, item: int | Draw) -> Any:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[Any]) -> list[Any]:
        """The samples of a batch; torch's loader calls this, so the random states are saved only once per batch."""
        if not isinstance(items[0], tuple):
            return [self.dataset[item] for item in items]
        with _kept_states():
            return [self._draw(item) for item in items]

    def _draw(self, item: Draw) -> Any:
        index, draw = item
        _seed(self.seed, draw)
        for _ in range(self.max_refetch + 1):
            sample = self.dataset[index]
            if sample is not None:
                return sample
            index = np.random.randint(len(self.dataset))
        raise RuntimeError(
            f'{type(self.dataset).__name__} returned None for sample {item[0]} and for {self.max_refetch} replacements'
        )

    # Batch samplers of mmdet and mmseg pass on what a StatelessSampler gave them: the draw number is removed.

    def get_data_info(self, item: int | Draw) -> Any:
        """What the wrapped data set knows about a sample without reading it."""
        return self.dataset.get_data_info(_index(item))

    def get_cat_ids(self, item: int | Draw) -> Any:
        """Category ids of a sample."""
        return self.dataset.get_cat_ids(_index(item))

    def get_dataset_source(self, item: int | Draw) -> Any:
        """Which data set of a concatenation a sample comes from."""
        return self.dataset.get_dataset_source(_index(item))


@LOOPS.register_module()
class ExactIterLoop(IterBasedTrainLoop):
    """Iteration loop whose continuation from k equals a run that was never stopped.

    Validation does not change the training's random states and scores rank 0's buffers, the ones that
    are saved. If a run was stopped after the save at k and before the validation at k ended, the
    continued run does that validation first.

    Args:
        runner: The runner.
        dataloader: Its training loader or the config of it.
        max_iters: Total number of iterations.
        max_epochs: Alternatively: passes over the data, each of the loader's length. Hooks see epochs begin and end;
            without it the whole run is one.
        val_begin: First iteration, or epoch, that may be validated.
        val_interval: Iterations, or epochs, between validations; default 1,000 iterations or 1 epoch.
        dynamic_intervals: As in mmengine, in the same unit.
        epoch_length: Iterations per epoch for hooks that count epochs, where `max_iters` is given.

    Raises:
        ValueError: Neither or both of max_iters and max_epochs are given, or samples are not seeded.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader[Any] | dict[str, Any],
        max_iters: int | None = None,
        max_epochs: int | None = None,
        val_begin: int = 1,
        val_interval: int | None = None,
        dynamic_intervals: list[tuple[int, int]] | None = None,
        epoch_length: int | None = None,
    ) -> None:
        # Bypasses IterBasedTrainLoop's own __init__, which starts the workers immediately, at batch 0.
        super(IterBasedTrainLoop, self).__init__(runner, dataloader)
        if (max_iters is None) == (max_epochs is None):
            raise ValueError(f'ExactIterLoop needs either max_iters or max_epochs, got {max_iters=}, {max_epochs=}')
        if fill_batches(self.dataloader):
            runner.logger.warning(
                f'{len(self.dataloader.dataset)} images are fewer than a batch of '
                f'{self.dataloader.batch_sampler.batch_size} on {get_world_size()} process(es): they repeat within it, '
                'and an epoch is one batch'
            )
        unit = 1
        if max_epochs is not None:
            unit = epoch_length = max(1, len(self.dataloader))
            max_iters = max_epochs * unit
            runner.logger.info(f'{max_epochs} epochs of {unit} iterations each, {max_iters} in total')
            # mmengine compares a milestone with the count of the coming epoch or iteration.
            dynamic_intervals = [((begin - 1) * unit + 1, every * unit) for begin, every in dynamic_intervals or ()]
        if val_interval is None:
            val_interval = 1000 if max_epochs is None else 1
        if val_interval < 1:
            raise ValueError(f'train_cfg.val_interval must be at least 1, got {val_interval}')
        assert max_iters is not None
        self._max_iters = int(max_iters)
        self._max_epochs = math.ceil(self._max_iters / epoch_length) if epoch_length else 1
        self._iter = self._epoch = 0
        self.epoch_length = epoch_length
        self.val_begin = val_begin * unit
        self.val_interval = val_interval * unit
        self.stop_training = False
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(self.val_interval, dynamic_intervals)
        self.dataloader_iterator: Any = None  # an iterator while it runs
        self._held: RandomState | None = None
        dataset = self.dataloader.dataset
        if not isinstance(getattr(dataset, '_dataset', dataset), SeededDataset):  # mmengine may slice it
            raise ValueError(
                f'ExactIterLoop got the data set {type(dataset).__name__}, whose samples are not seeded: write '
                "dataset=dict(type='pinas_zoo.SeededDataset', dataset=dict(...))"
            )
        dataset_meta = getattr(dataset, 'metainfo', None)
        if dataset_meta is not None:
            runner.visualizer.dataset_meta = dataset_meta

    def random_state(self) -> RandomState:
        """The training's random states; during a validation those from before it."""
        return random_state() if self._held is None else self._held

    def run(self) -> torch.nn.Module:
        """Train to the end; returns the model."""
        runner = self.runner
        runner.call_hook('before_train')
        # Set in the message hub before anything at a boundary can save, so a checkpoint
        # records whether what follows iteration k was still to come.
        pending = 0 < self._iter != runner.message_hub.get_info('finished_iter')
        if self.epoch_length:
            self._epoch = (self._iter - pending) // self.epoch_length
        self._restart_batches()
        runner.call_hook('before_train_epoch')
        if pending:
            self._finish_iteration()
        runner.model.train()
        if self._iter >= self._max_iters:
            runner.logger.warning(f'nothing left to train: {self._iter} of {self._max_iters} iterations are done')
        while self._iter < self._max_iters and not self.stop_training:
            if not runner.model.training:  # after a validation; setting it walks over all modules
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
        length = self.epoch_length
        ends_epoch = bool(length and k % length == 0 and k < self._max_iters)
        if ends_epoch:
            runner.call_hook('after_train_epoch')
            self._epoch += 1
        self._decide_current_val_interval()
        due = k % self.val_interval == 0 or k == self._max_iters
        if runner.val_loop is not None and k >= self.val_begin and due:
            self._validate()
        if ends_epoch:
            runner.call_hook('before_train_epoch')
            # Workers have copies of the data set: a hook's change to it reaches only new workers.
            if self.dataloader.num_workers and not getattr(self.dataloader, '_iterator', None):
                self._restart_batches()

    def _validate(self) -> None:
        model = self.runner.model
        flush_outputs(self.runner)
        if get_world_size() > 1:
            module = model.module if is_model_wrapper(model) else model
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    broadcast(buffer, src=0)
        with preserved_random_state() as self._held:
            self.runner.val_loop.run()
        self._held = None

    def _restart_batches(self) -> None:
        """Start to read at the current iteration."""
        start_batches(self.dataloader, self._iter)
        # An iterator draws its workers' seed, which must not come from the training's random state.
        self.dataloader.generator = torch.Generator()
        self.dataloader_iterator = read_ahead(iter(self.dataloader), self.runner.model)
