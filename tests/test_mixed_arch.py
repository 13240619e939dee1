"""Mixed paths: positions that keep several candidates, as values of space, supernet, cost, backbone and files."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from test_supernet import randomised

from pinas_zoo.methods.predictor import one_hot
from pinas_zoo.models.blocks import Bottleneck
from pinas_zoo.models.cost import CostTable, count
from pinas_zoo.models.export import export_onnx, export_program, fold_batch_norms, run_onnx
from pinas_zoo.models.mixed import MixedBottleneck
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.derive import derive, save_backbone
from pinas_zoo.space import PAPER_CANDIDATES, PINAS, PINAS_NANO, Candidate, SearchSpace, kept
from pinas_zoo.weights.load import read_weights
from pinas_zoo.weights.loading import load_supernet
from pinas_zoo.weights.shapes import backbone_shapes, find_arch, shapes_of

SMALL = SearchSpace('small', depths=(1, 2), planes=(16, 32), strides=(1, 2), stem_widths=(8, 8, 16), input_size=16)
SKIPPING = SearchSpace(
    'skipping', (2, 1), (16, 16), (1, 1), (8, 8, 16), candidates=(*PAPER_CANDIDATES[:3], Candidate(skip=True))
)
ARCH, PARSED = '(03)-1(012)', ((0, 3), 1, (0, 1, 2))
PAPER = '3(01)1-3231-2(0123)3213-03(12)'


def images(count: int = 2, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(4))


def draw(space: SearchSpace, rng: np.random.Generator) -> tuple:
    """A random arch of which about half of the positions keep several."""
    arch = []
    for position in range(space.num_positions):
        shaped = [c for c in space.choices(position) if not space.candidates[c].skip]
        several = tuple(sorted(rng.choice(shaped, rng.integers(2, len(shaped) + 1), replace=False).tolist()))
        arch.append(several if rng.random() < 0.5 else int(rng.choice(space.choices(position))))
    return tuple(arch)


# ---- space --------------------------------------------------------------------------------------


@pytest.mark.parametrize('space', [PINAS, PINAS_NANO, SKIPPING], ids=lambda space: space.name)
def test_round_trips(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        arch = draw(space, rng)
        text = space.format(arch)
        assert space.parse(text) == space.parse(text.replace('-', '')) == space.parse(arch) == arch
        assert space.parse(json.loads(json.dumps(arch))) == arch  # lists, as files have them
        assert hash(space.parse(text)) == hash(arch) and {arch: 1}[space.parse(text)] == 1


def test_the_order_in_brackets_is_without_meaning() -> None:
    assert SMALL.parse('(30)-1(210)') == SMALL.parse([(3, 0), 1, [np.int64(2), 1, 0]]) == PARSED
    assert SMALL.format('(30)1(210)') == ARCH and SMALL.parse('031') != SMALL.parse('(03)11')
    assert kept(3) == (3,) and kept((0, 2)) == (0, 2)


def test_a_skip_stands_alone() -> None:
    with pytest.raises(ValueError, match=r'position 1 is \(0, 3\), a skip adds nothing'):
        SKIPPING.parse('0(03)-1')
    with pytest.raises(ValueError, match=r'position 0 is \(0, 3\), allowed there: \(0, 1, 2\)'):
        SKIPPING.parse('(03)1-1')
    assert SKIPPING.canonical(((0, 1), 3, (1, 2))) == ((0, 1), 3, (1, 2))


def test_where_one_a_position_is_needed() -> None:
    assert SMALL.single('0-12') == (0, 1, 2)
    with pytest.raises(ValueError, match='position 2 keeps 3 candidates, but only one per position'):
        SMALL.single('3-1(012)')


def test_multi_hot() -> None:
    code = one_hot(SMALL, ['3-10', PARSED])
    assert code.dtype == np.uint8
    assert code.reshape(2, 3, 4).tolist() == [
        [[0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0]],
        [[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]],
    ]


# ---- supernet -----------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_extraction_is_bit_equal(layout: torch.memory_format) -> None:
    rng, x = np.random.default_rng(2), images().to(memory_format=layout)
    for space in (SMALL, SKIPPING):
        net = randomised(space).to(memory_format=layout)
        for arch in [draw(space, rng) for _ in range(6)]:
            factors = [torch.rand(len(c)) - 0.3 if isinstance(c, tuple) else None for c in arch]
            for given in (None, factors):
                alone = net.extract(arch, given).to(memory_format=layout)
                with torch.no_grad():
                    assert torch.equal(net.path(arch, given)(x), alone.forward_features(x)), arch


def test_a_mixed_position_is_the_sum_of_its_branches() -> None:
    """Against a slow re-implementation; the shortcut is added once."""
    net, factors = randomised(SMALL), torch.tensor([0.7, -0.2])
    position, x = net.blocks[1], images()[:, :1].expand(-1, 64, -1, -1)
    identity = position.downsample(x)
    branches = []
    for choice in (1, 3):
        block = position[choice]
        y = torch.relu(block.bn1(block.conv1(x)))
        branches.append(block.bn3(block.conv3(block.pool(block.conv2(y)))))
    expected = torch.relu(identity + 0.7 * branches[0] - 0.2 * branches[1])
    torch.testing.assert_close(position(x, (1, 3), factors), expected, rtol=1e-5, atol=1e-6)
    mean = torch.relu(identity + 0.5 * branches[0] + 0.5 * branches[1])
    torch.testing.assert_close(position(x, (1, 3)), mean, rtol=1e-5, atol=1e-6)
    # One candidate with a factor of 1 is the plain path; so is a mixture of a candidate and a skip's nothing.
    assert torch.equal(position(x, (3,), torch.ones(1)), position(x, 3))
    skipping = randomised(SKIPPING).blocks[1]
    assert torch.equal(skipping(x, (0, 3), torch.tensor([1.0, 5.0])), skipping(x, 0))


def test_gradients_reach_the_path_and_nothing_else() -> None:
    net = SuperNet(SMALL, zero_init_last=False)
    path = net.path(ARCH)
    path(images()).sum().backward()
    touched = {id(p) for p in net.parameters() if p.grad is not None}
    assert touched == {id(p) for p in path.parameters()}
    assert len(path.parameters()) == len(list(net.extract(ARCH).parameters())) - 2  # the factors are not the supernet's
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in path.modules()) == sum(
        'running_mean' in name for name in path.state_dict()
    )


def test_factors_that_do_not_fit() -> None:
    net = SuperNet(SMALL)
    with pytest.raises(ValueError, match='3 positions need one entry of factors each'):
        net.path(ARCH, [None])
    with pytest.raises(ValueError, match=r'position 0 keeps \(0, 3\) and needs as many factors, got shape \(3,\)'):
        net.extract(ARCH, [torch.ones(3), None, None])
    with pytest.raises(ValueError, match='position 1 keeps 1 and needs'):
        net.path(ARCH, [None, torch.ones(1), None])


def test_from_a_peers_checkpoint(tmp_path: Path) -> None:
    net, x = randomised(SMALL), images()
    state = {f'method.supernet.{name}': tensor for name, tensor in net.state_dict().items()}
    torch.save({'state_dict': state | {'method.head.weight': torch.zeros(2, 2)}}, tmp_path / 'iter_1.pth')
    with torch.no_grad():
        again = load_supernet(tmp_path / 'iter_1.pth', SMALL).eval()
        assert torch.equal(again(x, ARCH), net(x, ARCH))


# ---- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('output_stride', [8, 32])
def test_cost_equals_a_count_on_the_built_model(output_stride: int) -> None:
    rng = np.random.default_rng(3)
    for space, size in ((PINAS, 224), (PINAS_NANO, 28), (SKIPPING, 33)):
        table = CostTable(space, size, 10, output_stride=output_stride)
        for _ in range(2 if space is PINAS else 4):
            arch = draw(space, rng)
            with torch.device('meta'):
                assert count(PiNASNet(arch, space, 10, output_stride=output_stride), size) == table.of(arch), arch


# ---- backbone -----------------------------------------------------------------------------------


def test_the_paper_space_by_name() -> None:
    with torch.device('meta'):
        net = timm.create_model('pinas', arch=PAPER)
    assert net.space == PINAS and net.space.format(net.arch) == PAPER
    mixed = {name: m for name, m in net.named_modules() if isinstance(m, MixedBottleneck)}
    assert list(mixed) == ['layer1.1', 'layer3.1', 'layer4.2']
    assert list(mixed['layer4.2'].candidates) == ['1', '2'] and mixed['layer3.1'].factors.shape == (4,)
    assert shapes_of(net.state_dict()) == backbone_shapes(PINAS, net.arch, 1000)


def test_single_positions_are_as_they_were() -> None:
    names = [n for n, _ in PiNASNet(ARCH, SMALL).named_parameters() if n.startswith('layer2.0.')]
    assert names == [n for n, _ in PiNASNet('0-10', SMALL).named_parameters() if n.startswith('layer2.0.')]
    assert isinstance(PiNASNet(ARCH, SMALL).layer2[0], Bottleneck)


def test_it_trains() -> None:
    torch.manual_seed(0)
    net = timm.create_model('pinas', arch=ARCH, space=SMALL, num_classes=3, drop_path_rate=0.1).train()
    optimiser, x, y = torch.optim.SGD(net.parameters(), 0.05, 0.9), images(6), torch.arange(6) % 3
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in net.parameters())
    factors = net.layer2[1].factors
    assert factors.grad.abs().min() > 0 and (factors - 1 / 3).abs().min() > 0


def test_features_and_output_stride() -> None:
    x = images(2, 32)
    net = timm.create_model('pinas_nano', arch='(03)0-3(12)-20-0(0123)', features_only=True, output_stride=8).eval()
    assert [tuple(f.shape[1:]) for f in net(x)] == [(32, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4), (384, 4, 4)]
    assert net.feature_info.reduction() == [2, 2, 4, 8, 8]


def test_checkpointing_scripting_and_groups() -> None:
    from timm.models import group_parameters

    net, x = PiNASNet(ARCH, SMALL, num_classes=3).eval(), images()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(net)(x), net(x), rtol=1e-5, atol=1e-6)
    plain = torch.autograd.grad(net(x).sum(), net.layer2[1].factors)[0]
    net.set_grad_checkpointing()
    torch.testing.assert_close(torch.autograd.grad(net(x).sum(), net.layer2[1].factors)[0], plain)
    groups = group_parameters(net, net.group_matcher())
    assert sum(map(len, groups.values())) == len(list(net.parameters()))


def test_half_types() -> None:
    net = PiNASNet(ARCH, SMALL, num_classes=3).eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert net(images()).dtype == torch.bfloat16
    assert PiNASNet(ARCH, SMALL, 0, dtype=torch.bfloat16)(images().bfloat16()).dtype == torch.bfloat16


# ---- files and export ---------------------------------------------------------------------------


def test_a_file_carries_it(tmp_path: Path) -> None:
    path, factors = tmp_path / 'mixed.safetensors', [torch.tensor([0.6, 0.1]), None, None]
    net = derive(randomised(SMALL), ARCH, [images(4)], factors)
    assert torch.equal(net.layer1[0].factors, factors[0])
    assert net.layer2[1].factors.tolist() == pytest.approx([1 / 3] * 3)
    save_backbone(path, net)
    state, metadata = read_weights(path)
    assert metadata['arch'] == ARCH and find_arch(shapes_of(state), SMALL) == PARSED
    again = timm.create_model('pinas', checkpoint=str(path), num_classes=0).eval()
    assert again.arch == PARSED and again.space == SMALL
    with torch.no_grad():
        assert torch.equal(again(images()), net(images()))
    with pytest.raises(ValueError, match=r'has architecture \(03\)-1\(012\), but the network has 0-12'):
        timm.create_model('pinas', arch='0-12', space=SMALL, checkpoint=str(path))


def test_a_file_without_metadata(tmp_path: Path) -> None:
    """The architecture follows from the names: those of a mixed position contain its candidates."""
    net = timm.create_model('pinas_nano', arch='30-3(12)-20-03').eval()
    torch.save(net.state_dict(), tmp_path / 'mixed.pth')
    again = timm.create_model('pinas', checkpoint=str(tmp_path / 'mixed.pth'), num_classes=10).eval()
    assert again.arch == net.arch and again.space == PINAS_NANO
    with torch.no_grad():
        assert torch.equal(again(images(2, 28)), net(images(2, 28)))
    state = net.state_dict()
    one = {name: tensor for name, tensor in state.items() if '.candidates.2.' not in name}
    with pytest.raises(ValueError, match=r'brackets keep at least two'):
        find_arch(shapes_of(one), PINAS_NANO)


def test_export_and_folding() -> None:
    net, x = randomised(SMALL).extract(ARCH, num_classes=3), images()
    with torch.no_grad():
        expected = net(x)
        program = export_program(net, x)
        torch.testing.assert_close(program.module()(images(5)), net(images(5)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fold_batch_norms(net)(x), expected, rtol=1e-4, atol=1e-4)


def test_onnx(tmp_path: Path) -> None:
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    net = randomised(SMALL).extract(ARCH, num_classes=3)
    export_onnx(net, images(), tmp_path / 'mixed.onnx')
    (found,) = run_onnx(tmp_path / 'mixed.onnx', images(5))
    with torch.no_grad():
        torch.testing.assert_close(found, net(images(5)), rtol=1e-3, atol=1e-4)


@pytest.mark.mm
def test_as_a_backbone_of_mmdetection(tmp_path: Path) -> None:
    from pinas_zoo.mm.backbone import PiNASBackbone

    net, x = derive(randomised(SMALL), ARCH), images(2, 32)
    save_backbone(tmp_path / 'mixed.safetensors', net)
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'mixed.safetensors'))
    settings = dict(out_indices=(0, 1), frozen_stages=1, norm_eval=True, with_cp=True)
    backbone = PiNASBackbone(ARCH, SMALL, init_cfg=init, **settings)
    backbone.init_weights()
    backbone.train()
    outputs = backbone(x)
    expected = net.forward_intermediates(x, [1, 2], intermediates_only=True)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    outputs[-1].sum().backward()
    assert backbone.layer2[1].factors.grad is not None and not backbone.layer1[0].factors.requires_grad
    synced = PiNASBackbone(ARCH, SMALL, out_indices=(1,), norm_cfg=dict(type='SyncBN'))
    assert not any(type(module) is torch.nn.BatchNorm2d for module in synced.modules())
