"""SPOS: single-path one-shot with uniform sampling (Guo et al., ECCV 2020, arXiv 1904.00420)."""

from pinas_zoo.methods.base import SupervisedMethod
from pinas_zoo.space import Arch

__all__ = ['SPOS']


class SPOS(SupervisedMethod):
    """One uniform random path per step, trained with labels.

    Modules off the path get no gradient, so neither momentum nor weight decay changes them. The paper's text draws
    uniformly, as here; its released code draws a bin of FLOPs first. BN stays affine, since the space is Pi-NAS's.

    Args: see `SupervisedMethod`.

    Examples:
        >>> import torch
        >>> from pinas_zoo.models.supernet import SuperNet
        >>> method = SPOS(SuperNet('pinas_nano'), num_classes=10)
        >>> batch = {'image': torch.randn(4, 3, 28, 28), 'label': torch.tensor([0, 1, 2, 3])}
        >>> method.loss(batch, step=0)['loss'].backward()
    """

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The uniform random path of a step."""
        return (self.supernet.space.sample(self.rng(step)),)
