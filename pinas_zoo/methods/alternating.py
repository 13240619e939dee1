"""Steps that alternate between weights and architecture, for the methods that learn both. torch only.

First-order bi-level optimisation: a step moves the weights on a training batch with the architecture fixed, then the
architecture on held-out images with the weights fixed.
"""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn

from pinas_zoo.methods.base import SupervisedMethod, SupervisedSettings, decay_groups, restrict_gradient
from pinas_zoo.models.kinds import last_norm
from pinas_zoo.models.supernet import SuperNet

__all__ = ['HELD_OUT', 'AlternatingMethod', 'AlternatingSettings', 'enable_branches', 'held_out']

#: Key of the held-out batch within a batch; it contains its own 'image' and 'label'.
HELD_OUT = 'held_out'


class AlternatingSettings(SupervisedSettings, total=False):
    """Settings that the constructors of alternating methods pass on to `AlternatingMethod`."""

    warmup_steps: int


class AlternatingMethod(SupervisedMethod):
    """Base of the methods whose last part of a step moves the architecture; the parts before it move the weights.

    Subclasses define `arch_parameters`, `weights_loss` and `arch_loss`, and `weight_parts` if it is not 1. Warm-up
    steps have no architecture part: the optimiser of 'arch' then sees no gradient and must change nothing.

    Args:
        supernet: The supernet; branches whose last BN starts at zero are enabled, see `enable_branches`.
        num_classes: Classes of the head.
        warmup_steps: Steps that move the weights alone.
        **settings: As for `SupervisedMethod`.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        supernet: SuperNet,
        num_classes: int,
        warmup_steps: int = 100,
        **settings: Unpack[SupervisedSettings],
    ) -> None:
        super().__init__(supernet, num_classes, **settings)
        if warmup_steps < 0:
            raise ValueError(f'warmup_steps must be at least 0, got {warmup_steps}')
        self.warmup_steps = warmup_steps
        enable_branches(supernet)

    # ---- what a subclass defines -----------------------------------------------------------------------------------

    def arch_parameters(self) -> list[nn.Parameter]:
        """The architecture's parameters, the group 'arch'; every `arch_loss` depends on all of `trained(step)`."""
        raise NotImplementedError(f'{type(self).__name__} does not define its architecture parameters')

    def trained(self, step: int) -> list[nn.Parameter]:
        """Those that a step moves: all of them, unless the method trains them in turns."""
        return self.arch_parameters()

    def weight_parts(self, step: int) -> int:
        """Parts of a step that move the weights."""
        return 1

    def weights_loss(self, batch: dict[str, Any], step: int, part: int) -> dict[str, Tensor]:
        """A weight part's terms; its graph must not reach the architecture's parameters."""
        raise NotImplementedError(f'{type(self).__name__} does not define the loss of its weights')

    def arch_loss(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """The architecture part's terms, on held-out images."""
        raise NotImplementedError(f'{type(self).__name__} does not define the loss of its architecture')

    # ---- the interface of a method -------------------------------------------------------------------------------

    def warms_up(self, step: int) -> bool:
        """Whether a step moves the weights alone."""
        return step < self.warmup_steps

    def parts(self, step: int) -> int:
        """The weights' parts, and after the warm-up one of the architecture."""
        return self.weight_parts(step) + (not self.warms_up(step))

    def loss(self, batch: dict[str, Any], step: int, part: int = 0) -> dict[str, Tensor]:
        """The terms of a part. Arguments and result as in `Method.loss`; the batch also contains its held-out batch."""
        part %= self.parts(step)
        if part < self.weight_parts(step):
            return self.weights_loss(batch, step, part)
        terms = self.arch_loss(held_out(batch), step)
        return terms | {'loss': restrict_gradient(terms['loss'], self.trained(step))}

    def param_groups(self) -> dict[str, list[Any]]:
        """The weights that train, and 'arch', which must not decay."""
        arch = self.arch_parameters()
        known = {id(p) for p in arch}
        weights = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        return {'weights': decay_groups(weights), 'arch': arch}


def held_out(batch: dict[str, Any]) -> dict[str, Any]:
    """The held-out batch that comes with a training batch.

    Raises:
        ValueError: There is none.
    """
    if HELD_OUT not in batch:
        raise ValueError(
            f'the architecture is trained on held-out images: the batch needs {HELD_OUT!r} with its image and label '
            f"(data set 'pinas_zoo.HalvedView'), it has {sorted(batch)}"
        )
    return batch[HELD_OUT]


def enable_branches(supernet: SuperNet) -> None:
    """Sets the weight of a block's last BN to 1 where it starts at zero.

    A zero branch gives the architecture's parameters no gradient, or the same one for all candidates.
    """
    for block in supernet.modules():
        if (norm := last_norm(block)) is not None and not norm.weight.any():
            nn.init.ones_(norm.weight)
