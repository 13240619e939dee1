"""The patch stem and the pairs of items: the ranking study's networks on plain images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F

import pinas_zoo  # noqa: F401  registers the timm names
from pinas_zoo.data import open_source
from pinas_zoo.data.pairs import PairSource, pair_class, pair_names
from pinas_zoo.models.cost import CostTable, count
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.ranking.spaces import RANK_SPACE
from pinas_zoo.space import PINAS_NANO, PINAS_PATCH, SearchSpace
from pinas_zoo.weights.shapes import backbone_shapes, find_arch, find_space, shapes_of


def test_the_stem_sees_patches_as_channels() -> None:
    """Bit-equal to the study's network on images that were cut into patches beforehand."""
    plain = PiNASNet('42-31', PINAS_PATCH, num_classes=55).eval()
    cut = PiNASNet('42-31', RANK_SPACE, num_classes=55, in_chans=3 * 16).eval()
    cut.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 20, 40)
    with torch.no_grad():
        assert torch.equal(plain(images), cut(F.pixel_unshuffle(images, 4)))
        assert [tuple(x.shape[-2:]) for x in plain.forward_intermediates(images)[1]] == [(5, 10), (5, 10), (3, 5)]
    assert [info['reduction'] for info in plain.feature_info] == [4, 4, 8]


def test_costs_extraction_and_files(tmp_path) -> None:
    cost, net = CostTable(PINAS_PATCH, (20, 40), 55), PiNASNet('40-13', PINAS_PATCH, num_classes=55)
    assert cost.of('40-13') == count(net, (20, 40))
    supernet = SuperNet('pinas_patch')
    assert supernet.extract('40-13').state_dict().keys() == {k for k in net.state_dict() if not k.startswith('fc.')}
    shapes = shapes_of(net.state_dict())
    assert shapes == backbone_shapes(PINAS_PATCH, net.arch, 55)
    assert find_space(shapes) is PINAS_PATCH and find_arch(shapes, PINAS_PATCH) == net.arch
    model = timm.create_model('pinas', space='pinas_patch', arch='40-13', num_classes=7)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)
    with torch.no_grad():
        scripted = torch.jit.script(model.eval())
        assert torch.equal(scripted(torch.ones(1, 3, 20, 40)), model(torch.ones(1, 3, 20, 40)))


def test_a_recorded_space_stays_what_it_was() -> None:
    assert 'stem_patch' not in PINAS_NANO.to_dict() and PINAS_PATCH.to_dict()['stem_patch'] == 4
    assert SearchSpace.from_dict(PINAS_PATCH.to_dict()) == PINAS_PATCH
    assert replace(RANK_SPACE, name='pinas_patch', stem_patch=4) == PINAS_PATCH
    with pytest.raises(ValueError, match='stem_patch must be an integer of at least 1, got 0'):
        replace(PINAS_PATCH, stem_patch=0)


def test_pairs() -> None:
    spec = dict(kind='pairs', split='train', pairs=300, items_limit=1000, pair_seed=1)
    source = open_source(spec)
    assert isinstance(source, PairSource) and len(source) == 300 and source.load(0).shape == (3, 20, 40)
    assert torch.equal(source.tensors()[0], open_source(spec).tensors()[0])
    others = (dict(spec, pair_seed=2), dict(spec, items_start=2000), dict(spec, split='test'))
    assert not any(torch.equal(source.tensors()[0], open_source(other).tensors()[0]) for other in others)
    classes = ('a', 'b', 'c')
    names = pair_names(classes)
    for first in range(3):
        for second in range(3):
            number = int(pair_class(torch.tensor(first), torch.tensor(second)))
            assert names[number] == ' + '.join(sorted((classes[first], classes[second])))
    assert len(source.classes) == len(set(source.classes)) == 55
    with pytest.raises(ValueError, match='pairs and item must be at least 1'):
        open_source(dict(spec, item=0))
