"""The two shifts of a supernet in training (Peng et al., ICCV 2021, section 3.1), measured.

**Feature shift**: how much the input of a fixed layer changes when the same images reach it over a different path.
**Parameter shift**: how little the successive updates of a shared block agree when it is on different paths, and how
far the student is from its teacher.

Shape suffixes: N images, F features (channels x height x width).
"""

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.methods.candidates import batch_statistics
from pinas_zoo.models.supernet import Position, SuperNet
from pinas_zoo.space import Arch

__all__ = ['FEATURE_SHIFTS', 'UpdateWatch', 'feature_shift', 'linear_cka', 'shift_of_pair']

FEATURE_SHIFTS = ('mean', 'variance', 'cka', 'cosine')


@torch.no_grad()
def feature_shift(supernet: SuperNet, images: Tensor, archs: Sequence[Arch]) -> list[dict[str, float]]:
    """How much the input of each position changes between paths, for the same images; means over all pairs of paths.

    Args:
        supernet: The supernet; BN uses batch statistics, as in its training. It is unchanged afterwards.
        images: The images, (N, C, H, W).
        archs: At least two paths.

    Returns:
        One dict per position with the names of `FEATURE_SHIFTS`, see `shift_of_pair`. Before the first position there
        is only the stem, which all paths share: its shift is 0.
    """
    with batch_statistics(supernet):
        inputs = [_inputs(supernet, images, arch) for arch in archs]
    table = []
    for features in zip(*inputs, strict=True):
        pairs = [shift_of_pair(x, y) for x, y in combinations(features, 2)]
        table.append({name: sum(pair[name] for pair in pairs) / len(pairs) for name in FEATURE_SHIFTS})
    return table


def _inputs(supernet: SuperNet, images: Tensor, arch: Arch) -> list[Tensor]:
    """Input of every position on one path."""
    x, seen = supernet.forward_stem(images), []
    for position, choice in zip(supernet.blocks, arch, strict=True):
        seen.append(x.float())
        x = position(x, choice)
    return seen


def shift_of_pair(x: Tensor, y: Tensor) -> dict[str, float]:
    """Distances between two feature maps of the same images, each 0 if they are equal.

    Shape:
        x, y: (N, C, H, W)

    Returns:
        'mean' and 'variance': distance of the per-channel means and variances, relative to the mean of their norms;
        'cka': 1 - linear CKA; 'cosine': 1 - cosine of the same image's features, averaged over the images.
    """
    out = {}
    for name, statistic in (('mean', torch.mean), ('variance', torch.var)):
        a, b = statistic(x, (0, 2, 3)), statistic(y, (0, 2, 3))
        out[name] = float(2 * (a - b).norm() / (a.norm() + b.norm()).clamp(min=1e-12))
    x_NF, y_NF = x.flatten(1), y.flatten(1)
    out['cka'] = 1 - linear_cka(x_NF, y_NF)
    out['cosine'] = float(1 - F.cosine_similarity(x_NF, y_NF).mean())
    return out


def linear_cka(x_NF: Tensor, y_NF: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al., 2019, eq. 5), 1 for features equal up to rotation and scale.

    Uses the N x N Gram matrices, which are smaller than the F x F covariances; 0 if one side is constant.
    """
    x_NF, y_NF = x_NF - x_NF.mean(dim=0), y_NF - y_NF.mean(dim=0)
    gram_x, gram_y = x_NF @ x_NF.t(), y_NF @ y_NF.t()
    return float((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm()).clamp(min=1e-12))


class UpdateWatch:
    """Cosine between successive updates of the shared blocks of one position.

    An update is the gradient of a step before clipping and momentum, which would make any two successive updates
    similar. A block is compared with itself at the last step in which it was trained, on another batch, if the paths of
    the two steps were not all the same. In a sandwich the blocks of the largest and the smallest path are on those
    paths in every step: their cosines then show less of the shift.

    Args:
        position: The position whose candidates are watched.
    """

    def __init__(self, position: Position) -> None:
        self.blocks = [[p for p in block.parameters() if p.requires_grad] for block in position.candidates]
        self.last: dict[int, tuple[Tensor, tuple[Arch, ...]]] = {}
        self.cosines: list[float] = []

    @torch.no_grad()
    def after_backward(self, paths: Sequence[Arch]) -> None:
        """To be called between the last backward pass of a step and the optimiser's step.

        Args:
            paths: The paths of the step; updates are not compared if the paths were the same.
        """
        for index, parameters in enumerate(self.blocks):
            gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
            if not gradients:
                continue
            update, paths = torch.cat(gradients).float(), tuple(paths)
            if index in self.last and self.last[index][1] != paths:
                self.cosines.append(float(F.cosine_similarity(self.last[index][0], update, dim=0)))
            self.last[index] = (update, paths)

    def take(self) -> float | None:
        """Mean cosine since the last call; None if nothing was compared."""
        cosines, self.cosines = self.cosines, []
        return sum(cosines) / len(cosines) if cosines else None
