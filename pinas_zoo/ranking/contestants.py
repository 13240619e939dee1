"""The compared methods (contestants), their recipes and their costs.

Cost is counted in path units: forward and backward of one path on one batch are one unit, a forward pass alone is a
third. Every contestant has the same budget unless its label says otherwise; the linear stage of the unsupervised ones
is part of it. BN re-estimation and scoring are the same for all and not counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pinas_zoo.methods import METHODS, AdamProximal, Method
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet

__all__ = [
    'CONTESTANTS',
    'FORWARD',
    'GROUPS',
    'GROUP_WORDS',
    'TRIVIAL',
    'Contestant',
    'SupernetRecipe',
    'build_method',
    'linear_units',
    'training_units',
]

#: Path units of a forward pass without a backward pass.
FORWARD = 1 / 3
#: Scores that need no training.
TRIVIAL = ('random', 'macs', 'params')


@dataclass(frozen=True)
class Contestant:
    """A way to train a supernet.

    Args:
        label: Its name in tables and figures.
        method: 'PiNAS', or a name of `pinas_zoo.methods.METHODS`.
        switches: Settings of the method that define this contestant.
        scaled: Further settings, computed from the path units of the training: warm-ups and the like grow with it.
        share: Its share of the budget.
        lr_factor: Factor of the recipe's learning rate.
        clip_value: Largest gradient entry; None does not clip.
        arch_optimiser: Builds the optimiser of the architecture parameters, from them and the training's path units.
        headline: What the method's paper claims, for other data, spaces and budgets; never a result of ours.
    """

    label: str
    method: str = 'PiNAS'
    switches: Mapping[str, Any] = field(default_factory=dict)
    scaled: Callable[[float], Mapping[str, Any]] = lambda units: {}
    share: float = 1.0
    lr_factor: float = 1.0
    clip_value: float | None = None
    arch_optimiser: Callable[[list[Any], float], torch.optim.Optimizer] | None = None
    headline: str = ''

    @property
    def supervised(self) -> bool:
        """Whether it trains with labels, and so has a head without a linear stage."""
        return self.method != 'PiNAS'


def _adam(lr: float) -> Callable[[list[Any], float], torch.optim.Optimizer]:
    return lambda parameters, units: torch.optim.Adam(parameters, lr, betas=(0.5, 0.999))


def _sparse_group_lasso(parameters: list[Any], units: float) -> torch.optim.Optimizer:
    """The rate is inverse to the number of steps, so that a training of any length shrinks a factor equally."""
    return AdamProximal(parameters, lr=15 / units, momentum=0.5, l1=1.5, l2=0.3, ramp=max(1, round(units / 18)))


#: AttentiveNAS as released sums the gradients of four paths and clips them.
_ATTENTIVE: dict[str, Any] = dict(lr_factor=0.5, clip_value=1.0)

CONTESTANTS: dict[str, Contestant] = {
    'pinas': Contestant('Pi-NAS', headline='ImageNet 81.6 %; COCO box AP 44.07; ADE20K mIoU 45.47'),
    'no_cross_path': Contestant('Pi-NAS without cross-path', switches={'cross_path': False}),
    'no_teacher': Contestant('Pi-NAS without mean teacher', switches={'mean_teacher': False}),
    'no_negatives': Contestant('Pi-NAS without negatives', switches={'negatives': False}),
    'moco': Contestant('MoCo on single paths', switches={'single_path': True}),
    'spos': Contestant('SPOS', 'SPOS', headline='ImageNet 74.4 % at 323 MFLOPs'),
    # Its gradient is the mean over the paths, and each block is on only one: at SPOS's rate it moves a fifth as far.
    'fairnas': Contestant('FairNAS', 'FairNAS', lr_factor=3.0, headline='ImageNet 75.34 % (77.5 % with SE)'),
    'bnnas': Contestant('BN-NAS (R)', 'BNNAS', {'variant': 'R'}, lr_factor=0.6, clip_value=5.0),
    'bnnas_tenth': Contestant(
        'BN-NAS (R), a tenth of the budget',
        'BNNAS',
        {'variant': 'R'},
        share=0.1,
        lr_factor=0.6,
        clip_value=5.0,
        headline='training over 10x shorter; ImageNet 75.7 % at 470 MFLOPs',
    ),
    'bnnas_p_tenth': Contestant(
        'BN-NAS (P), a tenth of the budget', 'BNNAS', {'variant': 'P'}, share=0.1, lr_factor=0.6, clip_value=5.0
    ),
    'attentivenas': Contestant(
        'AttentiveNAS (BestUp-3)', 'AttentiveNAS', {'arm': 'best'}, headline='ImageNet 77.3-80.7 %', **_ATTENTIVE
    ),
    'attentivenas_worst': Contestant('AttentiveNAS (WorstUp-3)', 'AttentiveNAS', {'arm': 'worst'}, **_ATTENTIVE),
    'attentivenas_uniform': Contestant('sandwich, uniform paths', 'AttentiveNAS', {'arm': 'uniform'}, **_ATTENTIVE),
    'attentivenas_random': Contestant('four random paths', 'AttentiveNAS', {'arm': 'random'}, **_ATTENTIVE),
    'fpnas': Contestant(
        'FP-NAS*',
        'FPNAS',
        # The paper's 1/4 would be two samples in so small a space, which halve the gradient's signal.
        {'samples_per_nat': 0.63},
        scaled=lambda units: {'warmup_steps': round(0.15 * units)},
        lr_factor=0.5,
        arch_optimiser=_adam(0.01),
        headline='64 % fewer samples and 2.1x faster than PARSEC',
    ),
    'sparse': Contestant(
        'sparse supernet*',
        'SparseSupernet',
        scaled=lambda units: {'warmup_steps': round(0.025 * units)},
        arch_optimiser=_sparse_group_lasso,
        headline='not readable',
    ),
    'entrannas': Contestant(
        'EnTranNAS*',
        'EnTranNAS',
        scaled=lambda units: {'warmup_steps': round(0.13 * units), 'anneal_steps': max(1, round(0.2 * units))},
        arch_optimiser=_adam(0.05),
        headline='CIFAR-10 error 2.22 % in 0.07 GPU-days; ImageNet 76.2 %',
    ),
}


@dataclass(frozen=True)
class SupernetRecipe:
    """What a run depends on besides contestant, seed and task. Pi-NAS and its variants share the contrast settings.

    A contestant's constants are code: if you change them, delete the contestant's lines in scores.jsonl.

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
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

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


