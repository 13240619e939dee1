"""FP-NAS against finite differences and full enumeration of a 3 x 4 space, and its two parts."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import engine_utils
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peer_toys import optimisers, pair, resumes_exactly, run_two_ranks, train_both, wrapped
from test_methods import SKIPPING, SMALL, batch, gradients, make

from pinas_zoo.methods.candidates import batch_statistics, forward_only
from pinas_zoo.methods.fpnas import FPNAS, factor_matrix
from pinas_zoo.methods.importance import accumulated, architecture_loss, effective_samples, importance_weights
from pinas_zoo.models.cost import CostTable
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.limits import Limits
from pinas_zoo.space import PINAS, PINAS_NANO, PINAS_PATCH, Arch

ARCHS = list(SMALL.all_archs())
FACTORS = ('radix', 'cardinality')


def toy(**settings: Any) -> FPNAS:
    return make(FPNAS, **dict(warmup_steps=0) | settings)


def random_logits(method: FPNAS, scale: float = 1.0, seed: int = 0) -> FPNAS:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.arch_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return method


# ---- the gradient of the architecture -----------------------------------------------------------------------------


def exact_loss(
    logits: torch.Tensor, losses: torch.Tensor, costs: torch.Tensor, heat: float, beta: float
) -> torch.Tensor:
    """-log sum_A P(A) exp(-T CE_A) + beta log sum_A P(A) C(A), over all 64 paths."""
    log_p = logits.log_softmax(dim=1)
    p = torch.stack([sum(log_p[position, c] for position, c in enumerate(arch)) for arch in ARCHS]).exp()
    return -(p * (-heat * losses).exp()).sum().log() + beta * (p * costs).sum().log()


@pytest.mark.parametrize('beta', [0.0, 0.3])
@pytest.mark.parametrize('baseline', [False, True])
def test_gradient_by_enumeration_and_finite_differences(beta: float, baseline: bool) -> None:
    """Draws every path in proportion to its probability, so that the estimate is exact."""
    rng, heat, eps = np.random.default_rng(0), 3.0, 1e-5
    p = np.stack([rng.permutation([1, 2, 3, 4]) for _ in range(3)])  # tenths: 1000 draws hold all paths exactly
    losses = torch.from_numpy(rng.random(64))
    costs = torch.from_numpy(np.maximum(rng.standard_normal(64), 0))
    logits = torch.from_numpy(p / 10).log()
    method = toy()
    with torch.no_grad():
        method.fine.copy_(logits)
    counts = torch.tensor([math.prod(p[position, c] for position, c in enumerate(arch)) for arch in ARCHS])
    drawn = torch.arange(64).repeat_interleave(counts)
    assert len(drawn) == 1000
    log_p = method.path_log_probability(ARCHS)[drawn]
    loss = architecture_loss(log_p, losses[drawn], heat, costs[drawn], beta, baseline)
    loss.backward()
    whole = logits.clone().requires_grad_()
    exact = exact_loss(whole, losses, costs, heat, beta)
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-12)
    torch.testing.assert_close(method.fine.grad, whole.grad, rtol=1e-10, atol=1e-12)
    for place in itertools.product(range(3), range(4)):
        step = torch.zeros(3, 4, dtype=torch.float64)
        step[place] = eps
        ends = [exact_loss(logits + sign * step, losses, costs, heat, beta).item() for sign in (1, -1)]
        # Central differences: an error of order eps^2 and rounding of order 1e-16 / eps.
        assert method.fine.grad[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * eps), abs=1e-8)


def expected_gradient(logits: torch.Tensor, losses: torch.Tensor, count: int, **settings: Any) -> torch.Tensor:
    """The estimator's expectation: its mean over all draws of this many paths, weighted by their probability."""
    archs = list(itertools.product(range(logits.shape[1]), repeat=len(logits)))
    mean = torch.zeros_like(logits)
    for drawn in itertools.product(range(len(archs)), repeat=count):
        leaf = logits.clone().requires_grad_()
        log_p = leaf.log_softmax(dim=1)
        log_p_K = torch.stack([sum(log_p[position, c] for position, c in enumerate(archs[i])) for i in drawn])
        architecture_loss(log_p_K, losses[list(drawn)], 2.0, **settings).backward()
        mean += log_p_K.sum().exp().item() * leaf.grad
    return mean


