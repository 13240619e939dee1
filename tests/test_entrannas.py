"""EnTranNAS: rotation, formulas of the engine, what runs and what learns, what is derived."""

from pathlib import Path
from typing import Any

import engine_utils
import numpy as np
import pytest
import torch
from peer_toys import pair, resumes_exactly
from test_methods import SKIPPING, SMALL, batch, gradients, make, on_path

from pinas_zoo.methods import EnTranNAS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import PINAS_NANO, SearchSpace

#: Four positions of different kinds.
FOUR = SearchSpace('four', depths=(2, 2), planes=(16, 32), strides=(1, 2), stem_widths=(8, 8, 16), input_size=16)


def entran(space: SearchSpace = FOUR, **settings: Any) -> EnTranNAS:
    return make(EnTranNAS, space, **dict(warmup_steps=1, engines=2) | settings)


def set_alpha(method: EnTranNAS, rows: list[list[float]]) -> None:
    with torch.no_grad():
        for alpha, row in zip(method.alpha, rows, strict=True):
            alpha.copy_(torch.tensor(row, dtype=torch.float64))


#: At a temperature of 1 and t = 0.2, the ratios to the largest prune all but {1, 3}, {0}, {2}, {0, 1, 2}.
ROWS = [[-9.0, 1.0, -9.0, 0.5], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 1.0], [0.1, 0.2, 0.3, -5.0]]
SURVIVORS = [(1, 3), (0,), (2,), (0, 1, 2)]
AT_ONE = dict(temperatures=(1.0, 1.0), threshold=float(np.log(0.2 / 0.8)))


# ---- rotation and schedule ----------------------------------------------------------------------


