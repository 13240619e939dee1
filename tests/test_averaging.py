"""The fused moving average against mmengine's, tensor by tensor."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')
from mmengine.model import ExponentialMovingAverage as PerTensorAverage

from pinas_zoo.mm.engine.averaging import ExponentialMovingAverage

pytestmark = pytest.mark.mm


@pytest.mark.parametrize('settings', [{'update_buffers': True}, {'update_buffers': False}, {'interval': 2}])
def test_it_equals_mmengine_bit_for_bit(settings):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1).to(memory_format=torch.channels_last)
    )
    ours, theirs = (
        kind(copy.deepcopy(net), momentum=0.1, **settings) for kind in (ExponentialMovingAverage, PerTensorAverage)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        ours.update_parameters(net)
        theirs.update_parameters(net)
        expected = theirs.state_dict()
        assert {name for name, tensor in ours.state_dict().items() if not torch.equal(tensor, expected[name])} == set()
    assert not torch.equal(ours.module[0].weight, net[0].weight)
    assert not torch.equal(ours.module[1].running_mean, torch.zeros(4))