def test_few_samples() -> None:
    """Equal losses and single samples give an expected gradient of zero; the baseline does not change it."""
    logits = torch.tensor([[0.3, -0.2, 0.1], [0.0, 1.0, -0.5]], dtype=torch.float64)
    losses = torch.linspace(0, 2, 9, dtype=torch.float64).roll(4)
    zero = torch.zeros_like(logits)
    torch.testing.assert_close(expected_gradient(logits, torch.ones_like(losses), 2), zero, rtol=0, atol=1e-14)
    torch.testing.assert_close(expected_gradient(logits, losses, 1), zero, rtol=0, atol=1e-14)
    two = expected_gradient(logits, losses, 2)
    assert two.abs().max() > 0.01
    torch.testing.assert_close(expected_gradient(logits, losses, 2, baseline=True), two, rtol=1e-10, atol=1e-14)


def test_costs_of_nothing_are_left_out() -> None:
    log_p = torch.tensor([-1.0, -2.0], requires_grad=True)
    losses, nothing = torch.tensor([0.5, 1.0]), torch.zeros(2)
    with_term, without = (architecture_loss(log_p, losses, 2.0, costs, 0.3) for costs in (nothing, None))
    assert with_term.isfinite() and torch.equal(with_term, without)
    grads = [torch.autograd.grad(loss, log_p)[0] for loss in (with_term, without)]
    assert torch.equal(*grads)


def test_importance_weights() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    likelihoods = (-1.5 * losses).exp()
    torch.testing.assert_close(importance_weights(losses, 1.5), likelihoods / likelihoods.sum())
    assert effective_samples(importance_weights(losses, 1e-9)).item() == pytest.approx(3)
    assert effective_samples(importance_weights(losses, 1e3)).item() == pytest.approx(1)


def test_costs_of_a_patch_stem() -> None:
    method = FPNAS(SuperNet('pinas_patch'), num_classes=55)
    assert method.costs.of('40-13') == CostTable(PINAS_PATCH, PINAS_PATCH.input_size, 55).of('40-13')


def test_cost_is_a_hinge() -> None:
    costs = CostTable(SMALL, SMALL.input_size, 5)
    macs = {arch: costs.of(arch).macs for arch in ARCHS}
    middle = float(np.median(list(macs.values())))
    method = toy(cost_weight=0.3, target_macs=middle)
    dearest, cheapest = max(macs, key=macs.get), min(macs, key=macs.get)
    assert method.cost(cheapest) == 0 and method.cost(dearest) == pytest.approx(macs[dearest] / middle - 1)


# ---- the gradient of the weights ----------------------------------------------------------------------------------


def test_weights_follow_the_marginal_likelihood() -> None:
    """Two passes that keep one graph at a time give the same gradient as all graphs at once."""
    method = random_logits(toy(least_samples=4, temperature=5.0))
    twin, facts = copy.deepcopy(method), pair(0)
    terms = method.loss(facts, 0, 0)
    terms['loss'].backward()
    archs = method.paths(0)
    assert len(archs) == 4 and terms['samples'].item() == 4
    losses = []
    for arch in archs:
        logits = twin.head(twin.supernet(facts['image'], arch).mean((2, 3)))
        losses.append(F.cross_entropy(logits, facts['label'], label_smoothing=0.1))
    (-(-5.0 * torch.stack(losses)).logsumexp(dim=0) / 5.0).backward()
    expected = gradients(twin)
    ours = gradients(method)
    assert ours.keys() == expected.keys() and not any(name in ours for name in ('fine', 'coarse'))
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-13, msg=name)
    weights = importance_weights(torch.stack(losses).detach(), 5.0)
    assert terms['loss'].item() == pytest.approx((weights * torch.stack(losses)).sum().item(), rel=1e-12)
    assert terms['cross_entropy'].item() == terms['loss'].item()
    assert terms['effective_samples'].item() == pytest.approx(1 / weights.square().sum().item(), rel=1e-12)


def test_accumulated_is_the_sum() -> None:
    a, b, c = (torch.nn.Parameter(torch.tensor(float(value))) for value in (2, 3, 5))
    loss = accumulated((x * y for x, y in ((a, a), (a, b))), [a, b, c])
    assert loss.item() == 10
    (2 * loss).backward()
    assert (a.grad.item(), b.grad.item(), c.grad) == (2 * (4 + 3), 2 * 2, None)


# ---- the two parts --------------------------------------------------------------------------------------------------


