"""Sparse supernet: what each part trains, what the penalty removes, what is derived."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_utils
import pytest
import torch
import torch.nn.functional as F
from peer_toys import pair, resumes_exactly
from test_methods import CLASSES, SKIPPING, SMALL, batch, gradients, make, on_path

from pinas_zoo.methods import AdamProximal, ProximalGradient, SparseSupernet
from pinas_zoo.models.cost import CostTable
from pinas_zoo.search.limits import Limits


def sparse(**settings: Any) -> SparseSupernet:
    return make(SparseSupernet, **dict(warmup_steps=1) | settings)


def with_factors(rows: list[list[float]], **settings: Any) -> SparseSupernet:
    method = sparse(**settings)
    with torch.no_grad():
        method.factors.copy_(torch.tensor(rows))
    return method


ROWS = [[0.5, 0.0, 0.0, -0.1], [0.0, -0.7, 0.0, 0.0], [0.2, 0.3, 0.4, 0.0]]


def train(method: SparseSupernet, steps: int, arch: torch.optim.Optimizer) -> None:
    weights = torch.optim.SGD(method.param_groups()['weights'], 0.05, 0.9)
    for step in range(steps):
        for part in range(method.parts(step)):
            method.loss(pair(step), step, part)['loss'].backward()
        for optimiser in (weights, arch):
            optimiser.step()
            optimiser.zero_grad()


# ---- the parts of a step ------------------------------------------------------------------------


def test_loss_is_that_of_the_written_mixture() -> None:
    """A slow re-implementation of both parts on the modules themselves."""
    method, facts = with_factors(ROWS), pair()
    for part, images in ((0, facts), (1, facts['held_out'])):
        twin = copy.deepcopy(method)
        x = twin.supernet.forward_stem(images['image'])
        for position, row in zip(twin.supernet.blocks, twin.factors, strict=True):
            identity = x if position.downsample is None else position.downsample(x)
            total = identity
            for factor, block in zip(row, position.candidates, strict=True):
                if part or factor:
                    y = torch.relu(block.bn1(block.conv1(x)))
                    total = total + factor * block.bn3(block.conv3(block.pool(block.conv2(y))))
            x = torch.relu(total)
        expected = F.cross_entropy(twin.head(x.mean((2, 3))), images['label'], label_smoothing=0.1)
        torch.testing.assert_close(method.loss(facts, 1, part)['loss'], expected, rtol=1e-10, atol=0)


def test_each_part_reaches_its_own_parameters() -> None:
    method = with_factors(ROWS)
    method.loss(pair(), 1, 0)['loss'].backward()
    found = gradients(method)
    assert 'factors' not in found
    # What is removed does not run; the rest does, but the frozen last BN.
    kept = ((0, 1, 0), (3, 1, 1), (0, 1, 2))
    expected = {n for n, p in method.named_parameters() if p.requires_grad and any(on_path(n, arch) for arch in kept)}
    assert found.keys() == expected - {'factors'}
    method.zero_grad()
    method.loss(pair(), 1, 1)['loss'].backward()
    found = gradients(method)
    assert found.keys() == {'factors'} and found['factors'].abs().min() > 0  # removed ones may come back


def test_gradient_of_the_factors_by_finite_differences() -> None:
    method, facts, size = with_factors(ROWS), pair(), 1e-6
    method.loss(facts, 1, 1)['loss'].backward()
    for index in ((0, 0), (0, 1), (1, 1), (2, 3)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                method.factors[index] += sign * size
                values.append(method.arch_loss(facts['held_out'], 1)['loss'].item())
                method.factors[index] -= sign * size
        slope = (values[0] - values[1]) / (2 * size)
        assert method.factors.grad[index].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_warm_up_moves_weights_alone() -> None:
    method = sparse(warmup_steps=2)
    assert [method.parts(step) for step in range(4)] == [1, 1, 2, 2]
    assert [method.units(step) for step in range(4)] == [4, 4, 8, 8]
    arch = ProximalGradient(method.param_groups()['arch'], lr=0.1, l1=1.0)
    train(method, 2, arch)
    assert (method.factors == 0.25).all() and not arch.state
    with pytest.raises(ValueError, match="batch needs 'held_out' with its image and label"):
        method.loss(batch(), 2, 1)


def test_scale_cannot_escape() -> None:
    """The last BN is frozen at scale 1 and shift 0, so that shrinking a factor is not undone."""
    method = sparse()
    groups = method.param_groups()
    trained = {id(p) for group in groups['weights'] for p in group['params']} | {id(p) for p in groups['arch']}
    last = [block.bn3 for position in method.supernet.blocks for block in position.candidates]
    assert len(last) == 12 and not any(id(p) in trained for norm in last for p in norm.parameters())
    train(method, 3, AdamProximal(groups['arch'], lr=0.01))
    assert all((norm.weight == 1).all() and not norm.bias.any() for norm in last)
    assert groups['arch'] == [method.factors] and len(trained) + 2 * 12 == len(list(method.parameters()))


# ---- the penalty --------------------------------------------------------------------------------


@pytest.mark.parametrize('settings', [dict(l1=30.0, l2=10.0), dict(exclusive=200.0)], ids=['sparse group', 'exclusive'])
def test_no_position_dies(settings: dict[str, float]) -> None:
    method = sparse(warmup_steps=0)
    train(method, 4, AdamProximal([method.factors], lr=0.02, momentum=0.5, **settings))
    counts = [len(row) for row in method.survivors()]
    assert min(counts) >= 1 and ('exclusive' in settings or max(counts) == 1)
    assert method.factors.abs().mean() < 0.1
    logged = method.log_scalars(4)
    assert logged['survivors'] == pytest.approx(sum(counts) / 3)
    assert logged['open_positions'] == sum(count > 1 for count in counts)
    assert logged['path_units'] == pytest.approx(4 + sum(counts) / 3)


# ---- what is derived ----------------------------------------------------------------------------


def test_score_and_derived_architectures() -> None:
    method = with_factors(ROWS)
    assert method.derive() == (0, 1, 2)
    mixed = ((0, 3), 1, (0, 1, 2))
    assert method.derive(mixed=True) == mixed and method.paths(5) == (mixed,)
    assert method.score((3, 1, 1)) == pytest.approx(math.log(0.1 / 0.6) + math.log(0.3 / 0.9), rel=1e-6)
    assert method.score(mixed) == pytest.approx(0, abs=1e-6) and method.score((1, 1, 1)) < -25
    factors = method.factors_of(mixed)
    assert factors[1] is None and factors[2].tolist() == pytest.approx([0.2, 0.3, 0.4], rel=1e-6)


def test_limits() -> None:
    method, costs = with_factors(ROWS), CostTable(SMALL, 16, CLASSES)
    mixed = method.derive(mixed=True)
    limits = Limits(costs.of, max_params=costs.of(mixed).params - 1)
    first = method.derive(limits, mixed=True)
    assert first == (0, 1, (0, 1, 2))  # candidate 3 of the first position has the smallest share
    tight = Limits(costs.of, max_params=min(costs.of(arch).params for arch in SMALL.all_archs()))
    single = method.derive(tight)
    assert tight(single) and method.derive(tight, mixed=True) == single
    with pytest.raises(ValueError, match='no architecture'):
        method.derive(Limits(lambda arch: SimpleNamespace(macs=10, params=10), max_macs=5), mixed=True)


def test_derived_network_computes_what_the_search_did() -> None:
    """The copy with folded factors, extracted, equals the mixture of the survivors."""
    method, x = with_factors(ROWS).eval(), batch()['image']
    with torch.no_grad():
        searched = method.mixture(everything=False)(x)
        arch = method.derive(mixed=True)
        ones = [torch.ones(len(c)).double() if isinstance(c, tuple) else None for c in arch]
        alone = method.folded().extract(arch, ones).forward_features(x)
        torch.testing.assert_close(alone, searched, rtol=1e-9, atol=1e-12)
        # With the single survivor's factor left at 1 and the others' given, all but the second position is the same.
        given = method.supernet.extract(arch, method.factors_of(arch))
        assert torch.equal(given.layer2[1].factors, method.factors[2, :3].detach())
    assert (method.supernet.blocks[0][0].bn3.weight == 1).all()  # the supernet itself is untouched


def test_a_space_with_skips_is_refused() -> None:
    with pytest.raises(ValueError, match="'skipping' has a skip, candidate 3"):
        make(SparseSupernet, SKIPPING)


@pytest.mark.mm
@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_training_through_the_runner_resumes_exactly(processes: int, tmp_path: Path) -> None:
    options = ['model.method.warmup_steps=1', *(f'optim_wrapper.arch.optimizer.{s}' for s in ('lr=0.02', 'ramp=2'))]
    logged = resumes_exactly('sparse_pinas-nano-supernet_b128-lin_fmnist', tmp_path, *options, processes=processes)
    assert (6, 'loss') in logged and logged[1, 'factor'] == 0.25 and logged[6, 'factor'] != 0.25
    state = engine_utils.last_checkpoint(tmp_path / 'whole')['optimizer']['arch']['state'][0]
    assert set(state) == {'velocity', 'mean', 'square', 'step'} and state['step'] == 5
    assert logged[1, 'paths'] == ['(0123)-(0123)(0123)']
