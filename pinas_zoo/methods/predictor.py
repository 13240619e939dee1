"""A random forest that predicts the accuracy of an architecture (AttentiveNAS, section 4). Needs scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pinas_zoo.search.log import SearchLog
from pinas_zoo.space import Arch, SearchSpace, kept

__all__ = ['AccuracyPredictor', 'one_hot']


def one_hot(space: SearchSpace, archs: Sequence[Arch]) -> np.ndarray:
    """Encodes architectures as rows of zeros and ones, with a one for each candidate that a position keeps.

    Shape:
        Output: (len(archs), num_positions * num candidates), uint8.
    """
    code = np.zeros((len(archs), space.num_positions, len(space.candidates)), dtype=np.uint8)
    for rows, arch in zip(code, archs, strict=True):
        for row, choice in zip(rows, space.parse(arch), strict=True):
            row[kept(choice),] = 1
    return code.reshape(len(archs), space.num_positions * len(space.candidates))


class AccuracyPredictor:
    """100 trees of depth at most 15 with squared error, on one-hot codes of evaluated architectures.

    The released predictor is the same forest on integer features; here codes are one-hot, since candidates have no
    order.

    Args:
        space: The space.
        archs: Evaluated architectures; about 1,000 in the paper.
        scores: Their accuracies, or any score for which higher is better.
        seed: Seed of the forest.

    Raises:
        ValueError: The numbers of scores and architectures differ, or there are none.
        ImportError: scikit-learn is missing.
    """

    def __init__(self, space: SearchSpace, archs: Sequence[Arch], scores: Sequence[float], seed: int = 0) -> None:
        try:
            from sklearn.ensemble import RandomForestRegressor
        except ImportError as error:
            raise ImportError("the predictor needs scikit-learn: pip install 'pinas-zoo[search]'") from error
        if not archs or len(archs) != len(scores):
            raise ValueError(
                f'one score per arch is needed, and at least one, got {len(archs)} archs and {len(scores)} scores'
            )
        self.space = space
        self.forest = RandomForestRegressor(100, criterion='squared_error', max_depth=15, random_state=seed)
        self.forest.fit(one_hot(space, archs), np.asarray(scores, dtype=float))

    @classmethod
    def from_log(cls, path: str | Path, space: SearchSpace, seed: int = 0) -> AccuracyPredictor:
        """Fits the evaluations of a search, read from its archs.jsonl."""
        _, records = SearchLog.read(path)
        return cls(space, [space.parse(record.arch) for record in records], [r.score for r in records], seed)

    def __call__(self, archs: Sequence[Arch]) -> np.ndarray:
        """Predicted scores. Shape: (len(archs),)"""
        return self.forest.predict(one_hot(self.space, archs))