def test_each_part_moves_its_own_and_sees_its_own_images() -> None:
    method = random_logits(toy())
    facts = pair(0)
    method.loss(facts | {'held_out': None}, 0, 0)['loss'].backward()
    assert method.fine.grad is None and method.head.weight.grad is not None
    method.zero_grad()
    before = copy.deepcopy(method.state_dict())
    terms = method.loss({'held_out': facts['held_out']}, 0, 1)
    terms['loss'].backward()
    losses, _ = method.look(facts['held_out'], method.draw(0, 1))
    shares = importance_weights(losses, method.temperature)
    assert terms['cross_entropy'].item() == pytest.approx((shares * losses).sum().item(), rel=1e-12)
    assert set(gradients(method)) == {'fine'} and method.fine.grad.abs().min() > 0
    for name, tensor in method.state_dict().items():  # BN buffers too
        assert torch.equal(tensor, before[name]), name


def test_autocast_leaves_the_distribution_as_it_is() -> None:
    """Mixed precision is for the networks: draws, entropy and log-probabilities stay exact."""
    method = random_logits(make(FPNAS, warmup_steps=0, factors=FACTORS)).float()
    facts = {name: value.float() if name == 'image' else value for name, value in batch(0).items()}
    exact = method.draw(0, 0), method.entropy(), method.table()
    method.loss(facts, 0, 0)['loss'].backward()
    trained = set(gradients(method))
    method.zero_grad()
    with torch.autocast('cpu', torch.bfloat16):
        assert (method.draw(0, 0), method.entropy(), method.table()) == exact
        for part in (0, 1):
            method.loss(facts | {'held_out': facts}, 0, part)['loss'].backward()
    found = gradients(method)
    assert set(found) == trained | {'coarse'}  # a look without gradient comes before, and takes none away
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())


def test_looking_leaves_batch_norm_alone_and_uses_the_batch() -> None:
    method, images = toy(), batch()['image']
    before = copy.deepcopy(method.state_dict())
    logits = forward_only(method, images, ARCHS[:3])
    assert logits.shape == (3, 6, 5) and not logits.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    torch.testing.assert_close(logits[1], method.logits(images, ARCHS[1]).detach(), rtol=1e-12, atol=0)
    method.eval()
    with batch_statistics(method.supernet):
        torch.testing.assert_close(method.logits(images, ARCHS[1]).detach(), logits[1], rtol=1e-12, atol=0)
    assert not any(module.training for module in method.modules())


def test_warm_up_trains_one_uniform_path_and_rests_alpha() -> None:
    method = toy(warmup_steps=3)
    movers = optimisers(method)
    terms = train_both(method, range(3), movers)
    assert len(terms) == 3 and {t['samples'] for t in terms} == {1} and method.units(2) == 1
    assert not method.fine.any() and not movers[1].state
    assert len({method.draw(step, 0) for step in range(3)}) == 3
    train_both(method, range(3, 5), movers)
    assert method.parts(3) == 2 and method.fine.abs().min() > 0


