"""Training-free scores against slow re-implementations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pinas_zoo.files import read_lines
from pinas_zoo.ranking.proxies import (
    PROXIES,
    az_nas_parts,
    az_nas_ranks,
    extend_proxies,
    naswot,
    new_network,
    proxies_of,
    proxy_scores,
    synflow,
)
from pinas_zoo.ranking.standalone import Recipe
from pinas_zoo.ranking.task import PairTask
from pinas_zoo.ranking.truth import Study, Truth, TruthRow
from pinas_zoo.space import SearchSpace

SPACE = SearchSpace('small', (1, 2), (16, 16), (1, 2), (8, 8, 16), stem_pool=False, expansion=1, input_size=12)


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """Both ways to write a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.act(self.first(x)).mean((2, 3))))


def test_naswot_counts_equal_relus() -> None:
    torch.manual_seed(0)
    net, x = Small(), images()
    one = net.first(x)
    codes = torch.cat([(one > 0).flatten(1), net.second(one.relu().mean((2, 3))) > 0], dim=1)
    kernel = [[sum(int(a == b) for a, b in zip(p, q, strict=True)) for q in codes.tolist()] for p in codes.tolist()]
    assert naswot(net, x) == pytest.approx(np.linalg.slogdet(np.array(kernel, dtype=float))[1], rel=1e-9)


def test_synflow_of_a_chain_is_the_same_at_every_layer() -> None:
    """Every layer's sum is R itself, whatever the signs; BN does nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1, bias=False))
    net(torch.randn(4, 2, 3, 3) * 9)  # running statistics that must not count
    first, last = (net[i].weight.detach().abs().double()[..., 0, 0] for i in (0, 3))
    flow = float((last @ first @ torch.ones(2, dtype=torch.double)).sum()) * 9
    assert synflow(net, (2, 3, 3)) == pytest.approx(math.log(2 * flow), rel=1e-4)  # BN's epsilon


def entropy(feature: torch.Tensor) -> float:
    rows = feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]).double().numpy()
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True)).clip(0)
    share = values / values.sum()
    return float(-sum(s * math.log(s + 1e-8) for s in share))


def test_az_nas_parts() -> None:
    net, x = new_network((0, 2, 1), SPACE, 3, 5, seed=1), images()
    found = az_nas_parts(net, x, torch.Generator().manual_seed(4))
    _, features = net.forward_intermediates(x)
    inner = net.layer2[0](net.layer1(net.forward_stem(x)))
    features = [features[0], features[1], inner, features[2]]
    entropies = [entropy(f.detach()) for f in features]
    assert found['expressivity'] == pytest.approx(sum(entropies), rel=1e-5)
    assert found['progressivity'] == pytest.approx(min(np.diff(entropies)), rel=1e-4)
    signs, steps = torch.Generator().manual_seed(4), []
    for before, block in ((features[0], net.layer1), (features[1], net.layer2[0]), (inner, net.layer2[1])):
        start = before.detach().requires_grad_()
        out = block(start)
        g_out = torch.randint(2, out.shape, generator=signs).float() * 2 - 1
        g_in = torch.autograd.grad(out, start, g_out)[0]
        matrix = 0.0
        stride = g_in.shape[-1] // g_out.shape[-1]
        for n in range(len(x)):
            for row in range(g_out.shape[2]):
                for column in range(g_out.shape[3]):
                    patch = g_in[n, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
                    matrix = matrix + torch.outer(patch.flatten(), g_out[n, :, row, column])
        largest = float(torch.linalg.svdvals(matrix / (len(x) * g_out.shape[2] * g_out.shape[3]))[0])
        steps.append(2 - largest - 1 / (largest + 1e-6))
    assert found['trainability'] == pytest.approx(np.mean(steps), rel=1e-4)


def test_az_nas_adds_logarithms_of_ranks() -> None:
    parts = [{'a': 1.0, 'b': 5.0}, {'a': 2.0, 'b': 4.0}, {'a': 3.0, 'b': 6.0}]
    assert az_nas_ranks(parts) == pytest.approx([math.log(2 / 9), math.log(2 / 9), 0.0])


def test_scores_depend_on_the_seed_alone() -> None:
    archs = [(0, 0, 0), (3, 1, 2), (2, 2, 2)]
    first, again, other = (proxy_scores(SPACE, archs, images(), 5, seed) for seed in (0, 0, 1))
    assert first == again and set(first) == set(PROXIES) and first['naswot'] != other['naswot']
    alone = proxy_scores(SPACE, archs[:1], images(), 5, 0, ['synflow', 'naswot'])
    assert alone == {name: first[name][:1] for name in ('synflow', 'naswot')}
    with pytest.raises(ValueError, match="unknown scores \\['snip'\\]"):
        proxy_scores(SPACE, archs, images(), 5, names=['snip'])


def test_table_continues(tmp_path: Path) -> None:
    task = PairTask(item=8, patch=2, train=16, heldout=8, test=8)
    space = SearchSpace('small', (1, 1), (16, 16), (1, 2), (8, 8, 8), stem_stride=1, stem_pool=False, expansion=1)
    study = Study(space, task, Recipe(steps=1))
    archs = [(0, 0), (1, 0), (2, 3)]
    rows = tuple(TruthRow(i, arch, (1.0, 2.0), (1.0, 1.0), 1, 1, (1.0, 1.0)) for i, arch in enumerate(archs))
    header = json.loads(json.dumps({'space': space.to_dict(), 'task': {'x': 1}, 'data': 'y'}))  # as read from a file
    truth = Truth(header, study, rows)
    extend_proxies(tmp_path / 'p.jsonl', truth, 1, images=8)
    first = read_lines(tmp_path / 'p.jsonl')
    extend_proxies(tmp_path / 'p.jsonl', truth, 2, images=8)
    lines = read_lines(tmp_path / 'p.jsonl')
    assert lines[:1] == first and [line['seed'] for line in lines] == [0, 1]
    table = proxies_of([{'contestant': 'spos'}, *lines], truth, 'tuning')
    assert [len(values) for values in table['aznas']] == [2, 2]
    assert table['synflow'][1].tolist() == [lines[1]['proxies']['synflow'][name] for name in ('0-0', '2-3')]
