"""Both shifts against naive re-implementations."""

import copy
import itertools

import numpy as np
import pytest
import torch

from pinas_zoo.methods import SPOS, FairNAS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.ranking.shifts import (
    FEATURE_SHIFTS,
    UpdateWatch,
    batch_statistics,
    feature_shift,
    linear_cka,
    shift_of_pair,
)
from pinas_zoo.space import SearchSpace

SMALL = SearchSpace('small', depths=(1, 2), planes=(16, 32), strides=(1, 2), stem_widths=(8, 8, 16), input_size=16)


def supernet(zero_init_last: bool = False) -> SuperNet:
    torch.manual_seed(0)
    return SuperNet(SMALL, zero_init_last=zero_init_last).double()


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64)


# ---- feature shift ------------------------------------------------------------------------------


def test_cka_is_that_of_the_features() -> None:
    """|Y'X|^2 / (|X'X| |Y'Y|) of centred features, against our Gram matrices."""
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
    a, b = x - x.mean(0), y - y.mean(0)
    expected = (b.t() @ a).norm() ** 2 / ((a.t() @ a).norm() * (b.t() @ b).norm())
    assert linear_cka(x, y) == pytest.approx(expected.item(), rel=1e-12)
    turned = x @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0] * 3 + 1
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, torch.ones_like(x)) == 0


def test_shift_of_a_pair_by_hand() -> None:
    x, y = images(4), images(4) + 0.3
    result = shift_of_pair(x, y)
    assert set(result) == set(FEATURE_SHIFTS)
    for name, statistic in (('mean', np.mean), ('variance', lambda v: np.var(v, ddof=1))):
        a, b = ([statistic(side[:, c].numpy()) for c in range(3)] for side in (x, y))
        norms = np.linalg.norm(a), np.linalg.norm(b)
        expected = np.linalg.norm(np.subtract(a, b)) / np.mean(norms)
        assert result[name] == pytest.approx(expected, rel=1e-10)
    cosines = [float(a.flatten() @ b.flatten() / (a.norm() * b.norm())) for a, b in zip(x, y, strict=True)]
    assert result['cosine'] == pytest.approx(1 - np.mean(cosines), rel=1e-10)
    assert all(value == pytest.approx(0, abs=1e-12) for value in shift_of_pair(x, x).values())


def test_feature_shift_is_that_of_stand_alone_networks() -> None:
    net, x = supernet(), images()
    rng = np.random.default_rng(0)
    archs = [SMALL.sample(rng) for _ in range(3)]
    inputs = []
    for arch in archs:
        alone, seen = net.extract(arch).train(), []
        blocks = [block for stage in (alone.layer1, alone.layer2) for block in stage]
        for block in blocks:
            block.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].float()))
        with torch.no_grad():
            alone.forward_features(x)
        inputs.append(seen)
    table = feature_shift(net, x, archs)
    assert len(table) == SMALL.num_positions
    for position, row in enumerate(table):
        pairs = [shift_of_pair(a[position], b[position]) for a, b in itertools.combinations(inputs, 2)]
        for name in FEATURE_SHIFTS:
            # The inputs are rounded to float32 on both sides.
            assert row[name] == pytest.approx(np.mean([pair[name] for pair in pairs]), abs=1e-6)
    assert all(table[0][name] == pytest.approx(0, abs=1e-6) for name in FEATURE_SHIFTS)
    assert all(table[-1][name] > 1e-3 for name in FEATURE_SHIFTS)


def test_blocks_that_start_as_shortcuts_shift_nothing() -> None:
    table = feature_shift(supernet(zero_init_last=True), images(), [(0, 1, 2), (3, 2, 1)])
    assert all(abs(value) < 1e-6 for row in table for value in row.values())


@pytest.mark.parametrize('training', [True, False])
def test_measuring_leaves_the_supernet_alone(training: bool) -> None:
    net = supernet().train(training)
    before = copy.deepcopy(net.state_dict())
    feature_shift(net, images(), [(0, 1, 2), (3, 2, 1)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(norm.training == training and norm.track_running_stats for norm in norms)
    with pytest.raises(RuntimeError), batch_statistics(net):
        assert not any(norm.track_running_stats for norm in norms)
        raise RuntimeError
    assert all(norm.training == training and norm.track_running_stats for norm in norms)


# ---- parameter shift ----------------------------------------------------------------------------


def batch(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    image = torch.randn(4, 3, 16, 16, generator=draw, dtype=torch.float64)
    return {'image': image, 'label': torch.randint(5, (4,), generator=draw)}


@pytest.mark.parametrize('kind', [SPOS, FairNAS])
def test_successive_updates(kind: type) -> None:
    """The trainer's gradients, kept whole and compared afterwards."""
    method = kind(supernet(), 5, seed=1).double()
    position = method.supernet.blocks[1]
    watch, kept = UpdateWatch(position), {choice: [] for choice in range(4)}
    optimiser = torch.optim.SGD(method.param_groups()['weights'], 0.1)
    taken = []
    for step in range(12):
        optimiser.zero_grad()
        for part in range(method.parts(step)):
            method.loss(batch(step), step, part)['loss'].backward()
        watch.after_backward(method.paths(step))
        for choice in range(4):
            if any(path[1] == choice for path in method.paths(step)):
                gradient = torch.cat([p.grad.flatten() for p in position[choice].parameters()])
                kept[choice].append((gradient.float().clone(), step))
        optimiser.step()
        if step % 6 == 5:
            taken.append(watch.take())
    expected = [[], []]
    for seen in kept.values():
        for (one, earlier), (other, later) in itertools.pairwise(seen):
            if method.paths(earlier) != method.paths(later):
                expected[later // 6].append(float(one @ other / (one.norm() * other.norm())))
    np.testing.assert_allclose(taken, [np.mean(cosines) for cosines in expected], rtol=1e-5)
    assert watch.take() is None


def test_updates_of_the_same_paths_are_not_compared() -> None:
    net = supernet()
    watch, x = UpdateWatch(net.blocks[1]), images()
    for paths in ([(0, 1, 2)], [(0, 1, 2)], [(1, 1, 2)]):
        net.zero_grad()
        net(x, paths[0]).sum().backward()
        watch.after_backward(paths)
    assert len(watch.cosines) == 1
