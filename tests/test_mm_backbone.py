"""PiNASBackbone by itself: options, weights, and its scope."""

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import python
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

for package in ('mmengine', 'mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)
pytestmark = pytest.mark.mm

from downstream_runs import ARCH, write_backbone  # noqa: E402

from pinas_zoo.mm.backbone import PiNASBackbone  # noqa: E402
from pinas_zoo.models.network import PiNASNet  # noqa: E402
from pinas_zoo.registry import MODELS  # noqa: E402
from pinas_zoo.space import get_space  # noqa: E402
from pinas_zoo.weights.load import read_weights, save_weights  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NANO = dict(arch=ARCH, space='pinas_nano')


def backbone(**options: Any) -> PiNASBackbone:
    torch.manual_seed(0)
    return MODELS.build(dict(type='pinas_zoo.PiNASBackbone', **{**NANO, **options}))


def images(size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize('stride, strides', [(32, (2, 4, 8, 16)), (16, (2, 4, 8, 16)), (8, (2, 4, 8, 8))])
def test_shapes_and_strides(stride: int, strides: tuple[int, ...]) -> None:
    net = backbone(output_stride=stride).eval()
    outputs = net(images(64))
    assert [tuple(x.shape) for x in outputs] == [
        (2, channels, 64 // s, 64 // s) for channels, s in zip((64, 128, 256, 384), strides, strict=True)
    ]


def test_out_indices() -> None:
    full, some = backbone().eval(), backbone(out_indices=(0, 2)).eval()
    some.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith('layer4.')})
    x = images()
    outputs = full(x)
    assert len(some(x)) == 2
    assert torch.equal(some(x)[0], outputs[0]) and torch.equal(some(x)[1], outputs[2])
    net = backbone(out_indices=(1,))
    sum(y.mean() for y in net(x)).backward()
    assert all(p.grad is not None for p in net.parameters())  # nothing is built that no output needs
    with pytest.raises(ValueError, match=r'out_indices must be among 0..3, got \(4,\)'):
        backbone(out_indices=(4,))


def test_the_argument_of_mmsegs_models() -> None:
    backbone(pretrained=None)
    with pytest.raises(ValueError, match=r'init_cfg.*model=dict\(pretrained=None'):
        backbone(pretrained='open-mmlab://resnet50_v1c')


def test_equals_the_timm_model() -> None:
    net = backbone().eval()
    timm_net = PiNASNet(ARCH, 'pinas_nano', num_classes=0).eval()
    timm_net.load_state_dict(net.state_dict())
    features = timm_net.forward_intermediates(images(), indices=4, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(net(images()), features, strict=True))


@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_frozen_stages(frozen: int) -> None:
    net = backbone(frozen_stages=frozen)
    before = statistics(net)
    net.train()
    outputs = net(images())
    if frozen < 4:
        sum(y.mean() for y in outputs if y.requires_grad).backward()
    prefixes = ('conv1.', 'bn1.', 'layer1.', 'layer2.', 'layer3.', 'layer4.')[: frozen + 2 if frozen >= 0 else 0]
    for name, parameter in net.named_parameters():
        still = name.startswith(prefixes)
        assert parameter.requires_grad != still and (parameter.grad is None) == still, name
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            assert module.training != f'{name}.'.startswith(prefixes), name
    for name, tensor in net.named_buffers():
        if name.endswith('running_var'):
            assert torch.equal(tensor, before[name]) == name.startswith(prefixes), name
    with pytest.raises(ValueError, match='frozen_stages must be in -1..4, got 5'):
        backbone(frozen_stages=5)


def test_norm_eval() -> None:
    net = backbone(norm_eval=True)
    before = statistics(net)
    net.train()
    outputs = net(images(count=1))  # a single image: no batch statistics are taken
    sum(y.mean() for y in outputs).backward()
    assert net.training and not any(m.training for m in net.modules() if isinstance(m, _BatchNorm))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.named_buffers())
    assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(ValueError, match='norm_eval'):
        backbone().train()(images(count=1))


