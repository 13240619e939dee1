"""The recipe that all contestants share: budget, rates, views, scoring.

Cost is counted in path units: forward and backward of one path on one batch are one unit, a forward pass alone is a
third.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ['FORWARD', 'SupernetRecipe', 'short_hash']

#: Path units of a forward pass without a backward pass.
FORWARD = 1 / 3


def short_hash(values: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that identify plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class SupernetRecipe:
    """What a run depends on besides contestant, seed and task. Pi-NAS and its variants share the contrast settings.

    Args:
        units: Budget in path units.
        batch: Images per step, in every stage.
        warmup: Steps in which the learning rate rises to its full value.
        zero_init_last: Blocks of the supernet start as their shortcut.
        bfloat16: Train under autocast to bfloat16.
        contrast_lr: Learning rate of the contrast, which decays to 0 as a cosine.
        contrast_decay: Its weight decay.
        dim: Embedding dimensions.
        queue_length: Negative keys.
        teacher_momentum: m of the mean teacher.
        temperature: T of the logits.
        crop_area: Smallest share of the image's area in a view.
        jitter: Largest change of brightness and contrast in a view.
        blur: Probability of a blurred view.
        flip: Probability of a mirrored view.
        supervised_lr: Learning rate of the supervised methods, which decays to 0 linearly, times
            `Contestant.lr_factor`.
        supervised_decay: Their weight decay; none on BN and biases.
        label_smoothing: Label smoothing of the supervised methods.
        linear_steps: Steps of the linear stage, one path each.
        linear_lr: Its learning rate, a tenth of it after 60 % and a hundredth after 80 % of the steps.
        calibration_batches: Batches of training images for BN re-estimation.
        held_out: Held-out images that score a path.
        probes: Points at which the shifts are measured.
        checkpoints: Points during the training at which paths are scored.
        checkpoint_linear_steps: Steps of the linear stage there, outside the budget.
        checkpoint_paths: Paths of the tuning half that are scored there.
    """

    units: float = 6000
    batch: int = 32
    warmup: int = 20
    zero_init_last: bool = True
    bfloat16: bool = False
    contrast_lr: float = 0.05
    contrast_decay: float = 1e-4
    dim: int = 64
    queue_length: int = 512
    teacher_momentum: float = 0.99
    temperature: float = 0.2
    crop_area: float = 0.8
    jitter: float = 0.4
    blur: float = 0.0
    flip: float = 0.5
    supervised_lr: float = 0.1
    supervised_decay: float = 5e-4
    label_smoothing: float = 0.1
    linear_steps: int = 1500
    linear_lr: float = 0.3
    calibration_batches: int = 32
    held_out: int = 4000
    probes: int = 8
    checkpoints: int = 2
    checkpoint_linear_steps: int = 300
    checkpoint_paths: int = 32

    def __post_init__(self) -> None:
        counts = ('batch', 'dim', 'queue_length', 'calibration_batches', 'held_out')
        if bad := {name: getattr(self, name) for name in counts if getattr(self, name) < 1}:
            raise ValueError(f'counts of a recipe must be at least 1, got {bad}')
        if self.linear_steps * FORWARD >= self.units:
            raise ValueError(f'{self.linear_steps} linear steps use up all of the {self.units} path units')

    @property
    def id(self) -> str:
        """Short hash of the values, which identifies the results of a recipe."""
        return short_hash(dataclasses.asdict(self))

    def changed(self, values: Mapping[str, str]) -> SupernetRecipe:
        """A recipe with some fields set from text, as the command line gives them.

        Raises:
            ValueError: A field is unknown, or a value does not fit its type.
        """
        kinds: dict[str, type] = {f.name: type(f.default) for f in dataclasses.fields(self)}
        if unknown := set(values) - set(kinds):
            raise ValueError(f'a recipe has no field {sorted(unknown)}, allowed: {sorted(kinds)}')
        parsed: dict[str, Any] = {}
        for name, text in values.items():
            parsed[name] = json.loads(text.lower()) if kinds[name] is bool else kinds[name](text)
        return dataclasses.replace(self, **parsed)
