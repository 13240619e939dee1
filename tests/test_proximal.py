"""The proximal operators against brute minimisation and optimality; the optimisers against slow re-implementations."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pinas_zoo.methods.proximal import (
    AdamProximal,
    ProximalGradient,
    keep_one,
    prox_exclusive,
    prox_sparse_group,
    soft_threshold,
)

Penalty = Callable[[np.ndarray], float]


def points(rows: int = 40, seed: int = 0) -> torch.Tensor:
    """Rows of four values whose sizes differ by orders of magnitude, with zeros and ties."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, 4)) * 10 ** rng.uniform(-1.5, 0.7, (rows, 1))
    z[0], z[1, 2], z[2] = 0, 0, 0.3
    return torch.from_numpy(z)


def sparse_group(x: np.ndarray, l1: float, l2: float) -> float:
    return l1 * np.abs(x).sum() + l2 * np.sqrt((x**2).sum())


def exclusive(x: np.ndarray, strength: float) -> float:
    return strength / 2 * np.abs(x).sum() ** 2


def brute(z: np.ndarray, penalty: Penalty) -> np.ndarray:
    """Minimises 1/2 ||x - z||^2 + penalty(x); x is a difference of two parts of one sign, so |x| is smooth."""

    def objective(parts: np.ndarray) -> float:
        x = parts[:4] - parts[4:]
        # The sum of both parts is |x| at the optimum, where one of them is zero.
        return 0.5 * ((x - z) ** 2).sum() + penalty(parts[:4] + parts[4:])

    start = np.concatenate([np.maximum(z, 0), np.maximum(-z, 0)]) + 1e-3
    found = minimize(objective, start, method='L-BFGS-B', bounds=[(0, None)] * 8, options=dict(ftol=1e-15, gtol=1e-9))
    return found.x[:4] - found.x[4:]


def value(x: np.ndarray, z: np.ndarray, penalty: Penalty) -> float:
    return 0.5 * ((x - z) ** 2).sum() + penalty(x)


@pytest.mark.parametrize(
    ('operator', 'penalty'),
    [
        (lambda z: prox_sparse_group(z, 0.2, 0.3), lambda x: sparse_group(x, 0.2, 0.3)),
        (lambda z: prox_sparse_group(z, 0.0, 0.4), lambda x: sparse_group(x, 0.0, 0.4)),
        (lambda z: prox_exclusive(z, 0.7), lambda x: exclusive(x, 0.7)),
    ],
    ids=['sparse group', 'group', 'exclusive'],
)
def test_no_point_is_better(operator: Callable[[torch.Tensor], torch.Tensor], penalty: Penalty) -> None:
    """The objective is convex, so a point that no neighbour and no brute-force search improves on is the minimum."""
    rng = np.random.default_rng(1)
    z = points()
    for row, x in zip(z.numpy(), operator(z).numpy(), strict=True):
        best = value(x, row, penalty)
        assert best <= value(brute(row, penalty), row, penalty) + 1e-9
        for size in (1e-1, 1e-3, 1e-5):
            steps = rng.standard_normal((20, 4)) * size
            steps[:8] = np.concatenate([np.eye(4), -np.eye(4)]) * size
            assert best <= min(value(x + step, row, penalty) for step in steps) + 1e-14


def test_sparse_group_is_optimal() -> None:
    """Zero is in the subdifferential: z - x is a subgradient of the penalty at x."""
    l1, l2, z = 0.2, 0.3, points()
    kinds = set()
    for row, x in zip(z, prox_sparse_group(z, l1, l2), strict=True):
        if not x.any():
            assert soft_threshold(row, l1).norm() <= l2 + 1e-12
            kinds.add('group')
            continue
        rest = row - x - l2 * x / x.norm()
        torch.testing.assert_close(rest[x != 0], l1 * x[x != 0].sign(), rtol=0, atol=1e-12)
        assert (row[x == 0].abs() <= l1 + 1e-12).all()
        kinds.add('element' if (x == 0).any() else 'none')
    assert kinds == {'group', 'element', 'none'}


