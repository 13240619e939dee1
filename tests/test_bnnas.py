"""BN-NAS: what trains, what the indicator is, and its exact optimum within limits."""

from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_utils
import numpy as np
import pytest
import torch
from peer_toys import resumes_exactly
from test_methods import SKIPPING, SMALL, batch, make, on_path, train
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.methods.bnnas import BNNAS
from pinas_zoo.methods.knapsack import best_arch, search_by_score
from pinas_zoo.models.cost import CostTable
from pinas_zoo.models.kinds import last_norm
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.limits import Limits
from pinas_zoo.search.strategies import build_searcher
from pinas_zoo.space import PINAS, PINAS_TINY, Arch, SearchSpace


def moved(method: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, p in method.named_parameters() if not torch.equal(p, before[name])}


def parameters(method: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in method.named_parameters()}


# ---- what trains ------------------------------------------------------------------------------------------------


def test_last_norm_is_the_last_that_runs() -> None:
    """By role: of all BN layers of a candidate, the one that runs last."""
    net = SuperNet(SMALL)
    x = net.forward_stem(torch.randn(4, 3, 16, 16))
    for position in net.blocks:
        for block in position.candidates:
            norms, order = [m for m in block.modules() if isinstance(m, _BatchNorm)], []
            hooks = [m.register_forward_hook(lambda m, *_, order=order: order.append(m)) for m in norms]
            out = block(x, position.shortcut(x))
            assert order[-1] is last_norm(block) and len(order) == len(norms) == 4
            for hook in hooks:
                hook.remove()
        x = out


def test_one_step_moves_the_last_norms_of_its_path_alone() -> None:
    method = make(BNNAS)
    before = parameters(method)
    train(method, 1)
    (arch,) = method.paths(0)
    pairs = [
        f'supernet.blocks.{p}.candidates.{c}.bn3.{kind}' for p, c in enumerate(arch) for kind in ('weight', 'bias')
    ]
    assert moved(method, before) == set(pairs) and len(pairs) == 2 * SMALL.num_positions


@pytest.mark.parametrize(
    ('settings', 'inner', 'head'),
    [
        (dict(variant='R'), False, False),
        (dict(variant='P'), True, False),
        (dict(variant='P', train_head=True), True, True),
    ],
)
def test_only_the_right_parameters_move(settings: dict[str, Any], inner: bool, head: bool) -> None:
    method = make(BNNAS, **settings)
    before = parameters(method)
    train(method, 12)  # momentum 0.9 and weight decay 1e-2: whatever stood in the optimiser would move
    norms = {
        f'supernet.{name}.{kind}'
        for name, module in method.supernet.named_modules()
        if isinstance(module, _BatchNorm)
        for kind in ('weight', 'bias')
    }
    last = {name for name in norms if '.bn3.' in name}
    expected = (norms if inner else last) | ({'head.weight', 'head.bias'} if head else set())
    paths = {arch for step in range(12) for arch in method.paths(step)}
    drawn = {name for name in expected if any(on_path(name, arch) for arch in paths)}
    assert moved(method, before) == drawn
    assert all(any(arch[p] == c for arch in paths) for p in range(3) for c in range(4))
    for name, parameter in method.named_parameters():
        if name not in expected:  # convolutions, attention and classifier: bit-identical, without a gradient
            assert parameter.grad is None and not parameter.requires_grad and torch.equal(parameter, before[name])


def test_nothing_decays() -> None:
    """A gamma without a gradient does not change, despite the optimiser's weight decay: all groups turn it off."""
    groups = make(BNNAS, variant='P', train_head=True).param_groups()['weights']
    assert [group['weight_decay'] for group in groups] == [0.0]


def test_zero_init_is_off_unless_asked_for() -> None:
    torch.manual_seed(0)
    assert BNNAS(SuperNet(SMALL), 5).table() == [[1.0] * 4] * 3
    assert BNNAS(SuperNet(SMALL), 5, zero_init=True).table() == [[0.0] * 4] * 3


