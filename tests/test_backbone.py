"""timm's model contract, the released classifier, and what makes an architecture valid."""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from golden import arrays, filled, image, keys
from timm.layers import LayerNorm2d, get_act_layer, get_norm_layer
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import pinas_zoo
from pinas_zoo.models.blocks import Bottleneck
from pinas_zoo.models.mixed import make_block
from pinas_zoo.models.network import PINAS_A, PINAS_B, PiNASNet, stage_geometry
from pinas_zoo.space import PINAS, PINAS_NANO, Candidate, SearchSpace
from pinas_zoo.weights.load import read_weights, save_weights
from pinas_zoo.weights.loading import load_backbone
from pinas_zoo.weights.manifest import entries

#: Networks that the manifest has with their architecture: entry points are made of its rows.
OWN = sorted({entry.model for entry in entries().values() if entry.own and entry.timm})
NAMES = ['pinas_a', 'pinas_b', 'pinas', 'pinas_nano', *OWN]
#: Without an architecture, 'pinas' makes the network of 'pinas_a' (test_version_and_names).
NETWORKS = [name for name in NAMES if name != 'pinas']
#: Of each width one: what depends on the code of the blocks alone.
WIDTHS = ('pinas_a', 'pinas_nano')
SKIPPING = SearchSpace(
    'skipping',
    depths=(2, 3),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(8, 8, 16),
    candidates=(Candidate(skip=True), Candidate(), Candidate(radix=2, kernel=5)),
    input_size=32,
)


def small_input(name: str, size: int | None = None, chans: int = 3) -> torch.Tensor:
    side = size or (28 if 'nano' in name else 64)
    return torch.randn(2, chans, side, side, generator=torch.Generator().manual_seed(0))