def test_the_other_order_is_another_operator() -> None:
    """Group first and element second gives a larger objective somewhere, never a smaller one."""
    l1, l2, z = 0.2, 0.3, points()
    norm = z.norm(dim=1, keepdim=True).clamp(min=1e-12)
    other = soft_threshold(z * (1 - l2 / norm).clamp(min=0), l1)
    worse = [
        value(b, row, lambda x: sparse_group(x, l1, l2)) - value(a, row, lambda x: sparse_group(x, l1, l2))
        for row, a, b in zip(z.numpy(), prox_sparse_group(z, l1, l2).numpy(), other.numpy(), strict=True)
    ]
    assert min(worse) >= -1e-14 and max(worse) > 1e-3


def test_exclusive_is_optimal_and_spares_a_row() -> None:
    strength, z = 0.7, points()
    x = prox_exclusive(z, strength)
    assert all(row.any() == before.any() for row, before in zip(x, z, strict=True))
    total = strength * x.abs().sum(dim=1, keepdim=True).expand_as(x)
    torch.testing.assert_close((z - x)[x != 0], (total * x.sign())[x != 0], rtol=0, atol=1e-12)
    assert (z.abs()[x == 0] <= total[x == 0] + 1e-12).all() and (x == 0)[3:].any()
    assert prox_exclusive(z, 1e6).any(dim=1).sum() == len(z) - 1  # all but the row of zeros


def test_no_penalty_changes_nothing() -> None:
    z = points()
    assert torch.equal(prox_sparse_group(z, 0.0, 0.0), z) and torch.equal(prox_exclusive(z, 0.0), z)


def test_guard_keeps_the_strongest_of_a_dead_row() -> None:
    raw = torch.tensor([[0.1, -0.3, 0.2, 0.0], [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, -0.1, 0.0]])
    before = torch.tensor([[0.0, 0.1, -0.2, 0.3], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    z = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 0.0, 0.2, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, -0.1, 0.0]])
    assert torch.equal(keep_one(z, raw, before), expected)


# ---- the optimisers -----------------------------------------------------------------------------


def gradients(steps: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal((3, 4)) for _ in range(steps)]


def run(optimiser: torch.optim.Optimizer, parameter: torch.Tensor, grads: list[np.ndarray]) -> list[np.ndarray]:
    trace = []
    for gradient in grads:
        parameter.grad = torch.from_numpy(gradient)
        optimiser.step()
        trace.append(parameter.detach().numpy().copy())
    return trace


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full((3, 4), 0.25, dtype=torch.float64))


@pytest.mark.parametrize('adam', [False, True])
@pytest.mark.parametrize('scaled', [False, True])
def test_steps_follow_the_formulas(adam: bool, scaled: bool) -> None:
    lr, mu, l1, l2, ramp, betas, eps = 0.05, 0.8, 0.6, 0.3, 4, (0.7, 0.9), 1e-8
    parameter, grads = start(), gradients(8)
    settings = dict(lr=lr, momentum=mu, l1=l1, l2=l2, ramp=ramp, guard=False)
    if adam:
        optimiser = AdamProximal([parameter], betas=betas, eps=eps, scaled=scaled, **settings)
    else:
        optimiser = ProximalGradient([parameter], **settings)
    a, v, m, s = np.full((3, 4), 0.25), np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((3, 4))
    for t, (gradient, ours) in enumerate(zip(grads, run(optimiser, parameter, grads), strict=True), start=1):
        direction, scale = gradient, 1.0
        if adam:
            m = betas[0] * m + (1 - betas[0]) * gradient
            s = betas[1] * s + (1 - betas[1]) * gradient**2
            root = np.sqrt(s / (1 - betas[1] ** t)) + eps
            direction, scale = m / (1 - betas[0] ** t) / root, 1 / root if scaled else 1.0
        raw, share = a - lr * direction, min(1, t / ramp)
        u = np.sign(raw) * np.maximum(np.abs(raw) - lr * share * l1 * scale, 0)
        norm = np.sqrt((u**2).sum(axis=1, keepdims=True))
        z = u * np.maximum(0, 1 - lr * share * l2 / np.maximum(norm, 1e-300))
        v = mu * v + z - a
        a = z + mu * v
        np.testing.assert_allclose(ours, a, rtol=1e-9, atol=1e-12)


