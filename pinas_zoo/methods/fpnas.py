"""FP-NAS: a distribution over architectures, learned by weighting sampled paths (Yan et al., CVPR 2021).

The base is PARSEC (arXiv 1902.05116): paths are drawn from P(A | alpha) and weighted by how well they explain the
batch; weights and alpha follow the gradients of `importance`. FP-NAS (arXiv 2011.10949) adds three things: a number of
samples that follows the entropy H, K = clamp(ceil(lambda H), least, most); a distribution that starts factorised
(coarse) and becomes a joint one (fine); and a cost term.

Re-implementation with our own constants: the sources that were read give neither beta, the optimisers, their rates, the
batch, nor the scale of the likelihood. docs/methods.md says which constants are the paper's and which are ours.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from pinas_zoo.dist import on_device
from pinas_zoo.methods.alternating import AlternatingMethod, AlternatingSettings
from pinas_zoo.methods.candidates import forward_only, image_losses, mean_over_ranks
from pinas_zoo.methods.importance import accumulated, architecture_loss, effective_samples, importance_weights
from pinas_zoo.methods.knapsack import AdditiveScore
from pinas_zoo.models.cost import CostTable
from pinas_zoo.models.latency import LatencyTable
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import Arch, SearchSpace

__all__ = ['FPNAS', 'factor_matrix']


def factor_matrix(space: SearchSpace, factors: Sequence[str]) -> Tensor:
    """Which factor values make up each candidate: joint logits are this matrix times the factors' logits.

    Args:
        space: A space whose candidates are all combinations of some of their fields' values.
        factors: Those fields, such as ('radix', 'cardinality').

    Shape:
        (candidates, values of all factors)

    Raises:
        ValueError: The candidates are not each combination exactly once.
    """
    values = [sorted({getattr(candidate, factor) for candidate in space.candidates}) for factor in factors]
    rows = [tuple(getattr(candidate, factor) for factor in factors) for candidate in space.candidates]
    if sorted(rows) != list(product(*values)):
        raise ValueError(
            f'the candidates of {space.name!r} must be each combination of {tuple(factors)} exactly once, got {rows}'
        )
    return torch.tensor([[float(row[i] == v) for i, vs in enumerate(values) for v in vs] for row in rows])


def _entropy(p: np.ndarray) -> float:
    """Entropy in nats, summed over the rows."""
    some = p[p > 0]
    return float(-(some * np.log(some)).sum())


class FPNAS(AdditiveScore, AlternatingMethod):
    """Probabilistic architecture search with adaptive sampling, coarse to fine.

    The first part of a step trains the weights on K paths, in two passes that hold one path at a time: forward passes
    give the importance weights, then each path runs forward and backward. The second part draws K new paths, evaluates
    them on held-out images, forward only, and moves alpha. Logits are in nats; those of a position sum over its
    factors: ``coarse`` times `factor_matrix`, plus ``fine``. Before `joint_at` only the coarse ones move, after it only
    the fine ones, which start at zero: the switch does not change any path's probability.

    Args:
        supernet: The supernet.
        num_classes: Classes of the head.
        label_smoothing: As in `SupervisedMethod`.
        seed: As in `SupervisedMethod`.
        warmup_steps: Steps on one uniform path each, with alpha fixed.
        samples_per_nat: lambda, paths per nat of entropy; the paper uses 1/4.
        least_samples: Lower bound of K, at least 2: the weight of a single sample is 1 whatever its loss, and alpha
        would only drift.
        most_samples: Upper bound of K.
        temperature: T of a path's likelihood exp(-T CE), CE the mean over the batch. Read literally, T is the number of
            images, and one path gets all the weight; with 1 all get the same. Aim at about K / 2 effective samples.
        factors: Fields that factorise the candidates; without any, the distribution is joint from the start.
        joint_at: Step of the switch to the joint distribution; None stays factorised.
        cost_weight: beta of the cost term; 0 disables it.
        target_macs: MACs up to which a path costs nothing; its cost is max(0, MACs / target - 1).
        target_latency: The same in seconds, by `latency_table`; instead of `target_macs`.
        latency_table: File that `pinas latency` writes, of the supernet's space.
        baseline: See `architecture_loss`; not part of the paper.

    Raises:
        ValueError: A number is out of its range, or the factors do not make up the candidates.
    """

    fits: Tensor
    matrix: Tensor | None

    def __init__(
        self,
        supernet: SuperNet,
        num_classes: int,
        samples_per_nat: float = 0.25,
        least_samples: int = 2,
        most_samples: int = 32,
        temperature: float = 10.0,
        factors: Sequence[str] = (),
        joint_at: int | None = None,
        cost_weight: float = 0.0,
        target_macs: float | None = None,
        target_latency: float | None = None,
        latency_table: str | None = None,
        baseline: bool = False,
        **settings: Unpack[AlternatingSettings],
    ) -> None:
        super().__init__(supernet, num_classes, **settings)
        if samples_per_nat <= 0 or not 2 <= least_samples <= most_samples or temperature <= 0 or cost_weight < 0:
            raise ValueError(
                f'allowed: samples_per_nat > 0, 2 <= least_samples <= most_samples, temperature > 0, cost_weight >= 0; '
                f'got {samples_per_nat=}, {least_samples=}, {most_samples=}, {temperature=}, {cost_weight=}'
            )
        targets = [target for target in (target_macs, target_latency) if target is not None]
        if cost_weight and (len(targets) != 1 or not targets[0] > 0):
            raise ValueError(
                f'a cost term needs target_macs or target_latency above 0, got {target_macs} and {target_latency}'
            )
        self.latencies = None if latency_table is None else LatencyTable.read(latency_table)
        if target_latency is not None and (self.latencies is None or self.latencies.space != supernet.space):
            raise ValueError(f'target_latency needs a latency_table of {supernet.space.name!r}, got {latency_table}')
        self.samples_per_nat, self.least_samples, self.most_samples = samples_per_nat, least_samples, most_samples
        self.temperature, self.cost_weight = temperature, cost_weight
        self.target_macs, self.target_latency = target_macs, target_latency
        self.baseline, self.joint_at = baseline, joint_at
        space = supernet.space
        positions, candidates = space.num_positions, len(space.candidates)
        fits = [[choice in space.choices(position) for choice in range(candidates)] for position in range(positions)]
        self.register_buffer('fits', torch.tensor(fits), persistent=False)
        self.register_buffer('matrix', factor_matrix(space, factors) if factors else None, persistent=False)
        self.coarse = None if self.matrix is None else nn.Parameter(torch.zeros(positions, self.matrix.shape[1]))
        self.fine = nn.Parameter(torch.zeros(positions, candidates))
        self.costs = CostTable(space, space.input_size, num_classes, supernet.in_chans)
        self._drawn: tuple[int, tuple[Arch, ...]] = (-1, ())

    # ---- the distribution ------------------------------------------------------------------------------------------

    def arch_parameters(self) -> list[nn.Parameter]:
        """Coarse logits, where there are factors, and fine ones."""
        return [self.fine] if self.coarse is None else [self.coarse, self.fine]

    def trained(self, step: int) -> list[nn.Parameter]:
        """The coarse logits before `joint_at`, the fine ones after it."""
        if self.coarse is not None and (self.joint_at is None or step < self.joint_at):
            return [self.coarse]
        return [self.fine]

    def log_probabilities(self) -> Tensor:
        """log p_l(k) with its graph; -inf where a candidate does not fit. Shape: (positions, candidates)"""
        logits: Tensor = self.fine
        if self.coarse is not None and self.matrix is not None:
            # A sum of products, since a matrix product would be rounded under autocast.
            logits = logits + (self.coarse[:, None] * self.matrix).sum(dim=2)
        return logits.masked_fill(~self.fits, -math.inf).log_softmax(dim=1)

    def path_log_probability(self, archs: Sequence[Arch]) -> Tensor:
        """log P(A | alpha) with its graph. Shape: (len(archs),)"""
        index = on_device(np.array(archs), self.fine.device)
        return self.log_probabilities().gather(1, index.t()).sum(dim=0)

    @torch.no_grad()
    def _read(self) -> np.ndarray:
        """p_l(k) on the host: the only read from the device in a part. Shape: (positions, candidates)"""
        return self.log_probabilities().double().exp().cpu().numpy()

    def entropy(self) -> float:
        """H, the entropy of the distribution over paths in nats: the sum over the positions."""
        return _entropy(self._read())

    def samples(self, step: int) -> int:
        """K of a step: follows the entropy between its lower and upper bound; 1 in the warm-up."""
        return 1 if self.warms_up(step) else self._count(self.entropy())

    def _count(self, entropy: float) -> int:
        return min(max(math.ceil(self.samples_per_nat * entropy), self.least_samples), self.most_samples)

    def draw(self, step: int, part: int) -> tuple[Arch, ...]:
        """K independent paths from P(A | alpha), equal on all ranks."""
        p = self._read()
        # Summed on the host: cumsum of floats has no deterministic form on a GPU.
        cumulated = p.cumsum(axis=1)
        count = 1 if self.warms_up(step) else self._count(_entropy(p))
        picks = self.rng(step, part).random((count, len(p)))
        archs = (picks[..., None] >= (cumulated / cumulated[:, -1:])[:, :-1]).sum(axis=-1)
        return tuple(tuple(map(int, arch)) for arch in archs)

    # ---- the two parts ---------------------------------------------------------------------------------------------

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The paths that train the weights; for a step that has run, the paths that were drawn."""
        return self._drawn[1] if self._drawn[0] == step else self.draw(step, 0)

    def weights_loss(self, batch: dict[str, Any], step: int, part: int) -> dict[str, Tensor]:
        """sum_k m_k CE_k; the passes run one after another."""
        archs = self.draw(step, 0)
        self._drawn = (step, archs)
        if len(archs) == 1:
            weights_K, seen = self.fine.new_ones(1), None
        else:
            losses_K, seen = self.look(batch, archs)
            weights_K = importance_weights(losses_K, self.temperature)
        top1 = []

        def losses() -> Iterator[Tensor]:
            for arch, weight in zip(archs, weights_K, strict=True):
                terms = self.path_loss(batch, arch)
                top1.append(terms['top1'])
                yield weight * terms['loss']

        weights = [p for group in self.param_groups()['weights'] for p in group['params']]
        loss = accumulated(losses(), weights)
        facts = self._facts(weights_K, torch.stack(top1) if seen is None else seen)
        return {'loss': loss, 'cross_entropy': loss.detach(), **facts}

    def arch_loss(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Marginal likelihood of held-out images and cost, estimated on new samples; see `architecture_loss`."""
        archs = self.draw(step, 1)
        losses_K, top1_K = self.look(batch, archs)
        costs_K = None
        if self.cost_weight:
            costs_K = on_device(np.array([self.cost(arch) for arch in archs]), losses_K.device).to(losses_K.dtype)
        log_p_K = self.path_log_probability(archs)
        loss = architecture_loss(log_p_K, losses_K, self.temperature, costs_K, self.cost_weight, self.baseline)
        weights_K = importance_weights(losses_K, self.temperature)
        facts = self._facts(weights_K, top1_K)  # the loss itself is T times as large as a cross-entropy
        return {'loss': loss, 'cross_entropy': (weights_K * losses_K).sum(), **facts}

    def look(self, batch: dict[str, Any], archs: Sequence[Arch]) -> tuple[Tensor, Tensor]:
        """Mean loss over all ranks and top-1 of each path, forward only. Shape: (len(archs),) each"""
        logits, labels = forward_only(self, batch['image'], archs), batch['label']
        losses = image_losses(logits, labels, self.label_smoothing).mean(dim=1)
        return mean_over_ranks(losses), (logits.argmax(dim=2) == labels).float().mean(dim=1) * 100

    def cost(self, arch: Arch) -> float:
        """C(A): by which fraction a path exceeds the target."""
        if self.target_latency is not None and self.latencies is not None:
            return max(0.0, self.latencies.of(arch) / self.target_latency - 1)
        assert self.target_macs is not None  # a cost term has one
        return max(0.0, self.costs.of(arch).macs / self.target_macs - 1)

    def _facts(self, weights_K: Tensor, top1_K: Tensor) -> dict[str, Tensor]:
        """What both parts log: effective samples, samples, entropy in nats, accuracy weighted as the losses are."""
        return {
            'top1': (weights_K * top1_K).sum(),
            'effective_samples': effective_samples(weights_K),
            'samples': weights_K.new_full((), len(weights_K)),
            'entropy': torch.special.entr(self.log_probabilities().detach().exp()).sum().to(weights_K.dtype),
        }

    def units(self, step: int) -> float:
        """Path units of a step at the current alpha: K trained paths with their first evaluation, K held-out ones."""
        count = self.samples(step)
        return 1.0 if self.warms_up(step) else count * (1 + 1 / 3) + count / 3

    # ---- what was learned ------------------------------------------------------------------------------------------

    def table(self) -> list[list[float]]:
        """log p_l(k); the score is log P(A | alpha)."""
        return self.log_probabilities().detach().double().tolist()
