"""What is measured while a supernet trains: both shifts, and scores of some paths."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pinas_zoo.contrast import PiNAS
from pinas_zoo.methods import Method
from pinas_zoo.ranking.contestants import SupernetRecipe
from pinas_zoo.ranking.shifts import UpdateWatch, feature_shift
from pinas_zoo.ranking.task import PairTask, compose, normalise
from pinas_zoo.ranking.train import score_method, supernet_of
from pinas_zoo.space import Arch

__all__ = ['Observer']

#: Paths and images on which the shifts are measured, the same for every contestant and seed.
PROBE_PATHS, PROBE_IMAGES = 6, 128


class Observer:
    """Measures a training on the way: the shifts at some steps, scores of paths at others.

    Args:
        method: What is trained.
        steps: How many steps it takes.
        task: The images.
        recipe: How often, and how paths are scored.
        archs: Paths that are scored on the way.
        seed: Seed of the linear stages.
    """

    def __init__(
        self, method: Method, steps: int, task: PairTask, recipe: SupernetRecipe, archs: Sequence[Arch], seed: int
    ) -> None:
        self.method, self.task, self.recipe, self.archs, self.seed = method, task, recipe, archs, seed
        self.supernet = supernet_of(method)
        space = self.supernet.space
        rng = np.random.default_rng(0)
        self.paths = [space.sample(rng) for _ in range(PROBE_PATHS)]
        self.images = normalise(compose(task, 'train').images[:PROBE_IMAGES])
        self.watch = UpdateWatch(self.supernet.blocks[space.num_positions // 2])
        self.probes = set(np.linspace(0, steps - 1, recipe.probes, dtype=int).tolist())
        self.checkpoints = {round(steps * k / (recipe.checkpoints + 1)) for k in range(1, recipe.checkpoints + 1)}
        self.shifts: list[dict[str, Any]] = []
        self.scores: list[dict[str, Any]] = []
        self.seconds = 0.0

    def before_step(self, step: int) -> None:
        """Measures what is due; the training goes on as if nothing had been."""
        start = time.perf_counter()
        units = step * self.method.units(0)
        if step in self.probes:
            self.shifts.append({'step': step, 'units': units, **self._shifts()})
        if step in self.checkpoints:
            self.scores.append({'step': step, 'units': units, 'scores': self._scores()})
        self.seconds += time.perf_counter() - start

    def after_backward(self, step: int) -> None:
        """Compares the updates of the watched blocks."""
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
