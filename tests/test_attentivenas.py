"""AttentiveNAS: what a step trains and by which loss, how a path is chosen, cost bins, the predictor."""

import copy
from pathlib import Path
from typing import Any

import engine_utils
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peer_toys import resumes_exactly, run_two_ranks, train_both, wrapped
from test_methods import SKIPPING, SMALL, batch, gradients, make, on_path, train

from pinas_zoo.methods.attentivenas import ARMS, AttentiveNAS
from pinas_zoo.methods.cost_bins import CostBins
from pinas_zoo.methods.distillation import soft_cross_entropy
from pinas_zoo.methods.predictor import AccuracyPredictor
from pinas_zoo.models.cost import CostTable
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.log import SearchLog, SearchRecord
from pinas_zoo.space import PINAS, Arch

ARCHS = list(SMALL.all_archs())


def step_of(method: AttentiveNAS, step: int = 0, facts: dict[str, Any] | None = None) -> list[dict[str, torch.Tensor]]:
    """Forward and backward passes of a step."""
    terms = []
    for part in range(method.parts(step)):
        terms.append(method.loss(facts or batch(step), step, part))
        terms[-1]['loss'].backward()
    return terms


def naive_logits(method: AttentiveNAS, arch: Arch, images: torch.Tensor) -> torch.Tensor:
    return method.head(method.supernet(images, arch).mean((2, 3)))


def naive_losses(method: AttentiveNAS, archs: list[Arch], facts: dict[str, Any], rows: slice) -> list[float]:
    """Loss of each path on some rows of a batch whose statistics are the whole batch's."""
    twin = copy.deepcopy(method)
    logits = [naive_logits(twin, arch, facts['image'])[rows] for arch in archs]
    return [F.cross_entropy(z, facts['label'][rows], label_smoothing=0.1).item() for z in logits]


# ---- distillation and sandwich --------------------------------------------------------------------------------------


