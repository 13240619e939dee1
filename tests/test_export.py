"""Exports against eager: the four candidates, whole networks and the named ones, dilated features, folded BN."""

import copy
import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import timm
import torch
from torch import nn

from pinas_zoo.models.blocks import make_shortcut
from pinas_zoo.models.export import Features, compare, export_onnx, export_program, fold_batch_norms, run_onnx
from pinas_zoo.models.mixed import make_block
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.space import PINAS, PINAS_TINY
from tools.export import main

onnx = pytest.mark.skipif(
    find_spec('onnx') is None or find_spec('onnxruntime') is None,
    reason="onnx or onnxruntime is not installed: pip install 'pinas-zoo[export]'",
)

SHALLOW = replace(PINAS_TINY, name='shallow', depths=(2, 2, 2, 2))


def lively(module: nn.Module) -> nn.Module:
    """Gives BN layers statistics and weights that differ from the defaults."""
    generator = torch.Generator().manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_(0, 0.1, generator=generator)
            child.running_var.uniform_(0.5, 1.5, generator=generator)
            child.weight.data.uniform_(0.5, 1.5, generator=generator)
            child.bias.data.normal_(0, 0.1, generator=generator)
    return module.eval()


def block(choice: int, position: int) -> tuple[nn.Module, torch.Tensor]:
    module = make_block(PINAS, position, choice, shortcut=make_shortcut(PINAS, position))
    chans = PINAS.in_channels(position)
    return lively(module), torch.randn(2, chans, 14, 14, generator=torch.Generator().manual_seed(1))


def network(kind: str) -> tuple[nn.Module, torch.Tensor, bool]:
    """(module, example, whether any size is allowed), at a quarter of the width; test_full_size has the whole depth."""
    arch = '30-32-20-31' if '-a' in kind else '33-31-00-12'
    if 'features' in kind:
        net = Features(PiNASNet(arch, SHALLOW, num_classes=0, output_stride=8), (3, 4))
    else:
        net = PiNASNet(arch, SHALLOW, num_classes=10)
    return lively(net), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), 'features' in kind


KINDS = ['classifier-a', 'classifier-b', 'features-a', 'features-b']


@pytest.mark.parametrize('choice', range(4))
@pytest.mark.parametrize('position', [3, 4])
class TestBlocks:
    def test_torch_export(self, choice, position):
        module, example = block(choice, position)
        program = export_program(module, example, dynamic_size=True)
        x = torch.randn(3, example.shape[1], 18, 22)
        with torch.no_grad():
            assert compare(module(x), program.module()(x)) < 1e-4

    @onnx
    def test_onnx(self, choice, position, tmp_path):
        module, example = block(choice, position)
        export_onnx(module, example, tmp_path / 'a.onnx', dynamic_size=True)
        x = torch.randn(3, example.shape[1], 18, 22)
        with torch.no_grad():
            assert compare(module(x), run_onnx(tmp_path / 'a.onnx', x)) < 1e-4

    def test_folding(self, choice, position):
        module, x = block(choice, position)
        folded = fold_batch_norms(module)
        assert not any(isinstance(child, nn.BatchNorm2d) for child in folded.modules())
        with torch.no_grad():
            assert compare(module(x), folded(x)) < 1e-4


@pytest.mark.parametrize('kind', KINDS)
class TestNetworks:
    def test_torch_export(self, kind):
        module, example, any_size = network(kind)
        program = export_program(module, example, any_size)
        x = torch.randn(3, 3, *((96, 80) if any_size else (64, 64)))
        with torch.no_grad():
            assert compare(module(x), program.module()(x)) < 1e-4

    @onnx
    def test_onnx(self, kind, tmp_path):
        module, example, any_size = network(kind)
        export_onnx(module, example, tmp_path / 'a.onnx', any_size)
        x = torch.randn(3, 3, *((96, 80) if any_size else (64, 64)))
        with torch.no_grad():
            assert compare(module(x), run_onnx(tmp_path / 'a.onnx', x)) < 1e-4

    def test_folding(self, kind):
        module, x, _ = network(kind)
        before = copy.deepcopy(module.state_dict())
        folded = fold_batch_norms(module)
        with torch.no_grad():
            assert compare(module(x), folded(x)) < 1e-4
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        assert not any('running' in name for name in folded.state_dict())


def test_a_batch_norm_on_its_own():
    with pytest.raises(ValueError, match='1 of 1 BN layers do not follow a convolution'):
        fold_batch_norms(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))


def test_missing_onnx(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match=r"pip install 'pinas-zoo\[export\]'"):
        export_onnx(nn.Identity(), torch.zeros(1, 3, 8, 8), tmp_path / 'a.onnx')


@onnx
def test_onnx_keeps_the_metadata(tmp_path):
    import onnx as package

    metadata = {'classes': json.dumps(['Käse', 'b'])}
    export_onnx(nn.Conv2d(3, 2, 1), torch.zeros(2, 3, 4, 4), tmp_path / 'a.onnx', metadata=metadata)
    (kept,) = package.load(tmp_path / 'a.onnx').metadata_props
    assert kept.key == 'classes' and json.loads(kept.value) == ['Käse', 'b']


class TestTool:
    def test_program(self, tmp_path, capsys):
        assert main(['pinas_nano', str(tmp_path / 'a.pt2'), '--fold']) == 0
        assert 'largest difference' in capsys.readouterr().out and (tmp_path / 'a.pt2').stat().st_size > 1e6
        with pytest.raises(SystemExit):
            main(['pinas_nano', 'a.bin'])

    @onnx
    def test_onnx(self, tmp_path):
        assert main(['pinas_nano', str(tmp_path / 'a.onnx'), '--features', '--output-stride', '8']) == 0


@pytest.mark.slow
@onnx
@pytest.mark.parametrize('name', ['pinas_a', 'pinas_b'])
def test_full_size(name, tmp_path):
    net = lively(timm.create_model(name))
    x = torch.randn(2, 3, 64, 64)
    export_onnx(net, x, tmp_path / 'a.onnx')
    dilated = lively(Features(timm.create_model(name, output_stride=8, num_classes=0), (3, 4)))
    with torch.no_grad():
        assert compare(net(x), run_onnx(tmp_path / 'a.onnx', x)) < 1e-4 * max(1.0, float(net(x).abs().max()))
        assert compare(dilated(x), export_program(dilated, x, True).module()(x)) < 1e-4 * 10


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec('segmentation_models_pytorch') is None, reason='segmentation_models_pytorch is not installed'
)
def test_segmentation_models_pytorch():
    import segmentation_models_pytorch as smp

    net = smp.Unet('tu-pinas_a', encoder_weights=None, classes=5).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)
