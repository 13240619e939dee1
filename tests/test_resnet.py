"""The plain ResNet of the transfer study: its skeleton, its MACs, its weights from a classifier's checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)
pytestmark = pytest.mark.mm

from pinas_zoo.mm.resnet import NanoResNet, ResNetBackbone, matched_channels  # noqa: E402
from pinas_zoo.models.cost import CostTable, count  # noqa: E402
from pinas_zoo.models.network import PiNASNet  # noqa: E402
from pinas_zoo.registry import MODELS  # noqa: E402
from pinas_zoo.space import PINAS_NANO  # noqa: E402

CHANNELS = (9, 18, 36, 54)


def backbone(**options) -> ResNetBackbone:
    return MODELS.build(dict(type='pinas_zoo.ResNetBackbone', channels=CHANNELS, **options))


@pytest.mark.parametrize('stride', [8, 32])
def test_skeleton_is_the_nano_networks(stride: int) -> None:
    """As many stages, at the same strides, after the same stem."""
    net, nano = backbone(output_stride=stride).eval(), PiNASNet('30-32-20-03', PINAS_NANO, output_stride=stride).eval()
    images = torch.randn(2, 3, 64, 64)
    ours = net(images)
    theirs = nano.forward_intermediates(images, indices=4, intermediates_only=True)
    assert [x.shape[2:] for x in ours] == [x.shape[2:] for x in theirs]
    assert [x.shape[1] for x in ours] == [4 * channels for channels in CHANNELS]
    assert [tuple(p.shape) for p in net.conv1.parameters()] == [tuple(p.shape) for p in nano.conv1.parameters()]
    (last,) = backbone(output_stride=stride, out_indices=(3,)).eval()(images)
    assert last.shape == ours[3].shape


@pytest.mark.parametrize('arch', ['30-32-20-03', '00-00-00-00', '33-33-33-33'])
def test_macs_are_matched(arch: str) -> None:
    macs = CostTable(PINAS_NANO, 128, 0).of(arch).macs
    channels = matched_channels(macs, 128)
    assert count(NanoResNet(channels, num_classes=0), 128).macs == pytest.approx(macs, rel=0.01)
    assert channels == tuple(sorted(channels))


def test_macs_out_of_reach() -> None:
    with pytest.raises(ValueError, match='MACs must be in .* at 128 px, got 1000'):
        matched_channels(1000, 128)
    with pytest.raises(ValueError, match='channels must be 4 numbers'):
        NanoResNet((16, 32))


def test_weights_come_from_a_classifier(tmp_path: Path) -> None:
    classifier = timm.create_model('resnet_nano', num_classes=10, channels=CHANNELS)
    state = {f'net.{name}': tensor for name, tensor in classifier.state_dict().items()}
    torch.save({'state_dict': {**state, 'other': torch.zeros(1)}}, tmp_path / 'iter_1.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'iter_1.pth'), prefix='net.')
    net = backbone(init_cfg=init_cfg)
    assert not torch.equal(net.conv1[0].weight, classifier.conv1[0].weight)
    net.init_weights()
    assert all(torch.equal(tensor, state[f'net.{name}']) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match='mismatched: layer1'):
        MODELS.build(dict(type='pinas_zoo.ResNetBackbone', channels=(8, 18, 36, 54), init_cfg=init_cfg)).init_weights()
    with pytest.raises(ValueError, match='no pre-trained weights'):
        timm.create_model('resnet_nano', pretrained=True)
