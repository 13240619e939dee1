"""PA&DA's path sampling against a slow re-implementation; what is not drawn, what has no parameters, resume."""

import copy

import numpy as np
import pytest
import torch
from test_methods import SKIPPING, SMALL, batch, make

from pinas_zoo.methods import PADA

STEPS, INTERVAL = 24, 6


def steps_of(method: PADA, steps: range, optimiser: torch.optim.Optimizer) -> list[tuple[tuple[int, ...], list[float]]]:
    """Trains; returns each step's path and the gradient norm of each of its blocks, read from the gradients."""
    found = []
    for step in steps:
        optimiser.zero_grad()
        method.loss(batch(step), step)['loss'].backward()
        (arch,) = method.paths(step)
        blocks = [position[choice] for position, choice in zip(method.supernet.blocks, arch, strict=True)]
        norms = [sum(p.grad.square().sum().item() for p in block.parameters()) ** 0.5 for block in blocks]
        found.append((arch, norms))
        optimiser.step()
    return found


def sgd(method: PADA) -> torch.optim.Optimizer:
    return torch.optim.SGD(method.param_groups()['weights'], 0.05, 0.9)


def test_distribution_is_that_of_the_mean_norms() -> None:
    method = make(PADA, steps=STEPS, interval=INTERVAL)
    optimiser, known = sgd(method), np.zeros((3, 4))
    for start in range(0, STEPS, INTERVAL):
        found = steps_of(method, range(start, start + INTERVAL), optimiser)
        total, count = np.zeros((3, 4)), np.zeros((3, 4))
        for arch, norms in found:
            for position, (choice, norm) in enumerate(zip(arch, norms, strict=True)):
                total[position, choice] += norm
                count[position, choice] += 1
        known = np.where(count > 0, total / np.maximum(count, 1), known)
        filled = [[k or row[row > 0].mean() for k in row] for row in known]
        step = start + INTERVAL
        share = step / STEPS
        expected = [[(1 - share) / 4 + share * k / sum(row) for k in row] for row in filled]
        probe = copy.deepcopy(method)
        probe.update(step)
        np.testing.assert_allclose(probe.probability.numpy(), expected, rtol=1e-9)
    assert probe.probability.std() > 0.01


def test_paths_follow_the_distribution() -> None:
    method = make(PADA)
    method.probability.copy_(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0, 0, 0, 1]]))
    paths = np.array([method.paths(step)[0] for step in range(2000)])
    shares = [np.bincount(paths[:, p], minlength=4) / 2000 for p in range(3)]
    np.testing.assert_allclose(shares, method.probability.numpy(), atol=4 * 0.5 / 2000**0.5)
    assert method.paths(7) == method.paths(7)


def test_a_skip_has_no_gradient_and_is_drawn_ever_less() -> None:
    method = make(PADA, SKIPPING, steps=8, interval=4)
    assert method.probability[0].tolist() == pytest.approx([1 / 3] * 3 + [0])  # the skip does not fit there
    steps_of(method, range(5), sgd(method))
    assert method.probability[0, 3] == 0
    np.testing.assert_allclose(method.probability[1:, 3], 0.5 / 4)  # at half of the training
    np.testing.assert_allclose(method.probability.sum(dim=1), 1)


def test_an_interrupted_training_is_the_same() -> None:
    """The sums since the last update are in the state: an interruption within an interval changes nothing."""
    whole = make(PADA, steps=12, interval=4)
    steps_of(whole, range(12), sgd(whole))
    first, second = (make(PADA, steps=12, interval=4) for _ in range(2))
    optimiser = sgd(first)
    steps_of(first, range(6), optimiser)
    second.paths(0)  # the distribution read before the state is loaded must not survive
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed = sgd(second)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    steps_of(second, range(6, 12), resumed)
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in whole.state_dict().items())


def test_wrong_numbers_and_the_log() -> None:
    for wrong in (dict(steps=0), dict(interval=0)):
        with pytest.raises(ValueError, match='must be at least 1'):
            make(PADA, **wrong)
    method = make(PADA)
    assert (
        method.log_scalars(0) == {'sharpness': pytest.approx(1.0)} and method.score((0,) * SMALL.num_positions) is None
    )
