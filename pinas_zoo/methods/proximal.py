"""Exact proximal operators of sparse penalties, and the optimisers that apply them. torch only.

The matrix of factors A has one row per position (the group), one column per candidate (the element). Accelerated
proximal gradient, with step eta, momentum mu and velocity v:

    z = prox(A - eta * direction)        v <- mu * v + z - A        A <- z + mu * v

The next gradient is taken at A, which momentum makes non-zero where z is zero. An element of A is exactly zero once z
was zero in two consecutive steps (mu * v - A is then exactly zero), so zeros may be read from A, one step late.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

__all__ = ['AdamProximal', 'ProximalGradient', 'keep_one', 'prox_exclusive', 'prox_sparse_group', 'soft_threshold']


def soft_threshold(z: Tensor, threshold: float | Tensor) -> Tensor:
    """Proximal operator of ``threshold * |z|``: shrinks the magnitude, down to zero."""
    return z.sign() * (z.abs() - threshold).clamp(min=0)


def prox_sparse_group(z: Tensor, l1: float | Tensor, l2: float) -> Tensor:
    """Proximal operator of ``l1 * sum |z| + l2 * sum_rows ||row||_2``: element first, then group.

    Args:
        z: The point, (groups, elements).
        l1: Strength of the elements' part, at least 0; with a step size, their product.
        l2: Strength of the groups' part, likewise.
    """
    u = soft_threshold(z, l1)
    norm = u.norm(dim=1, keepdim=True)
    # A zero group stays zero; the tiny floor only avoids 0 / 0.
    return u * (1 - l2 / norm.clamp(min=torch.finfo(z.dtype).tiny)).clamp(min=0)


def prox_exclusive(z: Tensor, strength: float) -> Tensor:
    """Proximal operator of the exclusive lasso, ``strength / 2 * sum_rows (sum |row|)^2``.

    Elements of a row compete; a non-zero row never becomes zero.

    Args:
        z: The point, (groups, elements).
        strength: At least 0; with a step size, their product.
    """
    size = z.abs().sort(dim=1, descending=True).values
    rank = torch.arange(1, z.shape[1] + 1, device=z.device, dtype=z.dtype)
    # A sum per element: cumsum of floats has no deterministic form on a GPU, and a row has few elements.
    sums = torch.stack([size[:, : last + 1].sum(dim=1) for last in range(size.shape[1])], dim=1)
    threshold = strength * sums / (1 + strength * rank)
    # The elements above their threshold come first; the last of them gives the row's threshold.
    last = (size > threshold).sum(dim=1, keepdim=True).clamp(min=1) - 1
    return soft_threshold(z, threshold.gather(1, last))


def keep_one(z: Tensor, raw: Tensor, before: Tensor) -> Tensor:
    """Does not shrink the last element of a row that would become zero, so that no position dies.

    Args:
        z: Output of the proximal operator.
        raw: Its input.
        before: The factors before the step: the largest of a row is the one that is kept. The largest of `raw` would
            be random once all are small.
    """
    dead = ~z.any(dim=1, keepdim=True)
    size = torch.where(raw != 0, before.abs(), -1)
    last = torch.zeros_like(z, dtype=torch.bool).scatter_(1, size.argmax(dim=1, keepdim=True), True)
    return torch.where(dead & last, raw, z)


class ProximalGradient(torch.optim.Optimizer):
    """Accelerated proximal gradient on a matrix of factors (the hierarchical form of the sparse supernet).

    A parameter without a gradient is left alone and gets no penalty, so that the warm-up does not change it. Keep the
    step size constant: the threshold is its product with the strength, so a decaying one would turn the sparsity off.

    Args:
        params: Matrices (positions, candidates), or groups of them.
        lr: Step size eta, above 0. With momentum the effective rate is lr / (1 - momentum), for the shrinking too.
        momentum: mu, at least 0 and below 1.
        l1: Strength of the element-wise part.
        l2: Strength of the group part.
        exclusive: Strength of the exclusive lasso, which replaces both.
        ramp: Steps in which the strengths rise linearly to their full value.
        guard: Whether a position keeps its strongest candidate when all of them would vanish.

    Raises:
        ValueError: A setting is out of its range, a parameter is not a matrix, or both penalties are given.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        momentum: float = 0.9,
        l1: float = 0.0,
        l2: float = 0.0,
        exclusive: float = 0.0,
        ramp: int = 1,
        guard: bool = True,
        **more: Any,
    ) -> None:
        if lr <= 0 or not 0 <= momentum < 1 or min(l1, l2, exclusive) < 0 or ramp < 1:
            raise ValueError(
                'allowed: lr > 0, 0 <= momentum < 1, l1, l2, exclusive >= 0, ramp >= 1; '
                f'got {lr=}, {momentum=}, {l1=}, {l2=}, {exclusive=}, {ramp=}'
            )
        if exclusive and (l1 or l2):
            raise ValueError(
                f'exclusive replaces l1 and l2 and cannot be combined with them, got {exclusive=}, {l1=}, {l2=}'
            )
        settings = dict(lr=lr, momentum=momentum, l1=l1, l2=l2, exclusive=exclusive, ramp=ramp, guard=guard)
        super().__init__(params, settings | more)
        for parameter in (p for group in self.param_groups for p in group['params']):
            if parameter.ndim != 2:
                raise ValueError(
                    f'a penalty by position needs matrices, got a parameter of shape {tuple(parameter.shape)}'
                )

    def direction(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
        """The step's direction, and the scale of the element-wise threshold."""
        assert parameter.grad is not None
        return parameter.grad, 1.0

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if 'velocity' not in state:
            state['step'], state['velocity'] = 0, torch.zeros_like(parameter)
        state['step'] += 1
        direction, scale = self.direction(parameter, group)
        raw = parameter - group['lr'] * direction
        pace = group['lr'] * min(1.0, state['step'] / group['ramp'])
        if group['exclusive']:
            z = prox_exclusive(raw, pace * group['exclusive'])
        else:
            z = prox_sparse_group(raw, pace * group['l1'] * scale, pace * group['l2'])
        if group['guard']:
            z = keep_one(z, raw, parameter)
        velocity = state['velocity'].mul_(group['momentum']).add_(z).sub_(parameter)
        parameter.copy_(z + group['momentum'] * velocity)


class AdamProximal(ProximalGradient):
    """The same with Adam's direction instead of the gradient.

    With an unscaled threshold (`scaled=False`), a strength above 1 outweighs a gradient that always has the same sign.

    Args:
        params, lr, settings: As for `ProximalGradient`.
        betas: Adam's, for the mean and the mean square of the gradient.
        eps: Adam's.
        scaled: Scale the element-wise threshold as Adam scales the step, 1 / (sqrt(mean square) + eps), which is the
            metric's own proximal operator for the element-wise part. The group part is never scaled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        scaled: bool = False,
        **settings: Any,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas) or eps <= 0:
            raise ValueError(f'allowed: 0 <= beta < 1, eps > 0; got {betas=}, {eps=}')
        super().__init__(params, lr, betas=tuple(betas), eps=eps, scaled=scaled, **settings)

    def direction(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
        state, gradient = self.state[parameter], parameter.grad
        if 'mean' not in state:
            state['mean'], state['square'] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group['betas']
        mean = state['mean'].lerp_(gradient, 1 - first)
        square = state['square'].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        deviation = (square / (1 - second ** state['step'])).sqrt() + group['eps']
        return mean / (1 - first ** state['step']) / deviation, 1 / deviation if group['scaled'] else 1.0
