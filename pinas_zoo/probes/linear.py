"""Logistic regression on frozen features; its weight decay is chosen on a held-out part of the training images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['PENALTIES', 'LinearProbe', 'fit_linear', 'hold_out']

#: Candidates for the L2 penalty, in units of the mean loss.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: What is used where too few images are labelled to hold some out.
DEFAULT_PENALTY = 1e-2
#: Share of the training images on which the penalty is chosen.
HELD_OUT = 0.2


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier.

    Args:
        weight: (classes, D), for standardised features.
        bias: (classes,).
        mean: Subtracted from the features, (D,).
        scale: Divides them, (D,).
        penalty: L2 penalty that was used.
        chosen: Whether it was chosen on held-out images.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    penalty: float
    chosen: bool

    def predict(self, features_MD: Tensor) -> Tensor:
        """A label per row, (M,)."""
        return F.linear((features_MD.float() - self.mean) / self.scale, self.weight, self.bias).argmax(dim=1)


def fit_linear(
    features_ND: Tensor, labels: Tensor, classes: int, penalties: tuple[float, ...] = PENALTIES, seed: int = 0
) -> LinearProbe:
    """Fits a softmax classifier on standardised features with L-BFGS.

    With several penalties, the one with the best accuracy on a held-out fifth of the images of each class is used for a
    fit on all of them. Where no class has images to spare, it is 0.01.

    Args:
        features_ND: Features.
        labels: Labels, (N,).
        classes: Number of classes.
        penalties: L2 penalties to choose from: ``mean cross-entropy + penalty / 2 * |weight|^2``.
        seed: Seed of the held-out part.
    """
    features, penalty, chosen = features_ND.float(), penalties[0], False
    if len(penalties) > 1:
        held = hold_out(labels, HELD_OUT, seed)
        chosen, penalty = bool(held.any()), DEFAULT_PENALTY
        if chosen:
            hits = [
                (_fit(features[~held], labels[~held], classes, value).predict(features[held]) == labels[held]).sum()
                for value in penalties
            ]
            penalty = penalties[int(torch.stack(hits).argmax())]
    fitted = _fit(features, labels, classes, penalty)
    return LinearProbe(fitted.weight, fitted.bias, fitted.mean, fitted.scale, penalty, chosen)


def hold_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """A mask of the same share of each class, rounded down.

    Args:
        labels: Labels, (N,).
        share: Share in (0, 1).
        seed: Seed of the choice.
    """
    draw = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    here = labels.cpu()
    for label in here.unique():
        places = (here == label).nonzero().flatten()
        mask[places[torch.randperm(len(places), generator=draw)[: int(share * len(places))]]] = True
    return mask.to(labels.device)


@torch.enable_grad()
def _fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> LinearProbe:
    mean, scale = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-6, scale, torch.ones_like(scale))  # a constant feature says nothing
    x = (features - mean) / scale
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=10, line_search_fn='strong_wolfe')

    def loss() -> float:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value.item()

    solver.step(loss)
    return LinearProbe(weight.detach(), bias.detach(), mean, scale, penalty, False)
