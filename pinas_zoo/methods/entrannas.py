"""EnTranNAS: engine and transit positions (Yang et al., CVPR 2021, arXiv 2101.11342).

Re-implementation with our own constants: only a survey's restatement of the formulas was readable, no code was found.

A step has a set E of engine positions, where the architecture is learned. The others, transit positions, run only what
the architecture parameters currently select, so that the supernet stays close to the network that is derived:

    engine     x_l = relu(shortcut_l + sum_k q'_lk * branch_lk(x_{l-1}))         p_l = softmax(alpha_l / tau)
    transit    x_l = relu(shortcut_l + branch_lj(x_{l-1})),  j = argmax alpha_l

With differentiable sparsification (DST) a threshold t_l = sigmoid(beta_l) prunes candidates in the forward pass:

    q_lk = relu(p_lk / max_j p_lj - t_l)        q'_lk = q_lk / sum_j q_lj        else  q'_l = p_l

Left out: feature sharing, which computes a candidate once for all targets of a source node; in a layer-wise space every
position has one input, so there is nothing to share. Also the choice of topology: a position has one predecessor.
"""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pinas_zoo.methods.alternating import AlternatingSettings
from pinas_zoo.methods.mixture import MixtureMethod
from pinas_zoo.models.supernet import Path, SuperNet
from pinas_zoo.space import Arch, kept

__all__ = ['EnTranNAS']