@pytest.mark.parametrize('frozen', [-1, 0])
def test_checkpointing_gives_equal_gradients(frozen: int) -> None:
    plain, saving = backbone(frozen_stages=frozen), backbone(frozen_stages=frozen, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    gradients = []
    for net in (plain, saving):
        outputs = net.train()(images())
        sum((y**2).mean() for y in outputs).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_norm_cfg() -> None:
    plain, synced = backbone(), backbone(norm_cfg=dict(type='SyncBN', requires_grad=True))
    norms = [m for m in synced.modules() if isinstance(m, _BatchNorm)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert len(norms) == sum(isinstance(m, _BatchNorm) for m in plain.modules())
    synced.load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.eval()(images()), synced.eval()(images()), strict=True))
    still = backbone(norm_cfg=dict(type='BN', requires_grad=False))
    learning = {name for name, p in still.named_parameters() if p.requires_grad}
    norms = [name for name, m in still.named_modules() if isinstance(m, _BatchNorm)]
    assert learning and not any(name.startswith(f'{norm}.') for name in learning for norm in norms)
    frozen = backbone(norm_cfg=dict(type='SyncBN'), frozen_stages=1).train()
    assert not any(m.training for m in frozen.layer1.modules() if isinstance(m, _BatchNorm))


# ---- weights ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file with a classifier of the architecture."""
    return write_backbone(tmp_path_factory.mktemp('weights') / 'backbone.safetensors')


def pretrained(path: Path, **more: Any) -> dict[str, Any]:
    return dict(init_cfg=dict(type='Pretrained', checkpoint=str(path), **more))


@pytest.mark.parametrize('options', [{}, {'out_indices': (0, 1)}, {'norm_cfg': dict(type='SyncBN')}])
def test_pretrained_weights_are_loaded(options: dict, weights: Path) -> None:
    net, state = backbone(**pretrained(weights), **options), read_weights(weights)[0]
    assert not torch.equal(net.conv1[0].weight, state['conv1.0.weight'])
    net.init_weights()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_pretrained_with_a_prefix(weights: Path, tmp_path: Path) -> None:
    state = {f'net.{name}': tensor for name, tensor in read_weights(weights)[0].items()}
    torch.save({'state_dict': {**state, 'other': torch.zeros(1)}}, tmp_path / 'whole.pth')
    net = backbone(**pretrained(tmp_path / 'whole.pth', prefix='net.'))
    net.init_weights()
    assert torch.equal(net.layer4[1].bn3.weight, state['net.layer4.1.bn3.weight'])
    torch.save({'state_dict': state}, tmp_path / 'retrained.pth')
    found = backbone(**pretrained(tmp_path / 'retrained.pth'))
    found.init_weights()
    assert torch.equal(found.layer4[1].bn3.weight, net.layer4[1].bn3.weight)
    with pytest.raises(ValueError, match="no name begins with 'student.'"):
        backbone(**pretrained(tmp_path / 'whole.pth', prefix='student.')).init_weights()


def test_weights_that_do_not_fit(weights: Path, tmp_path: Path) -> None:
    other = backbone(arch='00-00-00-00', **pretrained(weights))
    with pytest.raises(ValueError, match='has architecture 30-32-20-03, but the network has 00-00-00-00'):
        other.init_weights()
    with pytest.raises(ValueError, match='is of space'):
        space = dict(get_space('pinas_nano').to_dict(), stem_widths=(8, 8, 16))
        backbone(space=space, **pretrained(weights)).init_weights()
    state, metadata = read_weights(weights)
    del state['layer2.0.conv1.weight']
    save_weights(tmp_path / 'holed.safetensors', state, metadata)
    net = backbone(**pretrained(tmp_path / 'holed.safetensors'))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r'missing: layer2\.0\.conv1\.weight'):
        net.init_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(FileNotFoundError, match='nowhere'):
        backbone(**pretrained(tmp_path / 'nowhere.safetensors')).init_weights()
    with pytest.raises(ValueError, match="must be of type 'Pretrained'"):
        backbone(init_cfg=dict(type='Kaiming')).init_weights()


# ---- by scope ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_the_scope_needs_no_custom_imports(package: str) -> None:
    """In a process that has imported nothing that builds on this project, and then only the package."""
    code = f"""
import sys
from mmengine.registry import init_default_scope
from {package}.registry import MODELS
init_default_scope({package!r})
assert not any(name.startswith('pinas_zoo') for name in sys.modules)
net = MODELS.build(dict(type='pinas_zoo.PiNASBackbone', arch={ARCH!r}, space='pinas_nano'))
print(type(net).__module__, type(net).__name__)
"""
    command = [python(ours=False), '-c', code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == ['pinas_zoo.mm.backbone', 'PiNASBackbone']
