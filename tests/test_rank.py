"""Prefix-shared evaluation equals one path at a time, and does not change the supernet."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_on_ranks
from torch import nn
from torch.optim.swa_utils import update_bn

from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.evaluate import Evaluator, PathScore, PrefixTree, ScoreCache
from pinas_zoo.space import Candidate, SearchSpace

SPACE = SearchSpace(
    'ranked',
    depths=(1, 2, 1),
    planes=(16, 16, 32),
    strides=(1, 2, 2),
    stem_widths=(8, 8, 16),
    candidates=(Candidate(), Candidate(radix=2), Candidate(skip=True), Candidate(2, 2, 40)),
)


def problem() -> tuple[SuperNet, nn.Linear, list, list, list]:
    torch.manual_seed(0)
    net, head = SuperNet(SPACE, zero_init_last=False), nn.Linear(SPACE.num_features, 5)
    calibration = [torch.randn(8, 3, 16, 16) * (i + 1) for i in range(3)]
    evaluation = [(torch.randn(n, 3, 16, 16), torch.randint(5, (n,))) for n in (8, 8, 5)]
    rng = np.random.default_rng(0)
    archs = [SPACE.sample(rng) for _ in range(12)]
    return net, head, calibration, evaluation, [*archs, archs[3]]


class PathModule(nn.Module):
    """One path as a module, for update_bn."""

    def __init__(self, net: SuperNet, arch) -> None:
        super().__init__()
        self.net, self.arch = net, arch

    def forward(self, x):
        return self.net(x, self.arch)


def one_by_one(net, head, calibration, evaluation, archs) -> list[PathScore]:
    scores = []
    for arch in archs:
        module = PathModule(copy.deepcopy(net), arch)
        update_bn(calibration, module.train())
        module.eval()
        hits = loss = count = 0
        with torch.no_grad():
            for images, labels in evaluation:
                logits = head(module(images).mean((2, 3)))
                hits += int((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction='sum'))
                count += len(labels)
        scores.append(PathScore(arch, 100 * hits / count, loss / count, count))
    return scores


def assert_equal_scores(ours, expected) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert a.arch == b.arch and a.images == b.images
        assert abs(a.top1 - b.top1) < 1e-5 and abs(a.loss - b.loss) < 1e-5


def test_equals_one_by_one_evaluation():
    net, head, calibration, evaluation, archs = problem()
    ours = Evaluator(net, head, calibration, evaluation)(archs)
    expected = one_by_one(net, head, calibration, evaluation, archs)
    assert_equal_scores(ours, expected)
    assert len({score.loss for score in ours}) > 5


def test_supernet_is_unchanged_bit_for_bit():
    net, head, calibration, evaluation, archs = problem()
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    Evaluator(net, head, calibration, evaluation)(archs)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert net.training and all(m.momentum == 0.1 and m.training for m in norms)


def test_supernet_is_unchanged_after_an_error():
    net, _, _, _, archs = problem()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError):
        PrefixTree(net, archs).calibrate([torch.randn(8, 3, 16, 16), torch.randn(8, 4, 16, 16)])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_every_prefix_runs_once():
    net, _, calibration, _, archs = problem()
    tree, calls = PrefixTree(net, archs), []
    for position in net.blocks:
        for candidate in position.candidates:
            candidate.register_forward_hook(lambda *_: calls.append(1))
    tree.calibrate(calibration)
    prefixes = {arch[: n + 1] for arch in archs for n in range(len(arch))}
    assert tree.num_blocks == len(prefixes) and len(calls) == len(prefixes) * len(calibration)


def test_cache_is_read_and_appended(tmp_path):
    net, head, calibration, evaluation, archs = problem()
    path, key = tmp_path / 'scores.jsonl', ('hash', 'train[:24]', 'hold-out[:21]')
    first = Evaluator(net, head, calibration, evaluation, ScoreCache(path, key))(archs[:5])
    lines = path.read_text().splitlines()
    assert len(lines) == len(set(archs[:5])) and json.loads(lines[0])['key'] == list(key)
    with open(path, 'a') as file:
        file.write('{"key": ["ha')  # a killed run
    nothing = Evaluator(net, head, [], [], ScoreCache(path, key))
    assert nothing(archs[:5]) == first
    again = Evaluator(net, head, calibration, evaluation, ScoreCache(path, key))
    assert len(again(archs)) == len(archs)
    assert len(ScoreCache(path, key).scores) == len(set(archs))
    assert not ScoreCache(path, ('other', 'x', 'y')).scores


def test_errors():
    net, _, _, _, archs = problem()
    with pytest.raises(ValueError, match='at least one arch, got none'):
        PrefixTree(net, [])
    with pytest.raises(ValueError, match='at least one batch'):
        PrefixTree(net, archs).calibrate([])
    with pytest.raises(ValueError, match='SyncBN'):
        PrefixTree(nn.SyncBatchNorm.convert_sync_batchnorm(net), archs)


def _rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    net, head, calibration, evaluation, archs = problem()
    calls = []
    net.conv1.register_forward_hook(lambda *_: calls.append(1))
    cache = ScoreCache(f'{folder}/scores.jsonl', ('k',))
    scores = Evaluator(net, head, calibration, evaluation, cache)(archs)
    torch.save({'scores': [[*s.arch, s.top1, s.loss] for s in scores]}, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


@pytest.mark.processes
def test_ranks_split_the_paths(tmp_path):
    run_on_ranks(_rank_main, str(tmp_path))
    a, b = (torch.load(tmp_path / f'{rank}.pt', weights_only=True)['scores'] for rank in (0, 1))
    net, head, calibration, evaluation, archs = problem()
    expected = [[*s.arch, s.top1, s.loss] for s in one_by_one(net, head, calibration, evaluation, archs)]
    assert a == b
    np.testing.assert_allclose(a, expected, atol=1e-5)
    assert len((tmp_path / 'scores.jsonl').read_text().splitlines()) == len(set(archs))