def test_head_that_stays_random_starts_as_torch_does() -> None:
    """Uniform up to 1 / sqrt(features): its size is that of the only gradient there is."""
    weight = make(BNNAS).head.weight.abs()
    bound = SMALL.num_features**-0.5
    assert 0.9 * bound < weight.max() <= bound and weight.mean().item() == pytest.approx(bound / 2, rel=0.1)


def test_unknown_variant() -> None:
    with pytest.raises(ValueError, match="unknown variant 'Q', allowed: R, P"):
        make(BNNAS, variant='Q')


# ---- the indicator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('space', [PINAS_TINY, SKIPPING])
def test_score_is_the_sum_of_mean_absolute_scales(space: SearchSpace) -> None:
    method, rng = make(BNNAS, space), np.random.default_rng(0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape)))  # signs differ
    state = method.state_dict()

    def naive(position: int, choice: int) -> float:
        if space.candidates[choice].skip:
            return 0.0
        gamma = state[f'supernet.blocks.{position}.candidates.{choice}.bn3.weight'].tolist()
        return sum(abs(value) for value in gamma) / len(gamma)

    table = method.table()
    for _ in range(20):
        arch = space.sample(rng)
        entries = [table[position][choice] for position, choice in enumerate(arch)]
        assert method.score(arch) == pytest.approx(sum(entries), rel=1e-15) and len(entries) == space.num_positions
        assert entries == pytest.approx([naive(p, c) for p, c in enumerate(arch)], rel=1e-12)


def test_labels_change_the_values_only() -> None:
    """The control with shuffled labels: another task gives another table of the same kind."""
    runs = []
    for shift in (0, 1):
        method = make(BNNAS)
        optimiser = torch.optim.SGD(method.param_groups()['weights'], 0.05, 0.9)
        for step in range(6):
            facts = batch(step)
            optimiser.zero_grad()
            method.loss(facts | {'label': facts['label'].roll(shift)}, step)['loss'].backward()
            optimiser.step()
        runs.append(np.array(method.table()))
    trained = runs[0] != 1
    assert (trained == (runs[1] != 1)).all() and trained.any() and (runs[0] != runs[1])[trained].all()


# ---- the exact optimum ------------------------------------------------------------------------------------------

WIDE = SearchSpace('wide', (3, 2), (16, 32), (1, 2), (8, 8, 16))


def additive_cost(space: SearchSpace, rng: np.random.Generator, whole: bool) -> Any:
    """A cost function of random tables; whole numbers have many ties."""
    shape = (2, space.num_positions, len(space.candidates))
    rows = rng.integers(1, 12, shape) if whole else rng.random(shape) * 8
    base = 10

    def cost(arch: Arch) -> SimpleNamespace:
        macs, params = (base + sum(t[p, c].item() for p, c in enumerate(arch)) for t in rows)
        return SimpleNamespace(macs=macs, params=params)

    return cost


@pytest.mark.parametrize('space', [WIDE, SKIPPING])
@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('limited', [('macs',), ('params',), ('macs', 'params')])
def test_optimum_equals_brute_force(space: SearchSpace, whole: bool, limited: tuple[str, ...]) -> None:
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(12):
        table = rng.integers(0, 5, (space.num_positions, 4)) if whole else rng.standard_normal((space.num_positions, 4))
        cost = additive_cost(space, rng, whole)
        # Bounds between the cheapest and the most expensive architecture, some of them too tight for both.
        everything = list(space.all_archs())
        bounds = {}
        for kind in limited:
            values = [getattr(cost(arch), kind) for arch in everything]
            bounds[f'max_{kind}'] = float(np.quantile(values, rng.uniform(0, 0.5)))
        limits = Limits(cost, **bounds)
        scores = [sum(table[p, c] for p, c in enumerate(arch)) for arch in everything if limits(arch)]
        if not scores:
            with pytest.raises(ValueError, match='no architecture of .* the cheapest is'):
                best_arch(table, space, limits)
            continue
        found += 1
        best = best_arch(table, space, limits)
        assert limits(best) and sum(table[p, c] for p, c in enumerate(best)) == pytest.approx(max(scores), abs=1e-12)
    assert found >= 8


def test_without_limits_every_position_takes_its_best() -> None:
    table = np.random.default_rng(0).standard_normal((16, 4))
    assert best_arch(table, PINAS) == tuple(table.argmax(axis=1))