@pytest.mark.parametrize('engines', [1, 2, 4, 8])
def test_every_position_is_engine_equally_often(engines: int) -> None:
    method = EnTranNAS(SuperNet(PINAS_NANO), 10, engines=engines, seed=2)
    length, orders = 8 // engines, set()
    for cycle in range(5):
        steps = [method.engine(cycle * length + place) for place in range(length)]
        assert sorted(p for engine in steps for p in engine) == list(range(8))  # once each in every cycle
        assert all([p // length for p in engine] == list(range(engines)) for engine in steps)  # one a run of positions
        orders.add(tuple(steps))
    assert method.engine(3) == method.engine(3) and (len(orders) > 1) == (engines < 8)
    other = EnTranNAS(SuperNet(PINAS_NANO), 10, engines=engines, seed=2)
    assert [other.engine(s) for s in range(20)] == [method.engine(s) for s in range(20)]


def test_engines_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match='engines that divide 4 positions.*engines=3'):
        entran(engines=3)
    with pytest.raises(ValueError, match='temperatures > 0'):
        entran(temperatures=(1.0, 0.0))


def test_temperature_and_units() -> None:
    method = entran(warmup_steps=10, temperatures=(5.0, 0.5), anneal_steps=100)
    assert [method.temperature(step) for step in (0, 10, 60, 110, 500)] == pytest.approx([5, 5, 2.5**0.5, 0.5, 0.5])
    assert method.units(9) == 1 and method.units(10) == 2 * (4 + 3 * 2) / 4
    assert [method.parts(step) for step in (9, 10)] == [1, 2]
    skipping = make(EnTranNAS, SKIPPING, warmup_steps=0, engines=3)
    assert skipping.units(0) == pytest.approx(2 * (3 + 4 + 4) / 3)  # no skip where the shape changes


# ---- the engine's formulas ----------------------------------------------------------------------


def test_weights_follow_the_formulas() -> None:
    method = entran(threshold=-1.5, temperatures=(0.7, 0.7))
    set_alpha(method, ROWS)
    for position, row in enumerate(np.array(ROWS)):
        p = np.exp(row / 0.7) / np.exp(row / 0.7).sum()
        q = np.maximum(p / p.max() - 1 / (1 + np.exp(1.5)), 0)
        np.testing.assert_allclose(method.weigh(position, 5).detach(), q / q.sum(), rtol=1e-12)
    torch.testing.assert_close(method.shares().sum(dim=1), torch.ones(4).double())
    plain = entran(sparsify=False, temperatures=(0.7, 0.7))
    set_alpha(plain, ROWS)
    assert not plain.beta and torch.equal(plain.mixing(), plain.shares())
    assert len(plain.param_groups()['arch']) == 4 and len(method.param_groups()['arch']) == 8


def test_gradients_of_the_engine_go_through_the_maximum() -> None:
    method = entran(**AT_ONE)
    set_alpha(method, ROWS)

    readout, size = torch.tensor([1.0, -2.0, 0.5, 3.0]).double(), 1e-6
    (method.weigh(3, 5) @ readout).backward()
    for parameter in (method.alpha[3], method.beta[3]):
        for index in range(len(parameter)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[index] += sign * size
                    values.append(float(method.weigh(3, 5) @ readout))
                    parameter[index] -= sign * size
            slope = (values[0] - values[1]) / (2 * size)
            assert parameter.grad[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)
    assert method.alpha[3].grad[:3].abs().min() > 1e-3 and method.beta[3].grad.abs() > 1e-3


def test_the_strongest_is_never_pruned() -> None:
    """Even if the threshold's sigmoid is 1 in floating point: one candidate remains, and the choice is frozen."""
    method = entran(threshold=100.0)
    set_alpha(method, ROWS)
    for position in range(4):
        weights = method.weigh(position, 5)
        assert weights[np.argmax(ROWS[position])] == 1 and weights.sum() == 1
        weights.square().sum().backward()
        assert method.alpha[position].grad.abs().max() < 1e-12 and method.beta[position].grad.abs().max() < 1e-12


def test_what_does_not_fit_has_no_share() -> None:
    method = make(EnTranNAS, SKIPPING, warmup_steps=0)
    set_alpha(method, [[0.0, 0.0, 0.0, 9.0]] * 3)
    assert method.shares()[0, 3] == 0 and method.mixing()[0, 3] == 0 and method.strongest()[1] == 3
    assert method.survivors()[0] == (0, 1, 2)
    assert method.derive()[0] in (0, 1, 2) and method.derive()[1] == 3


# ---- what runs and what learns ------------------------------------------------------------------


def test_only_what_runs_gets_gradients() -> None:
    method = entran(**AT_ONE)
    set_alpha(method, ROWS)
    step = next(step for step in range(1, 40) if method.engine(step) == (0, 3))
    method.loss(pair(), step, 0)['loss'].backward()
    engine = method.engine(step)
    ran = [SURVIVORS[p] if p in engine else (int(np.argmax(ROWS[p])),) for p in range(4)]
    paths = [tuple(row[i % len(row)] for row in ran) for i in range(3)]
    names = {n for n, _ in method.named_parameters() if not n.startswith(('alpha', 'beta'))}
    assert gradients(method).keys() == {n for n in names if any(on_path(n, path) for path in paths)}
    method.zero_grad()
    method.loss(pair(), step, 1)['loss'].backward()
    assert gradients(method).keys() == {f'{kind}.{p}' for kind in ('alpha', 'beta') for p in engine}
    assert all(method.alpha[p].grad[SURVIVORS[p],].abs().min() > 0 for p in engine)


def test_transit_positions_do_not_move() -> None:
    """Neither Adam's moments nor its weight decay change the parameters of a position that is not an engine."""
    method = entran(warmup_steps=0)
    arch = torch.optim.Adam(method.param_groups()['arch'], 0.1, weight_decay=0.1)
    for step in range(6):
        before = [p.detach().clone() for p in method.alpha]
        arch.zero_grad()
        method.loss(pair(step), step, 1)['loss'].backward()
        arch.step()
        moved = [p for p in range(4) if not torch.equal(method.alpha[p], before[p])]
        assert moved == list(method.engine(step))


def test_transit_positions_run_what_is_derived_now() -> None:
    """Outputs are not weighted, and the argmax is recomputed in every step."""
    method, facts = entran(threshold=100.0).eval(), batch()
    for shift in range(3):
        rows = np.roll(ROWS, shift, axis=1).tolist()
        set_alpha(method, rows)
        arch = tuple(int(np.argmax(row)) for row in rows)
        assert method.derive() == arch and method.paths(9) == (arch,)
        with torch.no_grad():  # every engine has one survivor, so the whole is the path
            ours = method.mixture(9, learn=False)(facts['image'])
            assert torch.equal(ours, method.supernet(facts['image'], arch))


def test_warm_up_is_uniform_single_paths() -> None:
    method = entran(warmup_steps=400)
    count = np.zeros((4, 4))
    for step in range(400):
        (arch,) = method.paths(step)
        count[range(4), arch] += 1
    # Binomial: 100 expected, standard deviation 8.7; the seed is fixed.
    assert np.abs(count - 100).max() < 4 * 8.7
    method.loss(pair(), 3)['loss'].backward()
    (arch,) = method.paths(3)
    assert all(on_path(name, arch) for name in gradients(method)) and method.alpha[0].grad is None


def test_counters() -> None:
    method = entran(warmup_steps=1, threshold=-20.0)
    set_alpha(method, ROWS)
    method.loss(pair(0), 0, 0)
    assert method.updates.sum() == 4 and method.derived.tolist() == method.strongest() == [1, 0, 2, 2]
    flips = int(method.flips.sum())
    set_alpha(method, np.roll(ROWS, 1, axis=1).tolist())
    method.loss(pair(1), 1, 0)
    logged = method.log_scalars(1)
    assert logged['flips'] == flips + 4
    assert method.updates.sum() == 4 + 2 * 4 + 2 and method.clock == 1  # two engines of four, two of one
    method.eval().loss(pair(2), 2, 0)
    assert method.clock == 1


def test_the_penalty_raises_thresholds() -> None:
    method = entran(warmup_steps=0, pruning=0.5)
    free = entran(warmup_steps=0)
    terms = method.loss(pair(), 0, 1)
    terms['loss'].backward()
    without = free.loss(pair(), 0, 1)['loss']
    without.backward()
    t = torch.tensor(-4.0).sigmoid().double()
    torch.testing.assert_close(terms['loss'], without - 0.5 * 2 * t.log(), rtol=1e-6, atol=0)
    for position in method.engine(0):
        difference = method.beta[position].grad - free.beta[position].grad
        assert difference.item() == pytest.approx(-0.5 * (1 - t.item()), rel=1e-6)  # d(-log t) / d beta = t - 1


# ---- what is derived ----------------------------------------------------------------------------


def test_derived_network_is_the_engine_form() -> None:
    """With every position an engine: bit-equal to the derived network, mixed where several candidates survive."""
    method, x = entran(engines=4, **AT_ONE).eval(), batch()['image']
    set_alpha(method, ROWS)
    assert method.survivors() == SURVIVORS
    arch = method.derive(mixed=True)
    assert arch == ((1, 3), 0, 2, (0, 1, 2)) and method.derive() == (1, 0, 2, 2)
    assert method.score(arch) <= 0 and method.score((1, 0, 2, 2)) > method.score((3, 0, 2, 2))
    with torch.no_grad():
        engine = method.mixture(9, learn=False)
        assert engine.arch == tuple(SURVIVORS)
        alone = method.supernet.extract(arch, method.factors_of(arch))
        assert torch.equal(engine(x), alone.forward_features(x))
        set_alpha(method, [[9.0 * (c == p) for c in range(4)] for p in range(4)])
        assert method.derive(mixed=True) == method.derive() == (0, 1, 2, 3)
        assert torch.equal(method.mixture(9, learn=False)(x), method.supernet.extract((0, 1, 2, 3)).forward_features(x))


def test_native_score() -> None:
    method = make(EnTranNAS, SMALL, temperatures=(2.0, 2.0))
    set_alpha(method, ROWS[:3])
    p = np.exp(np.array(ROWS[:3]) / 2)
    p /= p.sum(axis=1, keepdims=True)
    assert method.score((3, 1, 2)) == pytest.approx(np.log(p[range(3), (3, 1, 2)]).sum(), rel=1e-9)


@pytest.mark.mm
@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_training_through_the_runner_resumes_exactly(processes: int, tmp_path: Path) -> None:
    options = [f'model.method.{setting}' for setting in ('warmup_steps=1', 'anneal_steps=4', 'engines=1')]
    logged = resumes_exactly('entrannas_pinas-nano-supernet_b128-lin_fmnist', tmp_path, *options, processes=processes)
    assert logged[1, 'temperature'] == 5.0 and logged[6, 'temperature'] == pytest.approx(0.5)
    state = engine_utils.last_checkpoint(tmp_path / 'whole')['optimizer']['arch']['state']
    assert (6, 'loss') in logged and len(state) == 6  # alpha and beta of three positions have been engine
