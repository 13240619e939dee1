"""RLNAS: labels that belong to images and to nothing else, and the angle against stand-alone copies."""

import copy
import math

import numpy as np
import pytest
import torch
from test_methods import CLASSES, SKIPPING, SMALL, batch, make, train

from pinas_zoo.methods import RLNAS, SPOS
from pinas_zoo.methods.rlnas import random_labels
from pinas_zoo.space import SearchSpace


def test_labels_are_uniform_and_belong_to_images() -> None:
    index = torch.arange(50_000)
    labels = random_labels(index, 10, seed=3)
    assert torch.equal(labels[torch.tensor([7, 7, 49_000])], random_labels(torch.tensor([7, 7, 49_000]), 10, 3))
    counts = torch.bincount(labels, minlength=10)
    assert ((counts - 5000).abs() < 4 * math.sqrt(5000 * 0.9)).all()  # binomial, four standard deviations
    pairs = torch.bincount(labels[:-1] * 10 + labels[1:], minlength=100)
    assert ((pairs - 500).abs() < 5 * math.sqrt(500)).all()  # neighbours are independent
    other = random_labels(index, 10, seed=1000)
    assert 0.08 < (labels == other).float().mean() < 0.12


def test_training_is_that_of_spos_on_the_random_labels() -> None:
    method, spos = make(RLNAS), make(SPOS)
    spos.load_state_dict({k: v for k, v in method.state_dict().items() if k != 'initial'})
    facts = batch(2)
    theirs = facts | {'label': random_labels(facts['index'], CLASSES, 3)}
    assert torch.equal(method.loss(facts, 2)['loss'], spos.loss(theirs, 2)['loss'])
    shuffled = facts | {'label': facts['label'].flip(0)}
    assert torch.equal(method.loss(shuffled, 2)['loss'], method.loss(facts, 2)['loss'])
    with pytest.raises(ValueError, match="the batch needs 'index'"):
        method.loss({k: v for k, v in facts.items() if k != 'index'}, 2)


@pytest.mark.parametrize('space', [SMALL, SKIPPING])
def test_score_is_the_angle_between_whole_networks(space: SearchSpace) -> None:
    method = make(RLNAS, space)
    start = copy.deepcopy(method)
    archs = [space.sample(np.random.default_rng(k)) for k in range(6)]
    assert all(method.score(arch) == pytest.approx(0, abs=1e-6) for arch in archs)
    train(method, 8)
    for arch in archs:
        vectors = []
        for net in (start, method):
            alone = net.supernet.extract(arch)
            weights = [p for p in alone.parameters() if p.ndim > 1] + [net.head.weight]
            vectors.append(torch.cat([w.detach().flatten() for w in weights]))
        cosine = torch.nn.functional.cosine_similarity(*vectors, dim=0)
        assert method.score(arch) == pytest.approx(math.acos(cosine), rel=1e-9) and method.score(arch) > 1e-3


def test_the_start_is_in_the_state() -> None:
    method, other = make(RLNAS), make(RLNAS)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    train(method, 3)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert other.score((0, 1, 2)) == method.score((0, 1, 2)) > 0


def test_branches_start_awake() -> None:
    for wake, value in ((True, 1.0), (False, 0.0)):
        net = make(SPOS).supernet
        for position in net.blocks:
            for block in position.candidates:
                torch.nn.init.zeros_(block.bn3.weight)
        RLNAS(net, CLASSES, wake=wake)
        assert {block.bn3.weight.mean().item() for position in net.blocks for block in position.candidates} == {value}
