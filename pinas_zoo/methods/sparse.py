"""Sparse supernet: mixed paths by sparse factors (Wu et al., "NAS as Sparse Supernet", AAAI 2021, arXiv 2007.16112).

Re-implementation with our own constants: only the abstract and a review were readable, and no code was found.

Every candidate of every position runs and is weighted by a raw factor, without softmax:

    x_l = relu(shortcut_l + sum_k A[l,k] * branch_lk(x_{l-1}))
    min_A  L_heldout(w*(A), A) + l1 * sum |A| + l2 * sum_l ||A_l||_2,     w*(A) = argmin_w L_train(w, A)

The penalty is part of the optimiser of the group 'arch' (`proximal.py`): sparse group lasso (faithful; its guard keeps
one candidate per position) or exclusive lasso (one per position), accelerated or in Adam's form.
"""

from __future__ import annotations

import copy
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pinas_zoo.methods.alternating import AlternatingSettings
from pinas_zoo.methods.mixture import MixtureMethod
from pinas_zoo.models.kinds import last_norm
from pinas_zoo.models.supernet import Path, SuperNet
from pinas_zoo.space import Arch

__all__ = ['SparseSupernet']


class SparseSupernet(MixtureMethod):
    """All candidates mixed; weights and factors are trained in turns.

    The last BN of every block keeps scale 1 and shift 0 during the search: a trained scale would undo the shrinking
    of its factor, and the penalty would select nothing. A factor starts at 1 / (number of candidates). In the weight
    part removed candidates do not run; in the architecture part they do, so that a factor can recover.

    Args:
        supernet: The supernet; the last BN of its blocks is frozen in place.
        num_classes: Classes of the head.
        label_smoothing: As in `SupervisedMethod`.
        seed: As in `SupervisedMethod`; nothing here is random.
        warmup_steps: Steps in which the factors keep their initial values and are not penalised.

    Raises:
        ValueError: A number is out of its range, or the space has a skip: its branch is zero, so its factor would have
            no gradient.

    Examples:
        >>> method = SparseSupernet(SuperNet('pinas_nano'), num_classes=10)
        >>> method.units(0), method.units(method.warmup_steps)
        (4.0, 8.0)
    """

    def __init__(
        self,
        supernet: SuperNet,
        num_classes: int,
        **settings: Unpack[AlternatingSettings],
    ) -> None:
        super().__init__(supernet, num_classes, **settings)
        space = supernet.space
        places = [(p, c) for p in range(space.num_positions) for c in space.choices(p)]
        if skips := [choice for position, choice in places if space.is_skip(position, choice)]:
            raise ValueError(
                f'{space.name!r} has a skip, candidate {skips[0]}, whose factor would learn nothing: use another space'
            )
        for block in supernet.modules():
            if (norm := last_norm(block)) is not None:
                nn.init.ones_(norm.weight)
                nn.init.zeros_(norm.bias)
                norm.requires_grad_(False)
        count = len(space.candidates)
        self.factors = nn.Parameter(torch.full((space.num_positions, count), 1 / count))

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.factors]

    def mixing(self) -> Tensor:
        return self.factors

    def shares(self) -> Tensor:
        """Absolute factors divided by their sum; equal if all of a position are zero, which the guard prevents."""
        size = self.factors.abs()
        total = size.sum(dim=1, keepdim=True)
        return torch.where(total > 0, size / total.where(total > 0, 1), 1 / size.shape[1])

    def mixture(self, everything: bool) -> Path:
        """The mixture of a part: the survivors with fixed factors, or all candidates with trainable ones."""
        positions, candidates = self.factors.shape
        every = tuple(range(candidates))
        choices = [every] * positions if everything else [row or every for row in self.survivors()]
        source = self.factors if everything else self.factors.detach()
        # Taken one by one: a list of indices would be copied to the device, with a synchronisation.
        factors = [torch.stack([row[one] for one in c]) for row, c in zip(source, choices, strict=True)]
        return Path(self.supernet, tuple(choices), factors)

    def weights_loss(self, batch: dict[str, Any], step: int, part: int) -> dict[str, Tensor]:
        """Cross-entropy of the survivors' mixture, for the weights."""
        return self.path_loss(batch, self.mixture(everything=False))

    def arch_loss(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Cross-entropy of the mixture of all candidates, for the factors; the optimiser applies the penalty."""
        return self.path_loss(batch, self.mixture(everything=True))

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The mixed path of the survivors."""
        return (self.derive(mixed=True),)

    def units(self, step: int) -> float:
        """Path units of a step at most, with every candidate kept: one pass in the warm-up, then two."""
        return float(self.factors.shape[1] * self.parts(step))

    def log_scalars(self, step: int) -> dict[str, float]:
        """Survivors, the mean absolute factor, and the current path units of a step."""
        weights = self.path_units([row for row in self.survivors() if row])
        full = 0 if self.warms_up(step) else self.factors.shape[1]
        return super().log_scalars(step) | {'factor': self.factors.abs().mean().item(), 'path_units': weights + full}

    @torch.no_grad()
    def folded(self) -> SuperNet:
        """A copy of the supernet whose last BNs carry the factors.

        A path of the copy is the path with every chosen factor at its value; in the supernet every factor is 1.
        """
        net = copy.deepcopy(self.supernet)
        for row, position in zip(self.factors, net.blocks, strict=True):
            for factor, block in zip(row, position.candidates, strict=True):
                norm = last_norm(block)
                assert norm is not None  # no skip, see `__init__`
                norm.weight.mul_(factor)
                norm.bias.mul_(factor)
        return net
