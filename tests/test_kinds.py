"""Kinds of candidates besides the bottleneck: inverted residual, identity, and one that the test registers."""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import pinas_zoo  # noqa: F401  registers the timm names
from pinas_zoo.methods.sparse import SparseSupernet
from pinas_zoo.models.cost import Cost, CostTable, count
from pinas_zoo.models.export import compare, export_onnx, export_program, fold_batch_norms, run_onnx
from pinas_zoo.models.graphs import Segment
from pinas_zoo.models.kinds import BUILDERS, Block, Place, last_norm, register_builder
from pinas_zoo.models.latency import measure_table
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.supernet import Path as NetPath
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.report.architecture import arch_figure
from pinas_zoo.search.prefix_tree import PrefixTree
from pinas_zoo.space import (
    NAS_BENCH_MACRO,
    PINAS,
    PINAS_NANO,
    PINAS_PATCH,
    PINAS_TINY,
    Candidate,
    CandidateKind,
    Identity,
    InvertedResidual,
    SearchSpace,
    get_space,
)
from pinas_zoo.space.candidates import KINDS
from pinas_zoo.weights.entry_points import load_backbone
from pinas_zoo.weights.publish import publish
from pinas_zoo.weights.shapes import backbone_shapes, find_arch, find_space, shapes_of, supernet_shapes

#: Every form of the kinds, in three positions; the first and the last change the shape.
MOBILE = replace(
    NAS_BENCH_MACRO,
    name='mobile',
    depths=(2, 1),
    planes=(8, 16),
    strides=(2, 2),
    stem_widths=(8, 8),
    candidates=(
        Identity(),
        InvertedResidual(3, 3),
        InvertedResidual(5, 2, se=0.25),
        InvertedResidual(3, 1),
        InvertedResidual(3, 3, se=0.5),
    ),
    final_width=24,
)
#: Bottlenecks, which share a projection, beside kinds that have none.
BOTH = replace(MOBILE, name='both', candidates=(Candidate(), InvertedResidual(3, 2), Identity(), Candidate(skip=True)))
SPACES = pytest.mark.parametrize('space', [MOBILE, BOTH], ids=lambda space: space.name)


def randomised(space: SearchSpace) -> SuperNet:
    """A supernet whose BN layers all do something."""
    torch.manual_seed(0)
    net = SuperNet(space, zero_init_last=False)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return net.eval()


IMAGES = torch.randn(2, 3, 21, 18, generator=torch.Generator().manual_seed(1))


# ---- exactness -------------------------------------------------------------------------------------------------------


@SPACES
def test_extraction_costs_and_shapes_are_exact_for_every_architecture(space: SearchSpace) -> None:
    net, table = randomised(space), CostTable(space, (21, 18), 7)
    x = IMAGES
    for arch in space.all_archs():
        path, alone = net.path(arch), net.extract(arch)
        with torch.no_grad():
            out = path(x)
            assert torch.equal(out, alone.forward_features(x)) and out.shape == (2, 24, 6, 5)
        assert list(path.state_dict()) != [] and path.state_dict().keys() == alone.state_dict().keys()
        assert len(path.parameters()) == len(list(alone.parameters()))
        whole = PiNASNet(arch, space, num_classes=7, device='meta')
        assert count(whole, (21, 18)) == table.of(arch), space.format(arch)
        shapes = backbone_shapes(space, arch, 7)
        assert shapes == shapes_of(whole.state_dict())
        found = tuple(2 if space is BOTH and choice == 3 else choice for choice in arch)  # two kinds of skip
        assert find_arch(shapes, space) == found
    assert supernet_shapes(space) == shapes_of(net.state_dict())


@pytest.mark.parametrize('output_stride', [8, 16])
def test_dilated_networks_keep_their_weights(output_stride: int) -> None:
    net, space = randomised(MOBILE), replace(MOBILE, stem_stride=4)
    for arch in ('11-1', '02-4', '30-0'):
        wide = PiNASNet(arch, space, 0, output_stride=output_stride, device='meta')
        assert shapes_of(wide.state_dict()) == shapes_of(net.extract(arch).state_dict())
        assert count(wide, 37) == CostTable(space, 37, 0, output_stride=output_stride).of(arch)


