"""How far the parameters of two networks are apart."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ['relative_distance']


@torch.no_grad()
def relative_distance(parameters: Iterable[Tensor], reference: Iterable[Tensor]) -> float:
    """Distance from a reference, relative to its norm.

    Args:
        parameters: All parameters of one network.
        reference: Those of the other, in the same order.
    """
    those, origin = list(parameters), list(reference)
    apart = torch.stack(torch._foreach_norm(torch._foreach_sub(origin, those))).norm()
    return float(apart / torch.stack(torch._foreach_norm(origin)).norm())
