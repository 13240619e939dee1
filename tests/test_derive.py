"""From a supernet to a file: calibration, metadata, and timm models that read them back."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import pinas_zoo
from pinas_zoo.files import file_sha256
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.derive import backbone_metadata, derive, save_backbone
from pinas_zoo.space import Candidate, SearchSpace
from pinas_zoo.weights.load import read_weights

SPACE = SearchSpace(
    'derived',
    depths=(1, 2),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(8, 8, 16),
    stem_pool=False,
    candidates=(Candidate(), Candidate(radix=2), Candidate(skip=True)),
    input_size=16,
)
ARCH = '1-02'


class PathModule(nn.Module):
    """One path as a module, for update_bn."""

    def __init__(self, supernet: SuperNet, arch: str) -> None:
        super().__init__()
        self.supernet, self.arch = supernet, arch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.supernet(x, self.arch)


@pytest.fixture
def supernet() -> SuperNet:
    net = SuperNet(SPACE, zero_init_last=False)
    with torch.no_grad():
        for name, tensor in net.named_buffers():
            if 'running' in name:
                tensor.uniform_(0.5, 1.5)
    return net


def batches() -> list[torch.Tensor]:
    return [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) * (i + 1) for i in range(3)]


def test_without_calibration_it_is_the_extraction(supernet: SuperNet) -> None:
    net, x = derive(supernet, ARCH), batches()[0]
    assert net.num_classes == 0 and not any(module.training for module in net.modules())
    with torch.no_grad():
        assert torch.equal(net.forward_features(x), supernet.eval()(x, ARCH))


def test_calibration_is_update_bn_on_the_path(supernet: SuperNet) -> None:
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    net = derive(supernet, ARCH, batches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert not any(module.training for module in net.modules())
    update_bn(batches(), PathModule(supernet, ARCH).train())
    expected = supernet.path(ARCH).state_dict()
    assert set(expected) == set(net.state_dict())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
    assert not torch.equal(net.bn1.running_mean, before['bn1.running_mean'])
    x = batches()[1]
    with torch.no_grad():
        assert torch.equal(net.forward_features(x), supernet.eval()(x, ARCH))


def test_metadata_makes_the_round_trip(supernet: SuperNet, tmp_path: Path) -> None:
    source, path = tmp_path / 'linear.pth', tmp_path / 'backbone.safetensors'
    torch.save({'state_dict': supernet.state_dict()}, source)
    net = derive(supernet, ARCH)
    save_backbone(path, net, source, epochs=3)
    state, metadata = read_weights(path)
    assert metadata == {
        'kind': 'backbone',
        'arch': ARCH,
        'space': json.dumps(SPACE.to_dict()),
        'num_classes': '0',
        'source': 'linear.pth',
        'source_sha256': file_sha256(source),
        'licence': 'Apache-2.0',
        'version': pinas_zoo.__version__,
        'epochs': '3',
    }
    assert SearchSpace.from_dict(json.loads(metadata['space'])) == SPACE
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert [file.name for file in tmp_path.iterdir() if file.suffix == '.tmp'] == []
    assert backbone_metadata(PiNASNet(ARCH, SPACE, num_classes=4))['kind'] == 'classifier'
    assert backbone_metadata(net)['source'] is None


def test_timm_takes_arch_and_space_from_the_file(supernet: SuperNet, tmp_path: Path) -> None:
    path, net, x = tmp_path / 'backbone.safetensors', derive(supernet, ARCH, batches()), batches()[0]
    save_backbone(path, net)
    again = timm.create_model('pinas', checkpoint=str(path), num_classes=0).eval()
    assert again.arch == SPACE.parse(ARCH) and again.space == SPACE
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
        classifier = timm.create_model('pinas', checkpoint=str(path), num_classes=5).eval()
        assert classifier(x).shape == (4, 5) and torch.equal(classifier.forward_features(x), net.forward_features(x))
        features = timm.create_model('pinas', checkpoint=str(path), features_only=True, out_indices=(1, 2)).eval()(x)
        assert [tuple(f.shape) for f in features] == [(4, 64, 8, 8), (4, 128, 4, 4)]
        assert torch.equal(features[-1], net.forward_features(x))


def test_another_architecture_prints_both(supernet: SuperNet, tmp_path: Path) -> None:
    path = tmp_path / 'backbone.safetensors'
    save_backbone(path, derive(supernet, ARCH))
    with pytest.raises(ValueError, match='has architecture 1-02, but the network has 1-12'):
        timm.create_model('pinas', arch='1-12', checkpoint=str(path))
    wider = SearchSpace.from_dict(SPACE.to_dict() | {'name': 'wider', 'planes': (16, 64)})
    with pytest.raises(ValueError, match="is of space .*name='derived'.* network is of space .*name='wider'"):
        timm.create_model('pinas', arch=ARCH, space=wider, checkpoint=str(path))
    with pytest.raises(ValueError, match="'9-99' is not an architecture of space 'derived'"):
        derive(supernet, '9-99')