def test_distillation_gradients_are_those_of_the_kl() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randn(7, 5, generator=draw, dtype=torch.float64).softmax(dim=1)
    logits = torch.randn(7, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    ours = soft_cross_entropy(logits, targets)
    kl = F.kl_div(logits.log_softmax(dim=1), targets, reduction='batchmean')
    for found, expected in zip(*(torch.autograd.grad(loss, logits) for loss in (ours, kl)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    entropy = torch.special.entr(targets).sum(dim=1).mean()
    torch.testing.assert_close(ours - kl, entropy, rtol=1e-12, atol=0)


def test_step_is_the_sandwich() -> None:
    """Labels for MAX; for the others MAX's scores alone; gradients add up."""
    method, facts = make(AttentiveNAS, arm='uniform'), batch(0)
    twin = copy.deepcopy(method)
    terms = step_of(method, 0, facts)
    largest, *middle, smallest = paths = method.paths(0)
    assert len(paths) == 4 and (largest, smallest) == method.extremes
    logits = naive_logits(twin, largest, facts['image'])
    losses = [F.cross_entropy(logits, facts['label'], label_smoothing=0.1)]
    targets = logits.detach().softmax(dim=1)
    for arch in (*middle, smallest):
        losses.append(-(targets * naive_logits(twin, arch, facts['image']).log_softmax(dim=1)).sum(dim=1).mean())
    sum(losses).backward()
    for term, loss in zip(terms, losses, strict=True):
        torch.testing.assert_close(term['loss'], loss, rtol=1e-12, atol=0)
    expected, ours = gradients(twin), gradients(method)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-13, msg=name)


def test_random_arm_is_hard_labels_on_random_paths() -> None:
    method, facts = make(AttentiveNAS, arm='random'), batch(0)
    twin = copy.deepcopy(method)
    terms = step_of(method, 0, facts)
    for term, arch in zip(terms, method.paths(0), strict=True):
        loss = F.cross_entropy(naive_logits(twin, arch, facts['image']), facts['label'], label_smoothing=0.1)
        torch.testing.assert_close(term['loss'], loss, rtol=1e-12, atol=0)
    drawn = []
    for step in range(60):
        assert method.choose(facts, step, 0) == method.choose(facts, step, 0)
        drawn += [method.choose(facts, step, part) for part in range(4)]
    assert len(set(drawn)) > 55  # 240 uniform draws of 64 paths leave 1.5 of them out on average


def test_extremes_of_the_papers_space() -> None:
    """MAX is candidate 2, but 1 where stages 2 to 4 open; MIN is candidate 0, but 3 where any stage opens."""
    with torch.device('meta'):
        method = AttentiveNAS(SuperNet(PINAS), 10)
    assert [PINAS.format(arch) for arch in method.extremes] == ['222-1222-122222-122', '300-3000-300000-300']


def test_extremes_are_within_the_space() -> None:
    method = make(AttentiveNAS, SKIPPING)
    costs = CostTable(SKIPPING, SKIPPING.input_size)
    macs = {arch: costs.of(arch).macs for arch in SKIPPING.all_archs()}
    largest, smallest = method.extremes
    assert macs[largest] == max(macs.values()) and macs[smallest] == min(macs.values())
    assert smallest[0] != 3 == smallest[1]  # the first position cannot be skipped


def test_parts_run_in_their_order() -> None:
    method = make(AttentiveNAS, arm='uniform')
    with pytest.raises(ValueError, match='part 1 of step 0'):
        method.loss(batch(0), 0, 1)
    step_of(method, 0)
    with pytest.raises(ValueError, match='part 2 of step 1'):
        method.loss(batch(1), 1, 2)
    again = [method.loss(batch(5), 1, part)['loss'].item() for part in range(4)]
    micro = [method.loss(batch(5), 1, part)['loss'].item() for part in range(4, 8)]  # gradients accumulate
    assert again == micro and len(method.paths(1)) == 4


# ---- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('arm', 'pick'), [('best', np.argmin), ('worst', np.argmax)])
def test_choice_by_the_loss_of_the_batch(arm: str, pick: Any) -> None:
    method = make(AttentiveNAS, arm=arm)
    train(method, 4)
    agreed = []
    for step in range(4, 10):
        facts = batch(step)
        before = copy.deepcopy(method.state_dict())
        for part in (1, 2):
            _, archs = method.bins.draw(method.rng(step, part), 3)
            assert len(archs) == 3
            expected = archs[int(pick(naive_losses(method, archs, facts, slice(None))))]
            assert method.choose(facts, step, part) == expected
            halves = [pick(naive_losses(method, archs, facts, rows)) for rows in (slice(0, None, 2), slice(1, None, 2))]
            agreed.append(halves[0] == halves[1])
        # Looking leaves parameters, counts and BN buffers as they are.
        assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    assert method._agreed[-12:] == agreed and 0 < sum(agreed) < 12


def test_choice_takes_no_gradient_away_under_autocast() -> None:
    """Autocast caches what a pass without gradients has cast; the chosen path must still train."""
    method, facts = make(AttentiveNAS).float(), batch(0)
    facts['image'] = facts['image'].float()
    with torch.autocast('cpu', torch.bfloat16):
        step_of(method, 0, facts)
    names = [name for name, _ in method.named_parameters()]
    assert set(gradients(method)) == {name for name in names if any(on_path(name, arch) for arch in method.paths(0))}


def test_uniform_arm_takes_the_first_draw() -> None:
    method = make(AttentiveNAS, arm='uniform', candidates=9)
    for step in range(5):
        (drawn,) = method.bins.draw(method.rng(step, 1), 1)[1]
        assert method.choose({}, step, 1) == drawn  # it needs no batch


def test_blocks_are_counted() -> None:
    """On average 1.5 passes per step for a block of MAX or MIN, 0.5 for any other."""
    method = make(AttentiveNAS, arm='uniform')
    count, steps = torch.zeros(3, 4), 5
    for step in range(steps):
        step_of(method, step)
        for arch in method.paths(step):
            count[range(3), list(arch)] += 1
    assert torch.equal(method.updates, count.long()) and count.sum() == 4 * 3 * steps
    assert method.log_scalars(4) == {'updates_least': count.min() / 5, 'updates_most': count.max() / 5}
    for step in range(2000):
        for part in (1, 2):
            method.count(method.choose({}, step, part))
    extreme = torch.zeros(3, 4, dtype=torch.bool)
    for arch in method.extremes:
        extreme[range(3), list(arch)] = True
    share = (method.updates - count) / 2000
    # Two draws per step, each with 1/4: standard deviation sqrt(2 * 2000 * 3 / 16) / 2000 = 0.014.
    torch.testing.assert_close(share, torch.full((3, 4), 0.5), rtol=0, atol=0.06)
    assert extreme.sum() == 6


@pytest.mark.parametrize(('arm', 'units'), [('best', 6), ('worst', 6), ('uniform', 4), ('random', 4)])
def test_path_units(arm: str, units: float) -> None:
    method = make(AttentiveNAS, arm=arm)
    passes = []
    method.supernet.register_forward_hook(lambda net, *_: passes.append(torch.is_grad_enabled()))
    step_of(method)
    assert sum(passes) + (len(passes) - sum(passes)) / 3 == pytest.approx(units) == method.units(0)
    assert arm in ARMS and method.score(method.paths(0)[0]) is None


@pytest.mark.parametrize('setting', [dict(candidates=0), dict(subnets=1)])
def test_settings_out_of_range(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='allowed: candidates >= 1, subnets >= 2'):
        make(AttentiveNAS, **setting)


def test_unknown_arm() -> None:
    with pytest.raises(ValueError, match="unknown arm 'luck', allowed: best, worst, uniform, random"):
        make(AttentiveNAS, arm='luck')


# ---- the predictor --------------------------------------------------------------------------------------------------


def test_choice_by_predictor(tmp_path: Path) -> None:
    """It reads no image; it is fitted on a search's log and orders the architectures of that log."""
    pytest.importorskip('sklearn')
    value = np.random.default_rng(0).random((3, 4))
    scores = {arch: 50 + sum(value[p, c] for p, c in enumerate(arch)) for arch in ARCHS}
    with SearchLog(tmp_path / 'archs.jsonl', {}) as log:
        for index, (arch, score) in enumerate(scores.items()):
            log.append(SearchRecord(index, SMALL.format(arch), score))
    methods = [make(AttentiveNAS, arm=a, candidates=20, predictor=str(tmp_path / 'archs.jsonl')) for a in ARMS[:2]]
    forest = methods[0].predictor
    assert (forest.forest.n_estimators, forest.forest.max_depth) == (100, 15)
    assert forest.forest.n_features_in_ == 12  # one-hot: 3 positions of 4 candidates
    predicted = dict(zip(ARCHS, forest(ARCHS), strict=True))
    assert np.corrcoef(list(predicted.values()), list(scores.values()))[0, 1] > 0.95
    for step in range(5):
        _, archs = methods[0].bins.draw(methods[0].rng(step, 1), 20)
        best, worst = (method.choose({}, step, 1) for method in methods)
        assert predicted[best] == max(predicted[arch] for arch in archs)
        assert predicted[worst] == min(predicted[arch] for arch in archs)
    assert methods[0].units(0) == 4
    with pytest.raises(ValueError, match='one score per arch is needed, and at least one, got 64 archs and 1 scores'):
        AccuracyPredictor(SMALL, ARCHS, [1.0])


# ---- cost bins ------------------------------------------------------------------------------------------------------

COSTS = [[1.0, 2.0, 4.0, 8.0], [0.0, 3.0, 3.0, 5.0], [2.0, 2.0, 6.0, 9.0]]


def totals(archs: list[Arch]) -> np.ndarray:
    return np.array([sum(COSTS[p][c] for p, c in enumerate(arch)) for arch in archs])


def test_bins_share_the_range() -> None:
    bins, everything = CostBins(SMALL, COSTS, bins=5, pool=20_000), totals(ARCHS)
    assert (bins.least, bins.width) == (3, 19 / 5)
    expected = np.minimum((everything - 3) // (19 / 5), 4)
    assert (bins.bin_of(ARCHS) == expected).all()
    share = np.bincount(expected.astype(int), minlength=5) / 64
    assert np.abs(bins.prior - share).max() < 5 * np.sqrt(0.25 / 20_000)  # five standard deviations at most


def test_draws_stay_in_their_bin() -> None:
    """The factorised draw alone would leave the bin; the rejection corrects that."""
    bins, rng = CostBins(SMALL, COSTS, bins=5, pool=20_000), np.random.default_rng(0)
    seen = np.zeros(5)
    for _ in range(200):
        chosen, archs = bins.draw(rng, 3)
        seen[chosen] += 1
        assert (bins.bin_of(archs) == chosen).all()
    assert np.abs(seen / 200 - bins.prior).max() < 5 * np.sqrt(0.25 / 200)
    loose = [tuple(int(rng.choice(4, p=share)) for share in bins.shares[2]) for _ in range(300)]
    assert (bins.bin_of(loose) != 2).mean() > 0.2


def test_even_bins() -> None:
    bins = CostBins(SMALL, COSTS, bins=5, pool=20_000, even=True)
    assert bins.prior.tolist() == [0.2] * 5
    chosen = [bins.draw(rng, 1)[0] for rng in map(np.random.default_rng, range(300))]
    # Binomial: 60 expected, standard deviation 6.9.
    assert np.abs(np.bincount(chosen) - 60).max() < 4 * 6.9


def test_one_bin_is_uniform() -> None:
    bins, rng = CostBins(SMALL, COSTS), np.random.default_rng(0)
    archs = bins.draw(rng, 3200)[1]
    counts = np.array([archs.count(arch) for arch in ARCHS])
    assert np.abs(counts - 50).max() < 5 * np.sqrt(50) and not bins.bin_of(archs).any()


def test_bins_need_costs_that_differ() -> None:
    with pytest.raises(ValueError, match='bins must be 1, got 4'):
        CostBins(SMALL, [[1.0] * 4] * 3, bins=4)
    with pytest.raises(ValueError, match='must be at least 1, got 0'):
        CostBins(SMALL, COSTS, bins=0)


def test_method_draws_from_its_bins() -> None:
    method = make(AttentiveNAS, arm='uniform', bins=6, pool=5000)
    costs = CostTable(SMALL, SMALL.input_size, 0)
    fixed = costs.fixed.macs
    macs = [costs.of(arch).macs - fixed for arch in method.extremes]
    assert (method.bins.least, method.bins.width) == (macs[1], pytest.approx((macs[0] - macs[1]) / 6))
    assert len({int(method.bins.bin_of([method.choose({}, step, 1)])[0]) for step in range(60)}) >= 4


# ---- two processes --------------------------------------------------------------------------------------------------


def _work(rank: int) -> dict[str, Any]:
    method = make(AttentiveNAS)

    def half(step: int) -> dict[str, Any]:
        return {name: value[4 * rank : 4 * rank + 4] for name, value in batch(step, 8).items()}

    call, paths, alone = wrapped(method), [], []

    def watched(*args: Any) -> dict[str, torch.Tensor]:
        facts, step, part = args
        if part in (1, 2):  # what this rank would take by itself
            _, archs = method.bins.draw(method.rng(step, part), 3)
            alone.append(SMALL.format(archs[int(np.argmin(naive_losses(method, archs, facts, slice(None))))]))
        return call(*args)

    for step in range(4):
        train_both(method, range(step, step + 1), batches=half, call=watched)
        paths.append([SMALL.format(arch) for arch in method.paths(step)])
    return {'state': method.state_dict(), 'paths': paths, 'alone': alone}


@pytest.mark.processes
def test_two_ranks_choose_alike(tmp_path: Path) -> None:
    """Ranks whose own batches prefer different candidates train the same path, the best on both batches together."""
    ranks = run_two_ranks(_work, tmp_path)
    assert ranks[0]['paths'] == ranks[1]['paths']
    assert ranks[0]['alone'] != ranks[1]['alone']  # the reduction is needed
    for name, tensor in ranks[0]['state'].items():
        if 'running_' not in name:  # each rank's BN has seen its own images
            assert torch.equal(tensor, ranks[1]['state'][name]), name
    method, facts = make(AttentiveNAS), batch(0, 8)
    halves = [{name: value[rows] for name, value in facts.items()} for rows in (slice(0, 4), slice(4, 8))]
    for part in (1, 2):
        _, archs = method.bins.draw(method.rng(0, part), 3)
        means = np.mean([naive_losses(method, archs, half, slice(None)) for half in halves], axis=0)
        assert ranks[0]['paths'][0][part] == SMALL.format(archs[int(means.argmin())])


# ---- through the runner ----------------------------------------------------------------------------------------------


@pytest.mark.mm
@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_training_through_the_runner_resumes_exactly(processes: int, tmp_path: Path) -> None:
    """The update counts too."""
    logged = resumes_exactly('attentivenas_pinas-nano-supernet_b128-coslr_fmnist', tmp_path, processes=processes)
    assert len(logged[6, 'paths']) == 4 and {(6, name) for name in ('same_winner', 'updates_most')} <= set(logged)
    updates = engine_utils.last_checkpoint(tmp_path / 'whole')['state_dict']['method.updates']
    assert updates.sum(dim=1).tolist() == [4 * 6] * 3
