"""The compared methods (contestants), their recipes and their costs.

Every contestant has the same budget in path units (`recipe`) unless its label says otherwise; the linear stage of the
unsupervised ones is part of it. BN re-estimation and scoring are the same for all and not counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pinas_zoo.methods import METHODS, AdamProximal, Method
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.ranking.recipe import FORWARD, SupernetRecipe, short_hash

__all__ = [
    'CONTESTANTS',
    'GROUPS',
    'GROUP_WORDS',
    'TRIVIAL',
    'Contestant',
    'build_method',
    'constants_of',
    'linear_units',
    'training_units',
]

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
        images: Number of training images; None for all.
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
    images: int | None = None
    arch_optimiser: Callable[[list[Any], float], torch.optim.Optimizer] | None = None
    headline: str = ''

    @property
    def supervised(self) -> bool:
        """Whether it trains by cross-entropy, with the rates of the supervised methods."""
        return self.method != 'PiNAS'

    @property
    def linear_stage(self) -> bool:
        """Whether it reads no labels, so that its head is trained in a linear stage."""
        return self.method in ('PiNAS', 'RLNAS')

    @property
    def constants(self) -> str:
        """Short hash of everything that a training depends on here; lines of other constants are other contestants."""
        lengths = (1000.0, 6000.0)  # trainings for which what grows with the length is compared
        values: dict[str, Any] = {'method': self.method, 'switches': dict(self.switches), 'share': self.share}
        values |= {'lr_factor': self.lr_factor, 'clip_value': self.clip_value}
        values['scaled'] = [dict(self.scaled(units)) for units in lengths]
        if self.images is not None:
            values['images'] = self.images
        if self.arch_optimiser is not None:
            built = [self.arch_optimiser([nn.Parameter(torch.zeros(1, 1))], units) for units in lengths]
            values['arch_optimiser'] = [[type(one).__name__, _plain(one.defaults)] for one in built]
        return short_hash(values)


def _plain(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an optimiser that some value was given."""
    return {name: value for name, value in defaults.items() if value is not None and value is not False}


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
    # With the classifier trained, what the paper freezes is the only difference to SPOS.
    'bnnas_head': Contestant(
        'BN-NAS (R), trained head', 'BNNAS', {'variant': 'R', 'train_head': True}, lr_factor=0.6, clip_value=5.0
    ),
    'bnnas_p_head': Contestant(
        'BN-NAS (P), trained head', 'BNNAS', {'variant': 'P', 'train_head': True}, lr_factor=0.6, clip_value=5.0
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
    # Random labels have to be memorised: 2,000 images give 88 epochs where all would give 4.
    'rlnas': Contestant('RLNAS', 'RLNAS', images=2000, clip_value=5.0),
    'pada': Contestant(
        'PA&DA, path sampling',
        'PADA',
        scaled=lambda units: {'steps': round(units), 'interval': max(1, round(units / 60))},
    ),
}


#: The constants of lines that were written before lines recorded them: those of `CONTESTANTS` at that time.
UNRECORDED: dict[str, str] = {
    'pinas': '61d93db5d7',
    'no_cross_path': 'ae801ff393',
    'no_teacher': '81c465efcf',
    'no_negatives': 'bce0c98a52',
    'moco': '21165a77b6',
    'spos': '7c4459d86a',
    'fairnas': '151d1467ee',
    'bnnas': 'a9c0c474ce',
    'bnnas_tenth': '3c4f213d74',
    'bnnas_p_tenth': '0e1a5b1b90',
    'attentivenas': '28bc7aefc1',
    'fpnas': 'e344104461',
    'sparse': 'b161a572c3',
    'entrannas': '8c97268387',
}


def constants_of(row: Mapping[str, Any]) -> str | None:
    """The hash of the constants that a line of scores.jsonl was trained with; None if nothing is known of them."""
    return row.get('constants', UNRECORDED.get(row['contestant']))


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
    return recipe.linear_steps * FORWARD if contestant.linear_stage else 0
