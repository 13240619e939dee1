"""AttentiveNAS: train the best, or the worst, of some random paths (Wang et al., CVPR 2021, arXiv 2011.09011).

A step trains N paths on one batch, the sandwich: the largest by labels, N - 2 attentive ones and the smallest by the
largest one's scores. An attentive path is the best (or worst) of k that were drawn from one cost bin:

    tau ~ pi(tau);  a_1..a_k ~ pi(a | tau);  a = argmax (argmin) of P(a_i) = -CE(a_i; batch)
    loss = CE(MAX, labels) + sum over the others of -sum_j t_j log softmax(z)_j,   t = softmax(z_MAX)

The paper's space is nested: its largest network contains every weight. Here each candidate has its own weights, so the
sandwich trains the blocks of MAX and MIN more often than the others; `updates` counts this. Where all paths cost about
the same, bins carry no information and the method is best-of-k by the loss on a batch: one bin is the default.
"""

from pathlib import Path
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.methods.base import SupervisedMethod, SupervisedSettings, top1_percent
from pinas_zoo.methods.candidates import forward_only, image_losses, mean_over_ranks
from pinas_zoo.methods.cost_bins import CostBins
from pinas_zoo.methods.distillation import soft_cross_entropy
from pinas_zoo.methods.predictor import AccuracyPredictor
from pinas_zoo.models.cost import CostTable
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import Arch

__all__ = ['ARMS', 'AttentiveNAS']

#: Which of the k paths is trained: the best or the worst; 'uniform' draws one; 'random' trains N random paths with
#: labels, without sandwich and distillation.
ARMS = ('best', 'worst', 'uniform', 'random')