def test_released_classifier():
    golden, net = arrays('cls.npz'), timm.create_model('pinas_a').eval()
    assert list(net.state_dict()) == list(keys('cls_keys.json'))
    net.load_state_dict(filled(keys('cls_keys.json')))
    with torch.no_grad():
        features, stages = net.forward_intermediates(image())
        logits = net.forward_head(features)
    np.testing.assert_allclose(logits, golden['logits_64'], rtol=0, atol=1e-4)
    for name, stage in zip(('c1_64', 'c2_64', 'c3_64'), stages[1:], strict=False):
        np.testing.assert_allclose(stage.mean((2, 3)), golden[name], rtol=0, atol=1e-4)
    np.testing.assert_allclose(stages[4], golden['c4_64'], rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_forward_and_backward(name):
    net = timm.create_model(name, num_classes=7).train()
    out = net(small_input(name))
    assert out.shape == (2, 7)
    out.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.default_cfg['input_size'][1] == (28 if 'nano' in name else 224)


@pytest.mark.parametrize('name', NAMES)
def test_head_contract(name):
    net = timm.create_model(name).eval()
    x = small_input(name)
    with torch.no_grad():
        features = net.forward_features(x)
        assert features.shape[1] == net.num_features
        assert torch.equal(net.forward_head(features), net(x))
        assert net.forward_head(features, pre_logits=True).shape == (2, net.head_hidden_size)
        assert net.get_classifier() is net.fc and net.get_classifier(name_only=True) == 'fc'
        net.reset_classifier(3)
        assert net(x).shape == (2, 3)
        net.reset_classifier(0)
        assert net(x).shape == (2, net.num_features)
        net.reset_classifier(0, '')
        assert net(x).shape == features.shape
        net.reset_classifier(5, 'catavgmax')
        assert net(x).shape == (2, 5)
    assert timm.create_model(name, num_classes=0, global_pool='')(x).shape == features.shape


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('output_stride', [8, 16, 32])
def test_features_only(name, output_stride):
    net = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    x = small_input(name, 64)
    with torch.no_grad():
        features = net(x)
    assert [f.shape[1] for f in features] == net.feature_info.channels()
    assert [64 // f.shape[2] for f in features] == net.feature_info.reduction()
    assert net.feature_info.reduction()[-1] == min(output_stride, 16 if 'nano' in name else 32)
    some = timm.create_model(name, features_only=True, out_indices=(1, 3))
    assert len(some(x)) == 2


@pytest.mark.parametrize('name', ['pinas_b', 'pinas_nano'])
def test_intermediates_equal_features(name):
    full = timm.create_model(name).eval()
    listed = timm.create_model(name, features_only=True).eval()
    listed.load_state_dict(full.state_dict(), strict=False)
    x = small_input(name)
    with torch.no_grad():
        last, intermediates = full.forward_intermediates(x)
        assert all(torch.equal(a, b) for a, b in zip(intermediates, listed(x), strict=True))
        assert torch.equal(last, intermediates[-1])
        picked = full.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
        assert torch.equal(picked[1], intermediates[2])
        full.prune_intermediate_layers([1, 2])
        assert torch.equal(full.forward_intermediates(x, [2], intermediates_only=True)[0], picked[1])
    assert not list(full.layer3.parameters()) and full.num_features == intermediates[2].shape[1]


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('size', [33, 47])
@pytest.mark.parametrize('output_stride', [8, 32])
def test_odd_sizes(name, size, output_stride):
    net = timm.create_model(name, output_stride=output_stride, num_classes=2).eval()
    with torch.no_grad():
        assert net(small_input(name, size)).isfinite().all()


def test_dilated_form_has_the_released_geometry():
    geometry = [g[:3] for g in stage_geometry(PINAS, 8)]
    assert geometry == [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]
    assert [g[:3] for g in stage_geometry(PINAS, 16)][3] == (1, 1, 2)
    net = PiNASNet(PINAS_B, output_stride=8)
    for name, first, rest in (('layer3', 1, 2), ('layer4', 2, 4)):
        layer = getattr(net, name)
        assert [b.conv2.conv.dilation[0] for b in layer] == [first] + [rest] * (len(layer) - 1)
        assert layer[0].pool.stride == 1 and layer[0].pool.padding == 1
        assert isinstance(layer[0].downsample[0], torch.nn.Identity)
        assert isinstance(layer[1].pool, torch.nn.Identity)
    assert isinstance(net.layer1[0].pool, torch.nn.Identity)
    assert set(net.state_dict()) == set(PiNASNet(PINAS_B).state_dict())
    with pytest.raises(ValueError, match='8, 16 or 32, got 4'):
        PiNASNet(PINAS_B, output_stride=4)


@pytest.mark.parametrize('chans', [1, 4])
def test_in_chans(chans):
    net = timm.create_model('pinas_nano', in_chans=chans).eval()
    assert net(small_input('nano', chans=chans)).shape == (2, 10)


def test_drop_rate_and_drop_path():
    x = small_input('nano')
    net = timm.create_model('pinas_nano', drop_rate=0.5).train()
    features = net.forward_features(x).detach()
    assert not torch.equal(net.forward_head(features), net.forward_head(features))
    block = make_block(PINAS_NANO, 1, 1, drop_path=0.999999).train()
    inputs = torch.rand(4, block.conv1.in_channels, 8, 8)
    # A dropped branch leaves the shortcut: the input, which is not negative here.
    assert torch.equal(block(inputs), inputs)
    assert not torch.equal(block.eval()(inputs), inputs)
    rates = [
        getattr(b.drop_path, 'drop_prob', 0.0)
        for b in timm.create_model('pinas_nano', drop_path_rate=0.7).modules()
        if isinstance(b, Bottleneck)
    ]
    np.testing.assert_allclose(rates, np.linspace(0, 0.7, 8))


@pytest.mark.parametrize('name', ['pinas_b', 'pinas_nano'])
def test_grad_checkpointing_gives_the_same_gradients(name):
    gradients = []
    for enable in (False, True):
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=2).double().train()
        net.set_grad_checkpointing(enable)
        net(small_input(name).double()).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize('name', [*WIDTHS, 'pinas_b'])
def test_scripting(name):
    net = timm.create_model(name, num_classes=3).eval()
    x = small_input(name)
    scripted = torch.jit.script(net)
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), net(x), rtol=1e-4, atol=1e-5)


def has_compiler() -> bool:
    """Inductor generates C++ for a CPU."""
    command = shutil.which(os.environ.get('CXX', 'g++'))
    return command is not None and subprocess.run([command, '--version'], capture_output=True).returncode == 0


