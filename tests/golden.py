"""The golden tensors of the released networks, and the rule that fills deterministic weights."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / 'data'


def fill_value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The deterministic value of a released weight, float32."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith('running_var'):
        value = rng.uniform(0.5, 1.5, shape)
    elif len(shape) >= 2:
        value = rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    elif name.endswith('weight'):
        value = rng.uniform(0.5, 1.5, shape)
    else:
        value = rng.standard_normal(shape) * 0.1
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def filled(keys: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A state dict in released names, filled by the rule, counters at 0."""
    return {
        name: torch.tensor(0) if name.endswith('num_batches_tracked') else fill_value(name, tuple(shape))
        for name, shape in keys.items()
    }


def keys(file: str) -> dict:
    return json.loads((DATA / file).read_text())


def arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(DATA / file) as archive:
        return dict(archive)


def image() -> torch.Tensor:
    """The golden input, (1, 3, 64, 64)."""
    return torch.from_numpy(np.random.RandomState(7).standard_normal((1, 3, 64, 64)).astype(np.float32))