def test_optimum_of_sixteen_positions() -> None:
    """4^16 architectures against the textbook dynamic program over all integer capacities."""
    rng = np.random.default_rng(1)
    for capacity in (60, 90, 120):
        table, prices = rng.random((16, 4)), rng.integers(1, 12, (16, 4))
        best = np.zeros(capacity + 1)
        for row, price in zip(table, prices, strict=True):
            longer = np.full((4, capacity + 1), -np.inf)
            for choice in range(4):
                longer[choice, price[choice] :] = best[: capacity + 1 - price[choice]] + row[choice]
            best = longer.max(axis=0)

        def cost(arch: Arch, prices: np.ndarray = prices) -> SimpleNamespace:
            return SimpleNamespace(macs=int(sum(prices[p, c] for p, c in enumerate(arch))), params=1)

        arch = best_arch(table, PINAS, Limits(cost, max_macs=capacity))
        assert cost(arch).macs <= capacity
        assert sum(table[p, c] for p, c in enumerate(arch)) == pytest.approx(best[-1], abs=1e-12)


def test_the_papers_costs() -> None:
    """Limits on both costs of the paper's space: what is found fits, and no change of two positions improves it."""
    rng, costs = np.random.default_rng(1), CostTable(PINAS)
    table, middle = rng.random((16, 4)), costs.of([0, 1, 2, 3] * 4)
    limits = Limits(costs.of, max_macs=middle.macs, max_params=middle.params)
    arch = best_arch(table, PINAS, limits)
    assert limits(arch)
    reached = sum(table[p, c] for p, c in enumerate(arch))
    for (p, a), (q, b) in combinations(list(product(range(16), range(4))), 2):
        near = tuple(a if i == p else b if i == q else c for i, c in enumerate(arch))
        assert sum(table[i, c] for i, c in enumerate(near)) <= reached + 1e-12 or not limits(near)


def test_costs_that_are_no_sums_are_refused() -> None:
    def cost(arch: Arch) -> SimpleNamespace:
        return SimpleNamespace(macs=1 + np.prod(arch), params=1)

    with pytest.raises(ValueError, match='not sums over positions'):
        best_arch([[0, 1, 2, 3]] * 3, SMALL, Limits(cost, max_macs=5))


def test_derive_and_the_papers_evolution() -> None:
    """The evolution by the native score reaches the exact optimum of a small space, and never more."""
    method = make(BNNAS)
    train(method, 8)
    costs = CostTable(SMALL, SMALL.input_size)
    limit = float(np.median([costs.of(arch).macs for arch in SMALL.all_archs()]))
    limits = Limits(costs.of, max_macs=limit)
    best = method.derive(limits)
    assert limits(best)
    settings = dict(population=8, sample=4, crossover=0.5)
    searcher = build_searcher('evolution', SMALL, seed=1, constraint=limits, **settings)
    evolved = search_by_score(searcher, method.score, 40)
    assert method.score(evolved) == pytest.approx(method.score(best), rel=1e-12)
    assert all(limits(arch) and score <= method.score(best) + 1e-12 for arch, score in searcher.history)
    everything = {arch: method.score(arch) for arch in product(range(4), repeat=3)}
    assert method.derive() == max(everything, key=everything.get)


# ---- through the runner ----------------------------------------------------------------------------------------------


@pytest.mark.mm
@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_training_through_the_runner_resumes_exactly(processes: int, tmp_path: Path) -> None:
    logged = resumes_exactly('bnnas_pinas-nano-supernet_b128-lin_fmnist', tmp_path, processes=processes)
    assert (6, 'loss') in logged and len(logged[6, 'paths']) == 1
    weights = engine_utils.last_checkpoint(tmp_path / 'whole')
    optimiser = weights['optimizer']['param_groups']
    assert [len(group['params']) for group in optimiser] == [2 * 12] and optimiser[0]['weight_decay'] == 0
    gammas = [tensor for name, tensor in weights['state_dict'].items() if name.endswith('bn3.weight')]
    assert len(gammas) == 12 and any((gamma != 1).any() for gamma in gammas)
