"""Monte Carlo gradients of a marginal likelihood over paths (PARSEC, arXiv 1902.05116; FP-NAS). torch only.

With paths A_1..A_K drawn from P(A | alpha), and T the temperature of a path's likelihood exp(-T CE):

    m_k        = softmax(-T CE)_k
    grad_w     = sum_k m_k grad_w CE_k
    grad_alpha = -sum_k (m_k - beta C_k / sum_i C_i) grad_alpha log P(A_k | alpha)

Shape suffixes: K sampled paths.
"""

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ['accumulated', 'architecture_loss', 'effective_samples', 'importance_weights']


def importance_weights(losses_K: Tensor, temperature: float) -> Tensor:
    """m, each path's share of the likelihood of the batch; sums to 1. Shape: (K,) -> (K,)"""
    return (-temperature * losses_K).softmax(dim=0)


def effective_samples(weights_K: Tensor) -> Tensor:
    """1 / sum m^2: K where all paths have the same weight, 1 where one has it all. Shape: (K,) -> ()"""
    return 1 / weights_K.square().sum()


def architecture_loss(
    log_p_K: Tensor,
    losses_K: Tensor,
    temperature: float,
    costs_K: Tensor | None = None,
    cost_weight: float = 0.0,
    baseline: bool = False,
) -> Tensor:
    """-log P(y | X, w, alpha) + beta log C(alpha), estimated; its gradient is grad_alpha of the module docstring.

    Args:
        log_p_K: log P(A_k | alpha), with its graph.
        losses_K: Mean cross-entropy of each path on the held-out batch.
        temperature: T.
        costs_K: C(A_k), at least 0; if all are 0 the term is left out, since its ratio is undefined.
        cost_weight: beta.
        baseline: Subtract 1/K from m. The expected gradient is the same, with less noise; not part of the paper.
    """
    weights_K = importance_weights(losses_K, temperature)
    value = math.log(len(losses_K)) - (-temperature * losses_K).logsumexp(dim=0)
    if baseline:
        weights_K = weights_K - 1 / len(losses_K)
    if costs_K is not None and cost_weight:
        total, some = costs_K.sum(), costs_K.sum() > 0  # decided on the device
        weights_K = weights_K - torch.where(some, cost_weight * costs_K / total.where(some, 1), 0)
        value = value + torch.where(some, cost_weight * costs_K.mean().where(some, 1).log(), 0)
    surrogate = -(weights_K.detach() * log_p_K).sum()
    return value.detach() + surrogate - surrogate.detach()


def accumulated(losses: Iterable[Tensor], parameters: Sequence[nn.Parameter]) -> Tensor:
    """The sum of losses whose backward passes are already done: only one of their graphs exists at a time.

    Args:
        losses: Scalar losses, preferably from a generator that runs one forward pass at a time.
        parameters: What they may depend on; parameters that no loss depends on get no gradient.
    """
    total: Tensor | float = 0.0
    gradients: dict[nn.Parameter, Tensor] = {}
    for loss in losses:
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                known = gradients.get(parameter)
                # A captured block returns memory that its next run overwrites (`BlockGraphs`).
                gradients[parameter] = gradient.clone() if known is None else known + gradient
        total = total + loss.detach()
    inner = cast(Tensor, sum((parameter * gradient).sum() for parameter, gradient in gradients.items()))
    return total + inner - inner.detach()
