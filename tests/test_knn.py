"""k-nearest-neighbour accuracy: the vote, the features, and a hook that does not change the training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine')
pytestmark = pytest.mark.mm

from pinas_zoo.mm.engine.knn_hook import KNNHook, path_features, supernet_in  # noqa: E402
from pinas_zoo.models.supernet import SuperNet  # noqa: E402
from pinas_zoo.probes.knn import knn_top1  # noqa: E402

VIEW = dict(source=dict(kind='digits', split='train', limit=70), size=28)


def test_the_vote() -> None:
    """Against a loop over queries, neighbours and classes."""
    draw = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(60, 8, generator=draw), torch.randn(25, 8, generator=draw)
    labels, wanted = torch.randint(4, (60,), generator=draw), torch.randint(4, (25,), generator=draw)
    for k, temperature in ((1, 0.07), (5, 0.5), (60, 0.02)):
        hits = 0
        for query, label in zip(queries, wanted, strict=True):
            similarity = torch.nn.functional.cosine_similarity(query[None], bank)
            votes = [0.0] * 4
            for place in similarity.argsort(descending=True)[:k]:
                votes[labels[place]] += float(np.exp(float(similarity[place]) / temperature))
            hits += int(np.argmax(votes)) == int(label)
        assert knn_top1(bank, labels, queries, wanted, k, temperature) == pytest.approx(100 * hits / 25)
    with pytest.raises(ValueError, match=r'k must be in 1..60 .* got 61'):
        knn_top1(bank, labels, queries, wanted, 61)


def test_features_are_those_of_batch_statistics() -> None:
    net = SuperNet('pinas_nano', zero_init_last=False).train()
    arch, images = net.space.parse('30-32-20-03'), torch.randn(12, 3, 28, 28)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    features = path_features(net, arch, [images[:6], images[6:]])
    assert net.training and all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        expected = torch.cat([net(part, arch).mean((2, 3)) for part in (images[:6], images[6:])])
    assert torch.equal(features, expected)


def test_looking_changes_nothing() -> None:
    hook = KNNHook(VIEW, dict(VIEW, source=dict(kind='digits', split='test', limit=40)), paths=2, k=5, batch_size=16)
    torch.manual_seed(0)
    net = SuperNet('pinas_nano', zero_init_last=False)
    first = hook.accuracy(net)
    assert first == hook.accuracy(net) and 0 < first < 100
    assert [len(part) for part in hook._data[0]] == [14] * 5  # no small rest
    assert supernet_in(torch.nn.Sequential(torch.nn.ReLU(), net)) is net
    with pytest.raises(ValueError, match='has no supernet'):
        supernet_in(torch.nn.ReLU())
    with pytest.raises(ValueError, match='must be at least 1, got 0'):
        KNNHook(VIEW, VIEW, interval=0)


def test_good_features_score_high() -> None:
    """On the pixels of digits it is far above chance, so the number distinguishes features."""
    hook = KNNHook(dict(VIEW, source=dict(kind='digits', split='train', limit=600)), VIEW)
    bank, labels = hook._load(hook.bank, torch.device('cpu'))
    queries, wanted = hook._load(dict(VIEW, source=dict(kind='digits', split='test', limit=200)), torch.device('cpu'))
    flat = [torch.cat(part).flatten(1) for part in (bank, queries)]
    assert knn_top1(flat[0], labels, flat[1], wanted) > 80
