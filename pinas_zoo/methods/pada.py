"""PA&DA's path sampling: paths whose blocks have large gradients are drawn more often (Lu et al., CVPR 2023).

arXiv 2302.14772. The variance of a supernet's gradient is smallest if a path is drawn in proportion to the norm of its
gradient. Norms are measured per candidate; the share of the distribution that follows them grows with training:

    p_lk = (1 - t) / K + t g_lk / sum_j g_lj,   g_lk: mean gradient norm of candidate k at position l,  t = step / steps

The paper's other half samples images the same way. It is not here, since it needs a separate sampler.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from pinas_zoo.dist import on_device
from pinas_zoo.methods.base import SupervisedMethod, SupervisedSettings
from pinas_zoo.methods.candidates import mean_over_ranks
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import Arch

__all__ = ['PADA']


class PADA(SupervisedMethod):
    """One path per step, drawn by the gradient norms of its candidates.

    The norm of a candidate is that of the gradient of all its parameters in one backward pass. The sum since the last
    update and its count are buffers, so that a resumed training draws the same paths.

    Args:
        supernet: The supernet.
        num_classes: Classes of the head.
        steps: Steps of the training; at their end the distribution is that of the norms alone.
        interval: Steps between updates of the distribution; the release updates once per epoch.
        **settings: As for `SupervisedMethod`.

    Raises:
        ValueError: A number is out of its range.
    """

    fits: Tensor
    probability: Tensor
    norms: Tensor
    counts: Tensor
    known: Tensor

    def __init__(
        self,
        supernet: SuperNet,
        num_classes: int,
        steps: int = 10_000,
        interval: int = 100,
        **settings: Unpack[SupervisedSettings],
    ) -> None:
        super().__init__(supernet, num_classes, **settings)
        if steps < 1 or interval < 1:
            raise ValueError(f'steps and interval must be at least 1, got {steps} and {interval}')
        self.steps, self.interval = steps, interval
        space = supernet.space
        shape = space.num_positions, len(space.candidates)
        fits = torch.tensor([[c in space.choices(p) for c in range(shape[1])] for p in range(shape[0])])
        self.register_buffer('fits', fits, persistent=False)
        uniform = fits.double() / fits.sum(dim=1, keepdim=True)
        self.register_buffer('probability', uniform)
        self.register_buffer('known', torch.zeros(shape, dtype=torch.double))
        self.register_buffer('norms', torch.zeros(shape, dtype=torch.double))
        self.register_buffer('counts', torch.zeros(shape, dtype=torch.double))
        # The distribution on the host: read once per update, and again after a checkpoint was loaded.
        self._cumulated: np.ndarray | None = None
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, '_cumulated', None))

    # ---- the distribution ------------------------------------------------------------------------------------------

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The path of a step; the same on all ranks."""
        if self._cumulated is None:
            cumulated = self.probability.cpu().numpy().cumsum(axis=1)
            self._cumulated = cumulated / cumulated[:, -1:]
        picks = self.rng(step).random((len(self._cumulated), 1))
        return (tuple(map(int, (picks >= self._cumulated[:, :-1]).sum(axis=1))),)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Computes the distribution of the next steps from the norms since the last update.

        A candidate that was not drawn since then keeps its last norm; one that was never drawn gets the others' mean.
        """
        norms, counts = (mean_over_ranks(x) for x in (self.norms, self.counts))
        self.known.copy_(torch.where(counts > 0, norms / counts.clamp(min=1e-12), self.known))
        seen = (self.known > 0).double()
        mean = self.known.sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True).clamp(min=1)
        never = (self.known == 0) & self.trained
        weight = torch.where(never, mean, self.known) * self.fits
        total = weight.sum(dim=1, keepdim=True)
        uniform = self.fits.double() / self.fits.sum(dim=1, keepdim=True)
        share = min(step / self.steps, 1.0)
        by_norm = torch.where(total > 0, weight / total.clamp(min=1e-300), uniform)
        self.probability.copy_((1 - share) * uniform + share * by_norm)
        self.norms.zero_()
        self.counts.zero_()
        self._cumulated = None

    @property
    def trained(self) -> Tensor:
        """Which candidates have parameters: a skip has none, and its norm stays 0. Shape: (positions, candidates)"""
        blocks = [[any(True for _ in block.parameters()) for block in p.candidates] for p in self.supernet.blocks]
        return torch.tensor(blocks, device=self.fits.device)

    # ---- a step ----------------------------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Any], step: int, part: int = 0) -> dict[str, Tensor]:
        """Cross-entropy of the step's path, whose backward pass records the norms. As in `Method.loss`."""
        if part == 0 and step and step % self.interval == 0:
            self.update(step)
        (arch,) = self.paths(step)
        self._watch(arch)
        return self.path_loss(batch, arch)

    def _watch(self, arch: Arch) -> None:
        """Lets the next backward pass add the gradient norms of a path's blocks."""
        chosen = self.supernet.space.single(arch)
        blocks = [list(p[c].parameters()) for p, c in zip(self.supernet.blocks, chosen, strict=True)]
        parameters = [parameter for block in blocks for parameter in block]
        if not parameters:
            return
        owner = [position for position, block in enumerate(blocks) for _ in block]

        @torch.no_grad()
        def record(gradients: Sequence[Tensor | None]) -> None:
            handle.remove()
            present = [(o, g) for o, g in zip(owner, gradients, strict=True) if g is not None]
            squares = torch.stack(torch._foreach_norm([g for _, g in present])).double() ** 2
            index, choices = (on_device(np.array(x), squares.device) for x in ([o for o, _ in present], chosen))
            sums = squares.new_zeros(len(blocks)).index_add_(0, index, squares)
            place = torch.arange(len(blocks), device=sums.device), choices
            self.norms.index_put_(place, sums.sqrt(), accumulate=True)
            self.counts.index_put_(place, torch.ones_like(sums), accumulate=True)

        handle = register_multi_grad_hook(parameters, record)

    def log_scalars(self, step: int) -> dict[str, float]:
        """'sharpness': the largest probability of a candidate relative to the uniform one, mean over the positions."""
        most = self.probability.max(dim=1).values * self.fits.sum(dim=1)
        return {'sharpness': float(most.mean())}