@pytest.mark.slow
def test_compile():
    backend = 'inductor' if has_compiler() else 'aot_eager'
    space = SearchSpace('small', depths=(1, 1), planes=(16, 32), strides=(1, 2), stem_widths=(8, 8, 16), input_size=28)
    net = PiNASNet('1-3', space, num_classes=3).eval()  # a block with a shortcut and one that halves, both split
    x = small_input('nano')
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, backend=backend)(x), net(x), rtol=1e-4, atol=1e-5)


def test_groups_cover_every_parameter():
    from timm.models import group_parameters

    net = timm.create_model('pinas_a')
    groups = group_parameters(net, net.group_matcher())
    assert sum(map(len, groups.values())) == len(list(net.parameters()))


@pytest.mark.parametrize(
    ('arch', 'says'),
    [
        ('301-3231-203213-03', 'stages have'),
        ('304-3231-203213-032', 'position 2 is 4'),
        ('30x-3231-203213-032', 'only digits'),
        ('3(0)1-3231-203213-032', 'brackets'),
        ([0] * 15, '15 positions'),
        ([0.5] * 16, 'not an integer'),
        (7, 'type is int'),
    ],
)
def test_malformed_arch(arch, says):
    with pytest.raises(ValueError, match='allowed: 16 digits of 0..3') as error:
        timm.create_model('pinas', arch=arch)
    assert says in str(error.value) and repr(arch) in str(error.value)


def test_space_with_skips_and_two_stages():
    net = PiNASNet('10-201', SKIPPING, num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    assert net(x).shape == (2, 4)
    torch.testing.assert_close(net(x), torch.jit.script(net)(x))
    assert len(net.forward_intermediates(x, intermediates_only=True)) == 3
    with pytest.raises(ValueError, match='position 0 is 0'):
        PiNASNet('00-201', SKIPPING)


def test_batch_of_one_in_training():
    net = timm.create_model('pinas_nano').train()
    with pytest.raises(ValueError, match='batch of 1 per device'):
        net(torch.zeros(1, 3, 28, 28))
    assert net.eval()(torch.zeros(1, 3, 28, 28)).shape == (1, 10)


def test_checkpoint_carries_its_architecture(tmp_path):
    path = tmp_path / 'backbone.safetensors'
    net = timm.create_model('pinas_nano', arch='01-23-01-23', num_classes=0).eval()
    text = net.space.format(net.arch)
    save_weights(path, net.state_dict(), {'arch': text, 'space': json.dumps(PINAS_NANO.to_dict())})
    x = small_input('nano')
    again = timm.create_model('pinas_nano', checkpoint=path, num_classes=0).eval()
    assert again.arch == net.arch and torch.equal(again(x), net(x))
    features = timm.create_model('pinas_nano', checkpoint=path, features_only=True).eval()
    assert torch.equal(features(x)[-1], net.forward_features(x))
    with pytest.raises(ValueError, match=r'01-23-01-23.* 11-23-01-23'):
        timm.create_model('pinas_nano', arch='11-23-01-23', checkpoint=path)
    renamed = PiNASNet('01-23-01-23', replace(PINAS_NANO, name='x', input_size=64), num_classes=0).eval()
    load_backbone(renamed, path)
    assert torch.equal(renamed(x), net(x))
    with pytest.raises(ValueError, match='is of space'):
        load_backbone(PiNASNet('01-23-01-23', replace(PINAS_NANO, stem_widths=(8, 8, 16))), path)


def test_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    net = timm.create_model('pinas_nano', num_classes=0)
    state = net.state_dict()
    state.pop('layer1.0.conv1.weight')
    state['layer9.weight'] = torch.zeros(1)
    save_weights(tmp_path / 'a.safetensors', state, {})
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=r'missing: layer1.0.conv1.weight\n  unexpected: layer9'):
        load_backbone(net, tmp_path / 'a.safetensors')
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    (tmp_path / 'incomplete.safetensors').write_bytes((tmp_path / 'a.safetensors').read_bytes()[:1000])
    with pytest.raises(ValueError, match='not a readable safetensors'):
        read_weights(tmp_path / 'incomplete.safetensors')


def test_pretrained_never_ends_in_random_weights():
    with pytest.raises(RuntimeError):
        timm.create_model('pinas_nano', pretrained=True)


