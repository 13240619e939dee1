"""BN-NAS: the scale of a block's last BN, trained alone, predicts how good the block is (Chen et al., ICCV 2021).

All convolutions stay at their random initialisation. BN's scale and shift train on uniform random paths, for a tenth
of a supernet's usual budget. Then, with gamma the scale of the last BN of candidate k at position l, and C channels:

    s[l][k] = 1/C sum_c |gamma[l][k][c]|        S(arch) = sum_l s[l][arch_l]

arXiv 2108.07375. Facts and the released code's settings: docs/methods.md.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.methods.alternating import enable_branches
from pinas_zoo.methods.base import SupervisedSettings
from pinas_zoo.methods.knapsack import AdditiveScore
from pinas_zoo.methods.spos import SPOS
from pinas_zoo.models.kinds import last_norm
from pinas_zoo.models.supernet import SuperNet

__all__ = ['BNNAS']

#: What is trained: R, as in the released code, the last BN of each candidate; P, as the paper words it, every BN.
VARIANTS = ('R', 'P')


class BNNAS(AdditiveScore, SPOS):
    """BN-only training on uniform random paths, and the indicator of the last BN.

    Everything else is frozen in place and in no optimiser. BN's parameters never decay: with decay, the indicator
    would measure how often a candidate was drawn. Use SGD: an adaptive optimiser changes the scale.

    Args:
        supernet: The supernet; it is frozen in place.
        num_classes: Classes of the head.
        label_smoothing: As in `SupervisedMethod`.
        seed: As in `SupervisedMethod`.
        variant: 'R' trains the last BN of each candidate, as released; 'P' every BN, as the paper words it.
        train_head: Also train the head, which both variants leave at its random initialisation.
        zero_init: Ablation: keep last BNs that start at zero. The indicator then measures how far training has enabled
            a branch, a different quantity.

    Raises:
        ValueError: A number is out of its range, or the variant is unknown.

    Examples:
        >>> method = BNNAS(SuperNet('pinas_nano'), num_classes=10)
        >>> method.score(method.paths(0)[0])  # 8 positions whose scales start at 1
        8.0
    """

    def __init__(
        self,
        supernet: SuperNet,
        num_classes: int,
        variant: str = 'R',
        train_head: bool = False,
        zero_init: bool = False,
        **settings: Unpack[SupervisedSettings],
    ) -> None:
        super().__init__(supernet, num_classes, **settings)
        if variant not in VARIANTS:
            raise ValueError(f'unknown variant {variant!r}, allowed: {", ".join(VARIANTS)}')
        if not zero_init:
            enable_branches(supernet)
        # As released, torch's default: the small initialisation of trained heads would pass on hardly any gradient.
        self.head.reset_parameters()
        self.requires_grad_(False)
        self.head.requires_grad_(train_head)
        for norm in self.trained_norms(variant):
            norm.requires_grad_(True)

    def trained_norms(self, variant: str) -> list[_BatchNorm]:
        """The BN layers that the variant trains."""
        if variant == 'P':
            return [module for module in self.supernet.modules() if isinstance(module, _BatchNorm)]
        blocks = (block for position in self.supernet.blocks for block in position.candidates)
        return [norm for block in blocks if (norm := last_norm(block)) is not None]

    def param_groups(self) -> dict[str, list[Any]]:
        """The trained parameters, without weight decay."""
        return {'weights': [{'params': [p for p in self.parameters() if p.requires_grad], 'weight_decay': 0.0}]}

    def units(self, step: int) -> float:
        """Path units of a step: the convolutions' weights need no gradient, which saves a third of a path's cost."""
        return 2 / 3

    # ---- the indicator ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def table(self) -> list[list[float]]:
        """``s[position][candidate]``: mean absolute scale of the last BN in double precision; 0 for a skip.

        The score is S, their sum. It is maximised exactly; the paper runs an evolution on it.
        """
        return [[_scale(last_norm(block)) for block in position.candidates] for position in self.supernet.blocks]


def _scale(norm: _BatchNorm | None) -> float:
    weight: Tensor | None = None if norm is None else norm.weight
    return 0.0 if weight is None else float(weight.double().abs().mean())