class EnTranNAS(MixtureMethod):
    """A few positions are mixtures that learn, the others run what is derived; the engines move through the depth.

    The positions are divided into `engines` runs of equal length; in each cycle every run is permuted again, and each
    step takes its next position. So every part of the depth has an engine, and every position is an engine once per
    cycle. The warm-up trains uniform single paths; otherwise the first argmax, which is random, would get nearly all
    updates.

    Args:
        supernet: The supernet.
        num_classes: Classes of the head.
        label_smoothing: As in `SupervisedMethod`.
        seed: As in `SupervisedMethod`; also of the initial alpha, 1e-3 times a standard normal.
        warmup_steps: Steps in which alpha and beta keep their initial values.
        engines: Engine positions per step; must divide the number of positions. With all positions it is DARTS.
        temperatures: tau after the warm-up and at the end of the annealing, above 0.
        anneal_steps: Steps after the warm-up in which tau changes geometrically from the first to the second.
        sparsify: DST; without it an engine runs all candidates.
        threshold: Initial beta. At -4, t is 0.018 and nothing is pruned early.
        pruning: Weight of a penalty ``-log t_l`` on the engine positions, which raises the thresholds (ours).

    Raises:
        ValueError: A number is out of its range.

    Examples:
        >>> method = EnTranNAS(SuperNet('pinas_nano'), num_classes=10, engines=2)
        >>> method.units(0), method.units(method.warmup_steps)  # 2 * (8 + 3 * 2) / 8
        (1.0, 3.5)
    """

    unfit: Tensor
    clock: Tensor
    derived: Tensor
    flips: Tensor
    updates: Tensor

    def __init__(
        self,
        supernet: SuperNet,
        num_classes: int,
        engines: int = 1,
        temperatures: tuple[float, float] = (5.0, 0.5),
        anneal_steps: int = 1000,
        sparsify: bool = True,
        threshold: float = -4.0,
        pruning: float = 0.0,
        **settings: Unpack[AlternatingSettings],
    ) -> None:
        super().__init__(supernet, num_classes, **settings)
        space, positions = supernet.space, supernet.space.num_positions
        if engines < 1 or positions % engines or min(temperatures) <= 0 or anneal_steps < 1 or pruning < 0:
            raise ValueError(
                f'allowed: engines that divide {positions} positions, temperatures > 0, anneal_steps >= 1, '
                f'pruning >= 0; got {engines=}, {temperatures=}, {anneal_steps=}, {pruning=}'
            )
        self.engines, self.temperatures, self.anneal_steps = engines, tuple(temperatures), anneal_steps
        self.sparsify, self.pruning = sparsify, pruning
        noise = self.rng(0).standard_normal((positions, len(space.candidates))) * 1e-3
        # One parameter per position: those that are not engines have no gradient, so no optimiser moves them.
        self.alpha = nn.ParameterList(torch.tensor(row, dtype=torch.float32) for row in noise)
        self.beta = nn.ParameterList(torch.full((1,), threshold) for _ in range(positions if sparsify else 0))
        unfit = [[c not in space.choices(p) for c in range(len(space.candidates))] for p in range(positions)]
        self.register_buffer('unfit', torch.tensor(unfit), persistent=False)
        self.register_buffer('clock', torch.zeros((), dtype=torch.long))  # the last step, from which tau follows
        self.register_buffer('derived', torch.tensor(self.strongest()))
        self.register_buffer('flips', torch.zeros(positions, dtype=torch.long))
        self.register_buffer('updates', torch.zeros(noise.shape, dtype=torch.long))

    # ---- the architecture parameters -------------------------------------------------------------------------------

    def arch_parameters(self) -> list[nn.Parameter]:
        return [*self.alpha, *self.beta]

    def trained(self, step: int) -> list[nn.Parameter]:
        """Those of the engine positions."""
        return [parameters[p] for parameters in (self.alpha, self.beta) if len(parameters) for p in self.engine(step)]

    def engine(self, step: int) -> tuple[int, ...]:
        """The engine positions of a step, ascending: one from each run of positions."""
        length = self.supernet.space.num_positions // self.engines
        cycle, place = divmod(step, length)
        orders = [self.rng(1, cycle, run).permutation(length) for run in range(self.engines)]
        return tuple(run * length + int(order[place]) for run, order in enumerate(orders))

    def temperature(self, step: int) -> float:
        """tau of a step."""
        first, last = self.temperatures
        return first * (last / first) ** min(max(step - self.warmup_steps, 0) / self.anneal_steps, 1.0)

    def strongest(self) -> list[int]:
        """The argmax of alpha by position: what a transit position runs."""
        return self._logits().argmax(dim=1).tolist()

    def _logits(self) -> Tensor:
        return torch.stack(list(self.alpha)).detach().masked_fill(self.unfit, -torch.inf)

    def weigh(self, position: int, step: int) -> Tensor:
        """q' of a position, (candidates,), with its graph; gradients flow through the maximum too."""
        logits = self.alpha[position].masked_fill(self.unfit[position], -torch.inf)
        p = (logits / self.temperature(step)).softmax(dim=0)
        if not self.sparsify:
            return p
        # Below 1 in floating point too, or the strongest candidate would be pruned with the others.
        t = self.beta[position].sigmoid().clamp(max=1 - 1e-6)
        q = (p / p.max() - t).relu()
        return q / q.sum()

    @torch.no_grad()
    def mixing(self) -> Tensor:
        """q' of all positions at the temperature of the last step."""
        return torch.stack([self.weigh(p, int(self.clock)) for p in range(len(self.alpha))])

    @torch.no_grad()
    def shares(self) -> Tensor:
        """p of all positions at the temperature of the last step."""
        return (self._logits() / self.temperature(int(self.clock))).softmax(dim=1)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def mixture(self, step: int, learn: bool) -> Path:
        """The path of a part: mixtures of the survivors at the engine positions, the strongest candidate elsewhere."""
        choices: list[Any] = self.strongest()
        factors: list[Tensor | None] = [None] * len(choices)
        for position in self.engine(step):
            weights = self.weigh(position, step)
            weights = weights if learn else weights.detach()
            choices[position] = tuple(c for c, alive in enumerate((weights.detach() != 0).tolist()) if alive)
            factors[position] = torch.stack([weights[choice] for choice in choices[position]])
        return Path(self.supernet, tuple(choices), factors)

    def weights_loss(self, batch: dict[str, Any], step: int, part: int) -> dict[str, Tensor]:
        """Cross-entropy for the weights of all blocks that run; in the warm-up, that of a uniform path."""
        path = self.supernet.path(self.paths(step)[0]) if self.warms_up(step) else self.mixture(step, learn=False)
        if self.training:
            self._record(path, step)
        return self.path_loss(batch, path)

    def arch_loss(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Cross-entropy for alpha and beta of the engine positions, and the declared penalty."""
        terms = self.path_loss(batch, self.mixture(step, learn=True))
        if self.sparsify and self.pruning:
            penalty = -sum(nn.functional.logsigmoid(self.beta[p]).sum() for p in self.engine(step))
            terms['loss'] = terms['loss'] + self.pruning * penalty
        return terms

    @torch.no_grad()
    def _record(self, path: Path, step: int) -> None:
        """Counts the updates of every block, and the positions whose strongest candidate has changed."""
        self.clock.fill_(step)
        for row, choice in zip(self.updates, path.arch, strict=True):
            for one in kept(choice):
                row[one] += 1
        derived = self._logits().argmax(dim=1)
        self.flips += derived != self.derived
        self.derived.copy_(derived)

    # ---- the interface of a method -----------------------------------------------------------------------------------

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The uniform path of the step in the warm-up, afterwards the architecture derived now."""
        return (self.supernet.space.sample(self.rng(2, step)) if self.warms_up(step) else tuple(self.strongest()),)

    def units(self, step: int) -> float:
        """Path units of a step at most: 1 in the warm-up, then two passes with all candidates at the E positions."""
        if self.warms_up(step):
            return 1.0
        space, engine = self.supernet.space, self.engine(step)
        choices = [space.choices(p) if p in engine else 0 for p in range(space.num_positions)]
        return 2 * self.path_units(choices)

    def log_scalars(self, step: int) -> dict[str, float]:
        """Survivors, tau, changes of the argmax so far, and the share of updates of a position's most trained block."""
        share = (self.updates.max(dim=1).values / self.updates.sum(dim=1).clamp(min=1)).mean().item()
        facts = {'temperature': self.temperature(step), 'flips': float(self.flips.sum()), 'top_update_share': share}
        return super().log_scalars(step) | facts