def test_a_name_of_one_architecture_takes_no_other_one():
    """It was ignored: a retraining of a searched architecture would have trained pinas_a."""
    same = timm.create_model('pinas_nano_a', arch='30020010', space='pinas_nano')
    assert same.arch == timm.create_model('pinas_nano_a').arch
    for name, words in (('pinas_a', dict(arch=PINAS_B)), ('pinas_nano_a', dict(arch='30-32-20-03'))):
        with pytest.raises(ValueError, match=rf"{name} is .* got arch=.* 'pinas(_nano)?' is the name that takes any"):
            timm.create_model(name, **words)
    with pytest.raises(ValueError, match="got space='pinas_nano'"):
        timm.create_model('pinas_a', space='pinas_nano')
    with pytest.raises(ValueError, match="got space 'pinas_tiny': 'pinas' takes any space"):
        timm.create_model('pinas_nano', space='pinas_tiny')


def test_version_and_names():
    assert pinas_zoo.__version__
    assert set(NAMES) <= set(timm.list_models('pinas*'))
    assert timm.create_model('pinas').arch == PINAS.parse(PINAS_A)
    assert repr(timm.create_model('pinas')) == repr(timm.create_model('pinas_a'))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_device_and_dtype(dtype):
    net = PiNASNet('01-23-01-23', 'pinas_nano', dtype=dtype, device='meta')
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert all(p.is_meta for p in net.parameters())


@pytest.mark.parametrize('name', WIDTHS)
def test_symbolic_tracing(name):
    """torch.fx: torchvision's feature extractor, scripted too, timm's by graph, and gradients through them."""
    net, x = timm.create_model(name, num_classes=7), small_input(name)
    with torch.no_grad():
        logits, features = net.eval()(x), net.forward_features(x)
        traced = create_feature_extractor(net, get_graph_node_names(net)[1][-1:])
        assert torch.equal(*traced(x).values(), logits)
        assert torch.allclose(*torch.jit.script(traced)(x).values(), logits, atol=1e-5)
    by_graph = timm.create_model(name, features_only=True, feature_cls='fx').eval()
    by_graph.load_state_dict(net.state_dict(), strict=False)
    last = by_graph(x)[-1]
    assert last.shape == features.shape
    last.sum().backward()
    assert all(p.grad is not None for p in by_graph.parameters())


@pytest.mark.parametrize('act', ['silu', torch.nn.GELU])
@pytest.mark.parametrize('norm', ['groupnorm1', LayerNorm2d])
def test_act_and_norm_layers(act, norm):
    """Given as timm's families take them: by name or class, for the whole network."""
    net = timm.create_model('pinas_nano', arch='3(01)-32-20-03', act_layer=act, norm_layer=norm, num_classes=3)
    kinds = {type(module) for module in net.modules()}
    assert {get_act_layer(act), get_norm_layer(norm)} <= kinds
    assert not kinds & {torch.nn.ReLU, torch.nn.BatchNorm2d}
    net(torch.rand(1, 3, 32, 32)).sum().backward()  # no batch statistics: one image trains
    assert all(p.grad is not None for p in net.parameters())


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"act_layer='nothing'.*names of timm.layers"):
        timm.create_model('pinas_nano', act_layer='nothing')
    with pytest.raises(ValueError, match='does not take the 80 channels'):
        timm.create_model('pinas_a', norm_layer='groupnorm')


def test_pretrained_weights_with_other_layers(caplog):
    """Weights of a ReLU and BN network: another activation loads them with a warning, another normalisation cannot."""
    net = timm.create_model('pinas_nano_a.fmnist', pretrained=True, act_layer='silu')
    assert 'act_layer is SiLU' in caplog.text
    plain = timm.create_model('pinas_nano_a.fmnist', pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    assert len(caplog.records) == 1  # none for the plain network
    with pytest.raises(ValueError, match='do not fit'):
        timm.create_model('pinas_nano_a.fmnist', pretrained=True, norm_layer='groupnorm1')
    frozen = timm.create_model('pinas_nano_a.fmnist', pretrained=True, norm_layer='frozenbatchnorm2d').eval()
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(frozen(x), plain.eval()(x), atol=1e-4)