def test_alpha_finds_the_better_paths() -> None:
    """With the losses of paths given, the most probable path becomes the best one."""
    rng = np.random.default_rng(5)
    price = torch.from_numpy(np.stack([rng.permutation([0.0, 0.5, 0.7, 1.0]) for _ in range(3)]))

    class Given(FPNAS):
        def look(self, batch: dict[str, Any], archs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            losses = torch.stack([sum(price[position, c] for position, c in enumerate(arch)) for arch in archs])
            return losses, torch.zeros(len(archs))

    method = make(Given, warmup_steps=0, least_samples=8, temperature=4.0)
    mover = torch.optim.Adam(method.param_groups()['arch'], 0.05)
    entropies = [method.entropy()]
    for step in range(150):
        mover.zero_grad()
        method.loss(pair(0), step, 1)['loss'].backward()
        mover.step()
        entropies.append(method.entropy())
    assert entropies[0] == pytest.approx(3 * math.log(4)) and entropies[-1] < 1
    assert method.derive() == tuple(price.argmin(dim=1).tolist())


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_fewer_samples_as_entropy_falls() -> None:
    method = toy(samples_per_nat=2.0, least_samples=2, most_samples=7)
    base = random_logits(toy()).fine.detach().clone()
    counts, entropies = [], []
    for sharpness in np.linspace(0, 8, 60):  # sharper logits: every position's entropy falls
        with torch.no_grad():
            method.fine.copy_(base * sharpness)
        counts.append(method.samples(0))
        entropies.append(method.entropy())
        assert counts[-1] == min(max(math.ceil(2.0 * entropies[-1]), 2), 7) == len(method.draw(0, 0))
    assert all(a > b for a, b in itertools.pairwise(entropies))
    assert all(a >= b for a, b in itertools.pairwise(counts)) and set(counts) == {2, 3, 4, 5, 6, 7}


def test_samples_of_the_papers_space() -> None:
    """The entropy is 16 ln 4 nats: a quarter of a sample per nat gives 6; the paper's initial 14 would require 0.63."""
    logits = torch.zeros(16, 4)
    entropy = float(torch.special.entr(logits.softmax(dim=1)).sum())
    assert math.ceil(entropy / 4) == 6 and math.ceil(0.63 * entropy) == 14
    assert make(FPNAS, PINAS_NANO, warmup_steps=0).samples(0) == math.ceil(8 * math.log(4) / 4) == 3


def test_draws_follow_the_distribution() -> None:
    method = random_logits(toy(least_samples=30, most_samples=30))
    p = {arch: math.exp(method.score(arch)) for arch in ARCHS}
    assert sum(p.values()) == pytest.approx(1, rel=1e-12)
    seen = [arch for step in range(200) for arch in method.draw(step, 0)]
    count = {arch: seen.count(arch) for arch in ARCHS}
    for arch in ARCHS:  # binomial, 6000 draws; the seed is fixed
        assert abs(count[arch] - 6000 * p[arch]) < 5 * math.sqrt(6000 * p[arch])
    assert method.draw(3, 0) == method.draw(3, 0) and method.draw(3, 0) != method.draw(3, 1)


def test_what_does_not_fit_is_never_drawn() -> None:
    method = random_logits(make(FPNAS, SKIPPING, warmup_steps=0, least_samples=20))
    assert {arch[0] for step in range(50) for arch in method.draw(step, 0)} == {0, 1, 2}
    assert sum(math.exp(method.score(arch)) for arch in SKIPPING.all_archs()) == pytest.approx(1, rel=1e-12)
    assert method.table()[0][3] == -math.inf
    train_both(method, range(2))
    assert method.fine.isfinite().all()


# ---- coarse to fine -------------------------------------------------------------------------------------------------


def naive_probability(method: FPNAS, arch: Arch) -> float:
    """The product of the factors' own categorical distributions."""
    out = 1.0
    for row, choice in zip(method.coarse.tolist(), arch, strict=True):
        candidate = SMALL.candidates[choice]
        for logits, value in ((row[:2], candidate.radix), (row[2:], candidate.cardinality)):
            weights = [math.exp(logit) for logit in logits]
            out *= weights[value - 1] / sum(weights)
    return out


def test_joint_distribution_keeps_probabilities() -> None:
    method = toy(factors=FACTORS, joint_at=4)
    assert [list(p.shape) for p in method.arch_parameters()] == [[3, 4], [3, 4]]
    movers = optimisers(method)
    train_both(method, range(4), movers)
    assert method.coarse.abs().min() > 0 and not method.fine.any()
    before = {arch: naive_probability(method, arch) for arch in ARCHS}
    assert method.trained(3)[0] is method.coarse and method.trained(4)[0] is method.fine
    for arch in ARCHS:
        assert math.exp(method.score(arch)) == pytest.approx(before[arch], abs=1e-12)
    coarse = method.coarse.detach().clone()
    joint = (coarse @ method.matrix.t()).clone()  # alpha of (a, b) is alpha of a + alpha of b
    for position, choice in itertools.product(range(3), range(4)):
        candidate = SMALL.candidates[choice]
        parts = coarse[position, candidate.radix - 1] + coarse[position, 1 + candidate.cardinality]
        assert joint[position, choice].item() == pytest.approx(parts.item(), rel=1e-12)
    train_both(method, range(4, 6), movers)
    assert torch.equal(method.coarse, coarse) and method.fine.abs().min() > 0
    ratios = method.log_probabilities()
    # The joint distribution is not a product of factors any more.
    assert (ratios[:, 0] + ratios[:, 3] - ratios[:, 1] - ratios[:, 2]).abs().max() > 1e-3


def test_factors() -> None:
    assert factor_matrix(PINAS, FACTORS).tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]]
    with pytest.raises(ValueError, match=r"must be each combination of \('radix', 'base_width'\) exactly once"):
        toy(factors=('radix', 'base_width'))
    method = toy(factors=FACTORS)  # no joint_at: factorised to the end
    assert method.trained(10**6)[0] is method.coarse


# ---- what was learned -----------------------------------------------------------------------------------------------


