"""Measurements during the training of a supernet: both shifts, and scores of some paths."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pinas_zoo.methods import Method
from pinas_zoo.methods.mixture import MixtureMethod
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.ranking.pictures import Task
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.shifts import UpdateWatch, feature_shift
from pinas_zoo.ranking.train import score_method
from pinas_zoo.space import Arch

__all__ = ['Observer']

#: Paths and images on which the shifts are measured, the same for every contestant and seed.
PROBE_PATHS, PROBE_IMAGES = 6, 128


class Observer:
    """Measures during a training: the shifts at some steps, the scores of paths at others.

    Args:
        method: What is trained.
        units: How many path units it takes.
        task: The images.
        recipe: How often to measure, and how to score paths.
        archs: Paths that are scored during the training.
        seed: Seed of the linear stages.
    """

    def __init__(
        self, method: Method, units: float, task: Task, recipe: SupernetRecipe, archs: Sequence[Arch], seed: int
    ) -> None:
        self.method, self.task, self.recipe, self.archs, self.seed = method, task, recipe, archs, seed
        self.supernet = method.supernet
        space = self.supernet.space
        rng = np.random.default_rng(0)
        self.paths = [space.sample(rng) for _ in range(PROBE_PATHS)]
        images = task.compose('train').images[:PROBE_IMAGES]
        self.images = task.normalise(images.to(self.supernet.device))
        self.watch = UpdateWatch(self.supernet.blocks[space.num_positions // 2])
        # Path units at which something is due. No step begins at the end, so the last probe is a little before it.
        last = max(min(0.99 * units, units - 2 * method.units(0)), 0)
        self.probes = list(np.linspace(0, last, recipe.probes))
        self.checkpoints = [units * k / (recipe.checkpoints + 1) for k in range(1, recipe.checkpoints + 1)]
        self.shifts: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []
        self.seconds = 0.0

    def before_step(self, step: int, units: float) -> None:
        """Measures what is due, without any effect on the training.

        Args:
            step: Index of the step.
            units: Path units used before it.
        """
        start = time.perf_counter()
        if self.probes and units >= self.probes[0]:
            self.probes = [due for due in self.probes if due > units]
            self.shifts.append({'step': step, 'units': units, **self._shifts()})
        if self.checkpoints and units >= self.checkpoints[0]:
            self.checkpoints = [due for due in self.checkpoints if due > units]
            self.scores.append({'step': step, 'units': units, 'scores': self._scores()})
        self.seconds += time.perf_counter() - start

    def after_backward(self, step: int) -> None:
        """Compares the updates of the watched blocks; not those of mixtures, which are not on a single path."""
        if isinstance(self.method, MixtureMethod):
            return
        self.watch.after_backward(self.method.paths(step))

    def _shifts(self) -> dict[str, Any]:
        rows = feature_shift(self.supernet, self.images, self.paths)
        feature = [{name: round(value, 6) for name, value in row.items()} for row in rows]
        distance = None
        if isinstance(self.method, PiNAS) and self.method.teacher is not None:
            distance = float(np.mean([self.method.teacher_distance(path) for path in self.paths]))
        return {'feature': feature, 'update_cosine': self.watch.take(), 'teacher_distance': distance}

    def _scores(self) -> dict[str, list[float]]:
        return score_method(
            self.method, self.task, self.recipe, self.archs, self.recipe.checkpoint_linear_steps, self.seed
        )