#: The groups that share a picture, by the suffix of the picture's name, with the words of its caption.
GROUP_WORDS = {'': 'Pi-NAS, its ablations and baselines', '_peers': 'Pi-NAS, SPOS and the peers'}
GROUPS = {
    '': ('pinas', 'no_cross_path', 'no_teacher', 'no_negatives', 'moco', 'spos', 'fairnas'),
    '_peers': ('pinas', 'spos', 'bnnas_tenth', 'attentivenas', 'fpnas', 'sparse', 'entrannas'),
}


def build_method(
    contestant: Contestant, recipe: SupernetRecipe, supernet: SuperNet, num_classes: int, seed: int
) -> Method:
    """The method object of a contestant."""
    if contestant.supervised:
        settings: dict[str, Any] = dict(num_classes=num_classes, label_smoothing=recipe.label_smoothing)
        settings |= contestant.scaled(training_units(contestant, recipe))
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


def training_units(contestant: Contestant, recipe: SupernetRecipe) -> float:
    """Path units that a contestant has for its training, after the linear stage."""
    return recipe.units * contestant.share - linear_units(contestant, recipe)


def linear_units(contestant: Contestant, recipe: SupernetRecipe) -> float:
    """Path units of the linear stage, which the supervised ones do not need."""
    return 0 if contestant.supervised else recipe.linear_steps * FORWARD
