"""What sparse supernet and EnTranNAS share, over two ranks."""

from typing import Any

import pytest
import torch
from peer_toys import pair, run_two_ranks, wrapped
from test_methods import gradients, make

from pinas_zoo.methods import AdamProximal, EnTranNAS, SparseSupernet
from pinas_zoo.methods.mixture import MixtureMethod

KINDS = (SparseSupernet, EnTranNAS)


def toy(kind: type[MixtureMethod]) -> MixtureMethod:
    return make(kind, warmup_steps=1)


def images(rank: int, step: int) -> dict[str, Any]:
    return pair(10 * rank + step)


def _work(rank: int) -> dict[str, Any]:
    found = {}
    for kind in KINDS:
        method = toy(kind)
        call, groups = wrapped(method), method.param_groups()
        weights = torch.optim.SGD(groups['weights'], 0.05, 0.9)
        arch = torch.optim.Adam(groups['arch'], 0.05)
        if kind is SparseSupernet:
            arch = AdamProximal(groups['arch'], 0.02, l1=0.5)
        for step in range(4):
            for part in range(method.parts(step)):
                call(images(rank, step), step, part)['loss'].backward()
            if step == 1:
                found[f'{kind.__name__} gradients'] = gradients(method)
            for optimiser in (weights, arch):
                optimiser.step()
                optimiser.zero_grad()
        found[kind.__name__] = method.state_dict()
    return found


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_two_ranks(_work, tmp_path_factory.mktemp('ranks'))


@pytest.mark.processes
@pytest.mark.parametrize('kind', KINDS)
def test_two_ranks_stay_equal(kind: type[MixtureMethod], ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[kind.__name__] for rank in ranks)
    for name, tensor in first.items():
        if 'running_' not in name:  # each rank's BN has seen its own images
            assert torch.equal(tensor, second[name]), name
    start = toy(kind).state_dict()
    arch = [name for name in start if name.startswith(('factors', 'alpha'))]
    assert any(not torch.equal(start[name], first[name]) for name in arch)


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_of_both_parts_are_means_over_ranks(kind: type[MixtureMethod], ranks: list[dict[str, Any]]) -> None:
    """Also the part without its own synchronisation: the last part of the step synchronises its parameters."""
    method = toy(kind)
    groups = method.param_groups()
    weights = torch.optim.SGD(groups['weights'], 0.05, 0.9)
    means: dict[str, torch.Tensor] = {}
    for step in range(2):  # the warm-up's step first, as both ranks did it
        alone = []
        for rank in range(2):
            method.zero_grad()
            for part in range(method.parts(step)):
                method.loss(images(rank, step), step, part)['loss'].backward()
            alone.append(gradients(method))
        means = {name: (gradient + alone[1][name]) / 2 for name, gradient in alone[0].items()}
        for name, parameter in method.named_parameters():
            parameter.grad = means.get(name)
        weights.step()
    for rank in ranks:
        found = rank[f'{kind.__name__} gradients']
        assert found.keys() == means.keys() and any(name.startswith(('factors', 'alpha')) for name in means)
        for name, gradient in means.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12, msg=name)