def test_without_penalty_and_momentum_they_are_sgd_and_adam() -> None:
    pairs = [
        (ProximalGradient, torch.optim.SGD, {}, {}),
        (AdamProximal, torch.optim.Adam, dict(betas=(0.5, 0.9)), dict(betas=(0.5, 0.9))),
    ]
    for ours, theirs, settings, same in pairs:
        first, second = start(), start()
        traces = [
            run(ours([first], lr=0.05, momentum=0, **settings), first, gradients(6)),
            run(theirs([second], lr=0.05, **same), second, gradients(6)),
        ]
        np.testing.assert_allclose(*traces, rtol=1e-12, atol=1e-13)


def test_zeros_may_be_read_one_step_late() -> None:
    """An element whose z is zero twice in a row is exactly zero, momentum or not."""
    parameter = torch.nn.Parameter(torch.full((2, 3), 0.1))
    optimiser = ProximalGradient([parameter], lr=0.1, momentum=0.9, l1=2.0)
    pull = torch.tensor([[-3.0, 0.0, 0.0], [0.0, 0.0, -3.0]])  # one element a row outweighs the penalty
    seen = []
    for _ in range(6):
        parameter.grad = pull.clone()
        optimiser.step()
        seen.append((parameter != 0).tolist())
    survivors = [[True, False, False], [False, False, True]]
    assert seen[0] == [[True] * 3] * 2 and seen[1:] == [survivors] * 5


def test_guard_in_a_step() -> None:
    """However strong the penalty, each position keeps one candidate; without the guard none."""
    for guard, alive in ((True, 1), (False, 0)):
        parameter = start()
        optimiser = ProximalGradient([parameter], lr=0.01, momentum=0.5, l1=100.0, guard=guard)
        trace = run(optimiser, parameter, gradients(6))
        assert all((row != 0).sum() == alive for row in trace[-1])


def test_exclusive_in_a_step_leaves_one_a_position() -> None:
    parameter = torch.nn.Parameter(torch.tensor([[0.3, 0.2, 0.1, -0.25]]))
    optimiser = ProximalGradient([parameter], lr=0.1, momentum=0.0, exclusive=5.0, guard=False)
    for _ in range(10):
        parameter.grad = -0.5 * parameter.detach()
        optimiser.step()
    assert (parameter != 0).tolist() == [[True, False, False, False]]


def test_no_gradient_no_step() -> None:
    parameter = start()
    optimiser = AdamProximal([parameter], l1=5.0)
    optimiser.step()
    assert torch.equal(parameter, start()) and not optimiser.state
    assert optimiser.step(lambda: torch.tensor(7.0)).item() == 7.0


@pytest.mark.parametrize('kind', [ProximalGradient, AdamProximal])
def test_a_continued_run_is_the_same(kind: type[ProximalGradient]) -> None:
    whole, grads = start(), gradients(8)
    run(kind([whole], lr=0.03, l1=0.4, l2=0.2, ramp=6), whole, grads)
    part = start()
    optimiser = kind([part], lr=0.03, l1=0.4, l2=0.2, ramp=6)
    run(optimiser, part, grads[:3])
    state, again = copy.deepcopy(optimiser.state_dict()), torch.nn.Parameter(part.detach().clone())
    fresh = kind([again], lr=1.0)
    fresh.load_state_dict(state)
    run(fresh, again, grads[3:])
    assert torch.equal(again, whole)


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        (dict(lr=0), 'lr > 0'),
        (dict(momentum=1.0), '0 <= momentum < 1'),
        (dict(l1=-1.0), 'l1, l2, exclusive >= 0'),
        (dict(ramp=0), 'ramp >= 1'),
        (dict(l1=1.0, exclusive=1.0), 'exclusive replaces'),
        (dict(betas=(1.0, 0.9)), '0 <= beta < 1'),
    ],
)
def test_settings_out_of_range(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AdamProximal([start()], **settings)
    with pytest.raises(ValueError, match=r'needs matrices, got a parameter of shape \(4,\)'):
        ProximalGradient([torch.nn.Parameter(torch.zeros(4))])