def test_score_and_derived_architecture() -> None:
    method = random_logits(toy())
    scores = {arch: method.score(arch) for arch in ARCHS}
    log_p = method.fine.log_softmax(dim=1).tolist()
    assert scores == pytest.approx({arch: sum(log_p[p][c] for p, c in enumerate(arch)) for arch in ARCHS}, rel=1e-12)
    assert method.derive() == max(scores, key=scores.get)
    costs = CostTable(SMALL, SMALL.input_size, 5)
    limits = Limits(costs.of, max_macs=float(np.quantile([costs.of(arch).macs for arch in ARCHS], 0.3)))
    assert scores[method.derive(limits)] == pytest.approx(
        max(s for arch, s in scores.items() if limits(arch)), rel=1e-12
    )


def test_path_units() -> None:
    method = toy(least_samples=5, most_samples=5)
    assert method.units(0) == pytest.approx(5 * 4 / 3 + 5 / 3)


@pytest.mark.parametrize(
    'setting',
    [dict(samples_per_nat=0), dict(least_samples=1), dict(most_samples=1), dict(temperature=0), dict(cost_weight=-1)],
)
def test_settings_out_of_range(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='allowed: samples_per_nat > 0'):
        toy(**setting)


def test_a_cost_term_needs_a_target() -> None:
    with pytest.raises(ValueError, match='a cost term needs target_macs or target_latency above 0, got None and None'):
        toy(cost_weight=0.1)


# ---- two processes --------------------------------------------------------------------------------------------------


def _work(rank: int) -> dict[str, Any]:
    method = toy(least_samples=3)

    def half(step: int) -> dict[str, Any]:
        facts, held = ({k: v[3 * rank : 3 * rank + 3] for k, v in batch(s).items()} for s in (step, step + 1000))
        return facts | {'held_out': held}

    looked, original = [], method.look
    method.look = lambda *args: looked.append(original(*args)[0]) or original(*args)
    train_both(method, range(3), batches=half, call=wrapped(method))
    return {'state': method.state_dict(), 'looked': torch.stack(looked)}


@pytest.mark.processes
def test_two_ranks_weigh_alike(tmp_path: Path) -> None:
    """Ranks with different images agree on every weight and every logit; a path's loss is the mean of theirs."""
    ranks = run_two_ranks(_work, tmp_path)
    assert torch.equal(ranks[0]['looked'], ranks[1]['looked'])
    assert ranks[0]['state']['fine'].abs().min() > 0
    for name, tensor in ranks[0]['state'].items():
        if 'running_' not in name:  # each rank's BN has seen its own images
            assert torch.equal(tensor, ranks[1]['state'][name]), name
    method = toy(least_samples=3)
    archs, facts = method.draw(0, 0), batch(0)
    alone = []
    for arch in archs:
        logits = [method.logits(x, arch) for x in facts['image'].chunk(2)]
        alone.append(F.cross_entropy(torch.cat(logits), facts['label'], label_smoothing=0.1).item())
    np.testing.assert_allclose(ranks[0]['looked'][0], alone, rtol=1e-10)


def test_supernet_with_zero_branches_is_woken() -> None:
    torch.manual_seed(0)
    net = SuperNet(SMALL)
    assert not net.blocks[0][0].bn3.weight.any()
    FPNAS(net, 5)
    assert net.blocks[0][0].bn3.weight.min() == 1


# ---- through the runner ----------------------------------------------------------------------------------------------


@pytest.mark.mm
@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_training_through_the_runner_resumes_exactly(processes: int, tmp_path: Path) -> None:
    """Alpha and its optimiser too, over warm-up and the change to the joint distribution."""
    settings = dict(warmup_steps=1, factors='[radix,cardinality]', joint_at=4)
    options = [f'model.method.{name}={value}' for name, value in settings.items()]
    logged = resumes_exactly('fpnas_pinas-nano-supernet_b128-lin_fmnist', tmp_path, *options, processes=processes)
    assert {logged[step, 'samples'] for step in range(2, 7)} == {2} and len(logged[6, 'paths']) == 2
    saved = engine_utils.last_checkpoint(tmp_path / 'whole')
    state, arch = saved['state_dict'], saved['optimizer']['arch']['state']
    assert state['method.coarse'].abs().min() > 0 and state['method.fine'].abs().min() > 0
    assert [int(arch[index]['step']) for index in (0, 1)] == [3, 2]  # coarse in steps 1 to 3, fine in 4 and 5