def test_the_final_convolution_belongs_to_the_path() -> None:
    net = randomised(MOBILE).train()
    path = net.path('11-2')
    path(torch.randn(4, 3, 16, 16)).square().sum().backward()
    touched = {id(p) for p in net.parameters() if p.grad is not None}
    assert touched == {id(p) for p in path.parameters()}
    assert {id(p) for p in net.final_conv.parameters()} <= touched
    segments = [Segment(net, position, choice) for position, choice in enumerate(path.arch)]
    assert {id(p) for segment in segments for p in segment.parameters()} == touched
    net.eval()
    with torch.no_grad():
        x = IMAGES
        for segment in segments:
            x = segment(x)
        assert torch.equal(x, path(IMAGES))
    assert Segment(net, 1, 0).empty and not Segment(net, 2, 0).empty


def test_zero_init_leaves_only_what_has_a_shortcut_at_zero() -> None:
    net = SuperNet(MOBILE)
    norms = [[last_norm(block) for block in position.candidates] for position in net.blocks]
    scales = [[None if norm is None else bool(norm.weight.any()) for norm in row] for row in norms]
    assert scales[0] == scales[2] == [True] * 5 and scales[1] == [None] + [False] * 4
    depthwise = SuperNet(replace(MOBILE, stem_widths=(64,))).blocks[0][2].conv2.weight
    assert math.isclose(float(depthwise.detach().std()), math.sqrt(2 / 25), rel_tol=0.1)


