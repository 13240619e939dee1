"""Who is compared, by which recipe, at which cost.

Cost is counted in path units: forward and backward of one path on one batch are one unit, a forward pass alone is a
third. Every contestant has the same budget; the linear stage of the unsupervised ones is paid from it. BN re-estimation
and scoring are the same for all and outside of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pinas_zoo.contrast import PiNAS
from pinas_zoo.methods import METHODS, Method
from pinas_zoo.supernet import SuperNet

__all__ = [
    'CONTESTANTS',
    'FORWARD',
    'TRIVIAL',
    'Contestant',
    'SupernetRecipe',
    'build_method',
    'pretrain_steps',
]

#: Path units of a forward pass without a backward pass.
FORWARD = 1 / 3
#: What ranks without any training.
TRIVIAL = ('random', 'macs', 'params')


@dataclass(frozen=True)
class Contestant:
    """A way to train a supernet.

    Args:
        label: Its name in tables and figures.
        method: 'PiNAS', or a name of `pinas_zoo.methods.METHODS`.
        switches: Settings of the method that make it this contestant.
    """

    label: str
    method: str = 'PiNAS'
    switches: Mapping[str, Any] = field(default_factory=dict)

    @property
    def supervised(self) -> bool:
        """Whether it trains with labels, and so has its head without a linear stage."""
        return self.method != 'PiNAS'


CONTESTANTS: dict[str, Contestant] = {
    'pinas': Contestant('Pi-NAS'),
    'no_cross_path': Contestant('Pi-NAS without cross-path', switches={'cross_path': False}),
    'no_teacher': Contestant('Pi-NAS without mean teacher', switches={'mean_teacher': False}),
    'no_negatives': Contestant('Pi-NAS without negatives', switches={'negatives': False}),
    'moco': Contestant('MoCo on single paths', switches={'single_path': True}),
    'spos': Contestant('SPOS', 'SPOS'),
    'fairnas': Contestant('FairNAS', 'FairNAS'),
}


@dataclass(frozen=True)
class SupernetRecipe:
    """All that a run depends on beside contestant, seed and task. Contrast settings are shared by Pi-NAS and kin.

    Args:
        units: Budget in path units.
        batch: Images a step, of every stage.
        warmup: Steps in which the rate rises to its full value.
        zero_init_last: Blocks of the supernet start as their shortcut.
        bfloat16: Train under autocast to bfloat16.
        contrast_lr: Rate of the contrast, which falls to 0 as a cosine.
        contrast_decay: Its weight decay.
        dim: Embedding dimensions.
        queue_length: Negative keys.
        teacher_momentum: m of the mean teacher.
        temperature: T of the logits.
        crop_area: Least share of the image's area in a view.
        jitter: Most change of brightness and contrast in a view.
        blur: Probability of a blurred view.
        flip: Probability of a mirrored view.
        supervised_lr: Rate of SPOS and FairNAS, which falls to 0 linearly.
        supervised_decay: Their weight decay; none on BN and biases.
        label_smoothing: Theirs.
        linear_steps: Steps of the linear stage, one path each.
        linear_lr: Its rate, a tenth after 60 % and a hundredth after 80 % of the steps.
        calibration_batches: Batches of training images for BN re-estimation.
        held_out: Held-out images that score a path.
        probes: Points at which the shifts are measured.
        checkpoints: Points at which paths are scored on the way.
        checkpoint_linear_steps: Steps of the linear stage there, outside the budget.
        checkpoint_paths: Paths of the tuning half that are scored there.
    """

    units: float = 3000
    batch: int = 128
    warmup: int = 20
    zero_init_last: bool = True
    bfloat16: bool = True
    contrast_lr: float = 0.1
    contrast_decay: float = 1e-4
    dim: int = 64
    queue_length: int = 4096
    teacher_momentum: float = 0.99
    temperature: float = 0.2
    crop_area: float = 0.2
    jitter: float = 0.4
    blur: float = 0.0
    flip: float = 0.5
    supervised_lr: float = 0.1
    supervised_decay: float = 5e-4
    label_smoothing: float = 0.1
    linear_steps: int = 900
    linear_lr: float = 0.3
    calibration_batches: int = 16
    held_out: int = 2000
    probes: int = 12
    checkpoints: int = 4
    checkpoint_linear_steps: int = 300
    checkpoint_paths: int = 48

    def __post_init__(self) -> None:
        counts = ('batch', 'dim', 'queue_length', 'calibration_batches', 'held_out')
        if bad := {name: getattr(self, name) for name in counts if getattr(self, name) < 1}:
            raise ValueError(f'counts of a recipe are at least 1, got {bad}')
        if self.linear_steps * FORWARD >= self.units:
            raise ValueError(f'{self.linear_steps} linear steps leave nothing of {self.units} path units')

    @property
    def id(self) -> str:
        """Short hash of the values, under which results are filed."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def changed(self, values: Mapping[str, str]) -> SupernetRecipe:
        """A recipe with some fields set from text, as the command line gives them.

        Raises:
            ValueError: A field is unknown, or a value does not fit its type.
        """
        kinds = {f.name: type(f.default) for f in dataclasses.fields(self)}
        if unknown := set(values) - set(kinds):
            raise ValueError(f'a recipe has no {sorted(unknown)}, allowed: {sorted(kinds)}')
        parsed = {}
        for name, text in values.items():
            parsed[name] = json.loads(text.lower()) if kinds[name] is bool else kinds[name](text)
        return dataclasses.replace(self, **parsed)


def build_method(
    contestant: Contestant, recipe: SupernetRecipe, supernet: SuperNet, num_classes: int, seed: int
) -> Method:
    """The method object of a contestant."""
    if contestant.supervised:
        settings: dict[str, Any] = dict(num_classes=num_classes, label_smoothing=recipe.label_smoothing)
        return METHODS[contestant.method](supernet, seed=seed, **settings, **contestant.switches)
    return PiNAS(
        supernet,
        dim=recipe.dim,
        queue_length=recipe.queue_length,
        momentum=recipe.teacher_momentum,
        temperature=recipe.temperature,
        seed=seed,
        **contestant.switches,
    )


def pretrain_steps(contestant: Contestant, recipe: SupernetRecipe, method: Method) -> int:
    """Steps that the budget allows after the linear stage."""
    linear = 0 if contestant.supervised else recipe.linear_steps * FORWARD
    return int((recipe.units - linear) / method.units(0))