class AttentiveNAS(SupervisedMethod):
    """N paths per step by the sandwich rule, with in-place distillation and attentive sampling.

    The gradients of the N paths are summed, as released. Candidate paths run forward on the step's own batch with batch
    statistics. Their losses are averaged over all ranks before one is chosen, so that every rank trains the same path
    (in the release, ranks may differ). The parts of a step must run in order, since the others learn from the first.

    Args:
        supernet: The supernet.
        num_classes: Classes of the head.
        label_smoothing: As in `SupervisedMethod`; used for the largest path and for the choice.
        seed: As in `SupervisedMethod`.
        arm: One of `ARMS`.
        candidates: k, at least 1; the release uses 3 chosen by loss, the paper 50 chosen by a predictor.
        subnets: N, at least 2.
        bins: Cost bins, over MACs.
        pool: See `CostBins`.
        even_bins: See `CostBins`.
        predictor: Chooses by predicted accuracy instead of the batch's loss: a predictor, or the archs.jsonl of a
            search to fit one to.

    Raises:
        ValueError: A number is out of its range, or the arm is unknown.

    Examples:
        >>> method = AttentiveNAS(SuperNet('pinas_nano'), num_classes=10)
        >>> method.units(0)  # 4 paths, and 2 x 3 looked at
        6.0
    """

    updates: Tensor

    def __init__(
        self,
        supernet: SuperNet,
        num_classes: int,
        arm: str = 'best',
        candidates: int = 3,
        subnets: int = 4,
        bins: int = 1,
        pool: int = 100_000,
        even_bins: bool = False,
        predictor: AccuracyPredictor | str | Path | None = None,
        **settings: Unpack[SupervisedSettings],
    ) -> None:
        super().__init__(supernet, num_classes, **settings)
        if arm not in ARMS:
            raise ValueError(f'unknown arm {arm!r}, allowed: {", ".join(ARMS)}')
        if candidates < 1 or subnets < 2:
            raise ValueError(f'allowed: candidates >= 1, subnets >= 2; got {candidates=}, {subnets=}')
        self.arm, self.subnets = arm, subnets
        self.candidates = candidates if arm in ('best', 'worst') else 1
        space = supernet.space
        self.macs = [[cost.macs for cost in row] for row in CostTable(space, space.input_size, num_classes).table]
        self.bins = CostBins(space, self.macs, bins, pool, even_bins, self.seed)
        self.predictor = (
            AccuracyPredictor.from_log(predictor, space) if isinstance(predictor, (str, Path)) else predictor
        )
        self.register_buffer('updates', torch.zeros(space.num_positions, len(space.candidates), dtype=torch.long))
        # State of the current step: its index, its paths so far, what the others learn from, which choices agreed.
        self._step = -1
        self._paths: list[Arch] = []
        self._targets: Tensor | None = None
        self._agreed: list[bool] = []

    @property
    def extremes(self) -> tuple[Arch, Arch]:
        """MAX and MIN: the paths with the most and the fewest MACs at every position; the first of equal candidates."""
        space = self.supernet.space
        rows = [(row, space.choices(position)) for position, row in enumerate(self.macs)]
        largest, smallest = (tuple(pick(options, key=row.__getitem__) for row, options in rows) for pick in (max, min))
        return largest, smallest

    # ---- a step ----------------------------------------------------------------------------------------------------

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The paths of a step that has run; before that MAX and MIN, since the others depend on the batch."""
        return tuple(self._paths) if step == self._step else self.extremes

    def parts(self, step: int) -> int:
        """One backward pass per path."""
        return self.subnets

    def loss(self, batch: dict[str, Any], step: int, part: int = 0) -> dict[str, Tensor]:
        """Loss of one of the step's paths. Arguments and result as in `Method.loss`.

        Raises:
            ValueError: A part was run out of order.
        """
        part %= self.subnets
        if part == 0:
            self._step, self._paths, self._targets, self._agreed = step, [], None, []
        if (self._step, len(self._paths)) != (step, part):
            raise ValueError(
                f'the parts of a step must run in order: got part {part} of step {step} after '
                f'{len(self._paths)} parts of step {self._step}'
            )
        arch = self.choose(batch, step, part)
        self._paths.append(arch)
        self.count(arch)
        logits, label = self.logits(batch['image'], arch), batch['label']
        top1 = top1_percent(logits, label)
        if part and self.arm != 'random':
            assert self._targets is not None
            return {'loss': soft_cross_entropy(logits, self._targets), 'top1': top1}
        self._targets = logits.detach().softmax(dim=1)
        return {'loss': F.cross_entropy(logits, label, label_smoothing=self.label_smoothing), 'top1': top1}

    def choose(self, batch: dict[str, Any], step: int, part: int) -> Arch:
        """The path of a part: MAX first, MIN last, the attentive ones in between; random paths without the sandwich."""
        if self.arm != 'random' and part in (0, self.subnets - 1):
            return self.extremes[part > 0]
        _, archs = self.bins.draw(self.rng(step, part), self.candidates)
        return archs[0] if len(archs) == 1 else archs[self.winner(batch, archs)]

    def winner(self, batch: dict[str, Any], archs: list[Arch]) -> int:
        """Index of the best path (the worst one for that arm) by loss or predictor; equal on all ranks."""
        pick = torch.argmax if self.arm == 'best' else torch.argmin
        if self.predictor is not None:
            return int(pick(torch.from_numpy(self.predictor(archs))))
        losses = image_losses(forward_only(self, batch['image'], archs), batch['label'], self.label_smoothing)
        # By the whole batch and, to see how reliable such a choice is, by each half of it.
        P = -mean_over_ranks(torch.stack([part.mean(dim=1) for part in (losses, losses[:, ::2], losses[:, 1::2])]))
        whole, first, second = pick(P, dim=1).tolist()
        self._agreed.append(first == second)
        return whole

    @torch.no_grad()
    def count(self, arch: Arch) -> None:
        """Counts a backward pass of each block of a path; the counts are saved in checkpoints."""
        for row, choice in zip(self.updates, arch, strict=True):
            row[choice] += 1

    # ---- the interface of a method ---------------------------------------------------------------------------------

    def units(self, step: int) -> float:
        """Path units of a step: its paths, and a third for each candidate path."""
        looked = self.candidates if self.candidates > 1 and self.predictor is None else 0
        return self.subnets + (self.subnets - 2) * looked / 3

    def log_scalars(self, step: int) -> dict[str, float]:
        """How evenly the blocks were trained, and how reliable the step's choices were.

        Returns:
            'updates_least' and 'updates_most', the extreme update counts relative to their mean; 'same_winner', the
            share of the step's choices that both halves of the batch would have made, in percent (by chance 100 / k).
        """
        space = self.supernet.space
        fitting = torch.cat([row[list(space.choices(position))] for position, row in enumerate(self.updates)]).double()
        extremes = {'updates_least': fitting.min(), 'updates_most': fitting.max()}
        scalars = {name: float(count / fitting.mean().clamp(min=1e-12)) for name, count in extremes.items()}
        same = {'same_winner': 100 * sum(self._agreed) / len(self._agreed)} if self._agreed else {}
        return scalars | same