@SPACES
def test_the_prefix_tree_gives_the_scores_of_networks_alone(space: SearchSpace) -> None:
    """With re-estimated statistics, those of the final convolution included, which differ by path."""
    net, head = randomised(space), nn.Linear(24, 5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    batches = [torch.randn(6, 3, 16, 16) for _ in range(2)]
    labels = torch.randint(5, (6,))
    archs = [space.parse(arch) for arch in ('10-1', '11-2', '01-0', '10-2')]
    tree = PrefixTree(net, archs)
    tree.calibrate(batches)
    scores = tree.evaluate([(batches[0], labels)], head)
    for arch, score in zip(archs, scores, strict=True):
        alone = net.extract(arch)
        torch.optim.swa_utils.update_bn(batches, alone)
        alone.eval()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(head(alone.forward_features(batches[0]).mean((2, 3))), labels)
        assert math.isclose(score.loss, float(loss), rel_tol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@SPACES
def test_mixed_paths(space: SearchSpace) -> None:
    """A mixture in the supernet is that of the extracted network; with factors 0 and 1 it is one candidate."""
    net = randomised(space)
    archs = ['(13)1-1', '1(12)-(014)'] if space is MOBILE else ['(01)1-1', '1(01)-(012)']
    for text in archs:
        arch = space.parse(text)
        with torch.no_grad():
            alone = net.extract(arch)
            assert torch.equal(net(IMAGES, arch), alone.forward_features(IMAGES))
        assert CostTable(space, 16, 7).of(arch) == count(PiNASNet(arch, space, 7, device='meta'), 16)
        factors = [torch.eye(len(c))[0] if isinstance(c, tuple) else None for c in arch]
        first = tuple(c[0] if isinstance(c, tuple) else c for c in arch)
        with torch.no_grad():
            torch.testing.assert_close(net.path(arch, factors)(IMAGES), net(IMAGES, first), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='a skip adds nothing'):
        space.parse('1(01)-1' if space is MOBILE else '1(02)-1')
    every = tuple(range(5))
    if space is MOBILE:  # as methods that mix every candidate do
        with torch.no_grad():
            assert NetPath(net, (every,) * 3)(IMAGES).isfinite().all()
        with pytest.raises(ValueError, match='has a skip, candidate 0'):
            SparseSupernet(net, 5)


# ---- the network in timm, export, files ------------------------------------------------------------------------------


def test_timm_contract_and_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model('pinas', space=MOBILE.to_dict(), arch='12-4', num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        final, stages = net.forward_intermediates(x)
        assert torch.equal(final, net.forward_features(x)) and net.forward_head(final).shape == (2, 5)
        assert [s.shape[1] for s in stages] == [i['num_chs'] for i in net.feature_info] == [8, 8, 16]
        scripted = torch.jit.script(net)
        torch.testing.assert_close(scripted(x), net(x))
        net.set_grad_checkpointing()
        assert torch.equal(net.forward_features(x), final)
        features = timm.create_model('pinas', space=MOBILE.to_dict(), arch='12-4', features_only=True)
        assert [f.shape[1] for f in features(x)] == [8, 8, 16]
    state = {'state_dict': net.state_dict(), 'meta': {'space': json.dumps(MOBILE.to_dict())}}
    torch.save(state, tmp_path / 'net.pth')
    settings = {'mean': [0.5] * 3, 'std': [0.25] * 3}
    done = publish(tmp_path / 'net.pth', tmp_path / 'hub', preprocess=settings)
    again = timm.create_model(f'local-dir:{done.folder}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(x), net(x)) and again.space == MOBILE
    other = PiNASNet('12-4', replace(MOBILE, final_width=0), num_classes=5)
    with pytest.raises(ValueError, match='is of space'):
        load_backbone(other, done.folder / 'model.safetensors')


def test_export(tmp_path: Path) -> None:
    net = randomised(MOBILE).extract('12-4', num_classes=5)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
        assert compare(fold_batch_norms(net)(x), expected) < 1e-4 * float(expected.abs().max())
        assert compare(export_program(net, x).module()(x), expected) < 1e-4 * float(expected.abs().max())
    pytest.importorskip('onnxruntime')
    export_onnx(net, x, tmp_path / 'net.onnx')
    assert compare(run_onnx(tmp_path / 'net.onnx', x), expected) < 1e-4 * float(expected.abs().max())


def test_a_plain_file_of_the_macro_space_is_recognised() -> None:
    for arch in ('00-000-000', '12-012-200', '22-222-222'):
        shapes = backbone_shapes(NAS_BENCH_MACRO, NAS_BENCH_MACRO.parse(arch), 10)
        assert find_space(shapes) is NAS_BENCH_MACRO
        found = NAS_BENCH_MACRO.format(find_arch(shapes, NAS_BENCH_MACRO))
        assert found == arch


def test_latency_and_figure() -> None:
    table = measure_table(SuperNet(MOBILE), 'cpu', checks=0, min_seconds=1e-4, size=(16, 16), num_classes=5)
    assert table.of('12-4') > 0 and all(one is not None for row in table.table for one in row)
    figure = arch_figure(MOBILE, '10-4')
    assert 'skip' in figure.data and 'e3 k3' in figure.data and 'inverted residual' in figure.data


# ---- a kind of one's own ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shift(CandidateKind):
    """Shifts channels, then mixes them: no formula for its cost in the library."""

    kind: ClassVar[str] = 'shift'
    groups: int = 1


class ShiftBlock(Block):
    def __init__(self, candidate: Shift, place: Place) -> None:
        super().__init__()
        self.residual = not place.changes_shape
        self.pool = nn.AvgPool2d(place.stride, ceil_mode=True) if place.stride > 1 else nn.Identity()
        self.conv = nn.Conv2d(place.in_channels, place.out_channels, 1, groups=candidate.groups, bias=False)
        self.bn = place.layers.norm(place.out_channels)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.pool(x.roll(1, dims=3))))

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        return self.branch(x) + x if self.residual else self.branch(x)

    def last_norm(self) -> nn.Module:
        return self.bn


@pytest.fixture
def shift() -> Any:
    register_builder(Shift)(ShiftBlock)
    yield replace(MOBILE, name='shift', candidates=(Shift(), Shift(groups=2), InvertedResidual(3, 2)))
    del KINDS['shift'], BUILDERS[Shift]


def test_a_registered_kind(shift: SearchSpace) -> None:
    values = json.loads(json.dumps(shift.to_dict()))
    assert values['candidates'][1] == {'kind': 'shift', 'groups': 2} and get_space(values) == shift
    net, table = randomised(shift), CostTable(shift, (21, 18), 7)
    for arch in shift.all_archs():
        alone = net.extract(arch)
        with torch.no_grad():
            assert torch.equal(net(IMAGES, arch), alone.forward_features(IMAGES))
        assert count(PiNASNet(arch, shift, 7, device='meta'), (21, 18)) == table.of(arch)
        assert find_arch(shapes_of(alone.state_dict()), shift) == arch
    assert 'shift, groups 2' in arch_figure(shift, '11-0').data
    folded = SparseSupernet(net, 5).folded()  # its last BN is known
    assert isinstance(folded, SuperNet)


def test_registering_is_checked(shift: SearchSpace) -> None:
    class Nameless(CandidateKind):
        pass

    class Other(CandidateKind):
        kind = 'shift'

    with pytest.raises(ValueError, match='Nameless needs a class attribute `kind`'):
        register_builder(Nameless)
    with pytest.raises(ValueError, match="kind 'shift' is already that of Shift"):
        register_builder(Other)
    builder = BUILDERS.pop(Shift)
    with pytest.raises(ValueError, match=r'no builder is registered for Shift\(groups=1\)'):
        SuperNet(shift)
    BUILDERS[Shift] = builder


# ---- the space -------------------------------------------------------------------------------------------------------


def test_what_was_recorded_stays_what_it_was() -> None:
    """Neither new fields nor a kind in the files of spaces of bottlenecks, and no new names in their networks."""
    for space in (PINAS, PINAS_NANO, PINAS_PATCH, PINAS_TINY):
        values = space.to_dict()
        assert 'final_width' not in values and all('kind' not in one for one in values['candidates'])
        assert [list(one) for one in values['candidates']] == [
            ['radix', 'cardinality', 'base_width', 'kernel', 'skip']
        ] * len(space.candidates)
    assert not [name for name in supernet_shapes(PINAS_NANO) if 'final' in name]


def test_choices_skips_and_canonical_forms() -> None:
    macro = NAS_BENCH_MACRO
    assert macro.num_archs == 6561 and all(macro.choices(position) == (0, 1, 2) for position in range(8))
    assert [macro.is_skip(position, 0) for position in range(8)] == [False, True, False, True, True, False, True, True]
    assert macro.format(macro.canonical('01-001-020')) == '01-010-020'
    assert not any(macro.has_projection(position) for position in range(8)) and macro.num_features == 1280
    assert BOTH.choices(0) == (0, 1, 2) and BOTH.choices(1) == (0, 1, 2, 3) and BOTH.has_projection(0)
    assert [BOTH.shares(0, choice) for choice in (0, 1, 2)] == [True, False, False] and not BOTH.shares(1, 0)
    for space in (MOBILE, BOTH, macro):
        assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    first, second = macro.distinct_pair(np.random.default_rng(0))
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: InvertedResidual(kernel=4), 'kernel must be odd, got 4'),
        (lambda: InvertedResidual(expansion=0), 'expansion must be an integer of at least 1, got 0'),
        (lambda: InvertedResidual(se=2), 'se must be a number in 0..1, got 2'),
        (lambda: replace(MOBILE, final_width=-1), 'final_width must be an integer of at least 0, got -1'),
        (lambda: replace(MOBILE, stem_widths=()), 'stem_widths must have one to three entries'),
        (
            lambda: SearchSpace.from_dict({'name': 'x', 'candidates': [{'kind': 'ghost'}]}),
            "unknown kind of candidate 'ghost', known: ['bottleneck', 'identity', 'inverted_residual'",
        ),
        (
            lambda: SearchSpace.from_dict({'name': 'x', 'candidates': [{'kind': 'identity', 'kernel': 3}]}),
            "is not a candidate of kind 'identity'",
        ),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_costs_of_the_macro_space() -> None:
    """Some rows of the published table; `pinas rank` checks all 6,561."""
    table = CostTable(NAS_BENCH_MACRO, 32, 10)
    for arch, params, macs in (
        ('02012100', 890666, 47327744),
        ('11111221', 2181386, 65012224),
        ('00220121', 2038570, 54901248),
    ):
        assert table.of(arch) == Cost(macs, params)
