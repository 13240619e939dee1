"""Released checkpoints are converted: recognised, complete, and with the same outputs."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from golden import arrays, fill_value, filled, image, keys
from released import deeplab_shapes_released, mask_rcnn_shapes_released

from pinas_zoo.files import file_sha256
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.network import PINAS_A, PINAS_B, PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import PINAS, PINAS_NANO, PINAS_TINY, Candidate, SearchSpace
from pinas_zoo.weights.load import read_weights
from pinas_zoo.weights.loading import load_supernet
from pinas_zoo.weights.released.convert import convert_file, recognise
from pinas_zoo.weights.shapes import backbone_shapes, find_arch, find_space, shapes_of, supernet_shapes
from tools.convert_checkpoint import main

ODD = SearchSpace(
    'odd',
    depths=(2, 3),
    planes=(16, 32),
    strides=(1, 2),
    stem_widths=(8, 8, 16),
    candidates=(Candidate(skip=True), Candidate(), Candidate(radix=2, kernel=5)),
)


def save(path: Path, state: dict, **extras) -> Path:
    torch.save({'state_dict': state, **extras}, path)
    return path


@pytest.fixture(scope='module')
def released_cls(tmp_path_factory) -> Path:
    """A synthetic PiNAS_cls.pth.tar, as the released training would have saved it."""
    state = {f'module.{name}': tensor for name, tensor in filled(keys('cls_keys.json')).items()}
    path = tmp_path_factory.mktemp('released') / 'PiNAS_cls.pth.tar'
    beside = dict(epoch=270, best_pred=np.float64(81.6), optimizer={'state': {0: torch.zeros(2)}}, author='someone')
    return save(path, state, **beside)


class TestShapes:
    @pytest.mark.parametrize(
        ('space', 'arch'), [(PINAS_NANO, '01-23-32-10'), (PINAS_TINY, PINAS_A), (ODD, '10-202'), (PINAS, PINAS_B)]
    )
    def test_backbone(self, space, arch):
        net = PiNASNet(arch, space, num_classes=7, in_chans=1, device='meta')
        assert backbone_shapes(space, net.arch, 7, 1) == shapes_of(net.state_dict())
        assert space.format(find_arch(shapes_of(net.state_dict()), space)) == arch

    @pytest.mark.parametrize('space', [PINAS_NANO, PINAS_TINY, ODD])
    def test_supernet(self, space):
        assert supernet_shapes(space) == shapes_of(SuperNet(space).state_dict())

    def test_space(self):
        for space in (PINAS, PINAS_NANO, PINAS_TINY):
            assert find_space(backbone_shapes(space, (0,) * space.num_positions)) is space
        with pytest.raises(ValueError, match='no known space'):
            find_space({'conv1.weight': (64, 3, 7, 7)})

    def test_unclear_position(self):
        shapes = backbone_shapes(PINAS_NANO, (0,) * 8)
        with pytest.raises(ValueError, match='layer2.1 fits no candidate'):
            find_arch({name: shape for name, shape in shapes.items() if not name.startswith('layer2.1')}, PINAS_NANO)


@pytest.fixture(scope='module')
def converted(released_cls) -> Path:
    path = released_cls.with_name('pinas_a.safetensors')
    assert main([str(released_cls), str(path), '--arch', 'pinas_a']) == 0
    return path


class TestClassifier:
    def test_computes_the_same(self, converted):
        net = timm.create_model('pinas_a', checkpoint=converted).eval()
        with torch.no_grad():
            logits = net(image())
        np.testing.assert_allclose(logits, arrays('cls.npz')['logits_64'], rtol=0, atol=1e-4)

    def test_metadata(self, converted, released_cls):
        state, metadata = read_weights(converted)
        assert len(state) == 476
        assert metadata['kind'] == 'classifier' and metadata['arch'] == PINAS_A
        assert metadata['source'] == 'PiNAS_cls.pth.tar'
        assert metadata['source_sha256'] == file_sha256(released_cls)
        assert 'without a stated licence' in metadata['licence'] and metadata['version']
        assert SearchSpace.from_dict(json.loads(metadata['space'])) == PINAS

    def test_another_architecture(self, released_cls, tmp_path, capsys):
        assert main([str(released_cls), str(tmp_path / 'x.safetensors'), '--arch', 'pinas_b']) == 1
        said = capsys.readouterr().err
        assert PINAS_A in said and PINAS_B in said and not list(tmp_path.iterdir())


def nano_classifier(**changes) -> dict[str, torch.Tensor]:
    state = PiNASNet('01-23-32-10', PINAS_NANO, num_classes=10).state_dict()
    return {name: tensor for name, tensor in (state | changes).items() if tensor is not None}


class TestRefusal:
    @pytest.mark.parametrize(
        ('changes', 'says'),
        [
            ({'layer1.0.conv1.weight': None}, 'missing: layer1.0.conv1.weight'),
            ({'layer1.0.conv3.weight': torch.zeros(3, 3)}, r'mismatched: layer1.0.conv3.weight (3, 3) for (64,'),
            ({'layer9.0.conv1.weight': torch.zeros(3)}, 'no known space'),
            ({'neck.weight': torch.zeros(3)}, 'unexpected: neck.weight'),
            ({'layer1.0.bn1.weight': torch.full((16,), torch.nan)}, 'layer1.0.bn1.weight is not finite'),
            ({'fc.weight': None}, 'missing: fc.weight'),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, capsys, changes, says):
        source = save(tmp_path / 'a.pth', nano_classifier(**changes))
        assert main([str(source), str(tmp_path / 'out' / 'x.safetensors')]) == 1
        assert says in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ['a.pth']

    def test_tensors_beside_the_weights(self, tmp_path, capsys):
        source = save(tmp_path / 'a.pth', nano_classifier(), ema={'fc.weight': torch.zeros(1)})
        assert main([str(source), str(tmp_path / 'x.safetensors')]) == 1
        assert 'unexpected: ema (beside' in capsys.readouterr().err

    def test_known_non_weights(self, tmp_path, capsys):
        extras = dict(optimizer={}, epoch=1, iteration=2, scheduler={}, meta={}, amp={}, arch='resnest50')
        source = save(tmp_path / 'a.pth', nano_classifier(), **extras, best_pred=np.float32(1))
        assert main([str(source), str(tmp_path / 'x.safetensors')]) == 0
        assert 'dropped 8' in (said := capsys.readouterr().out) and "note: 'arch' is not in the list" in said

    def test_absent_counters(self, tmp_path, capsys):
        state = {k: v for k, v in nano_classifier().items() if not k.endswith('num_batches_tracked')}
        assert main([str(save(tmp_path / 'a.pth', state)), str(tmp_path / 'x.safetensors')]) == 0
        assert 'num_batches_tracked are missing' in capsys.readouterr().out
        assert len(read_weights(tmp_path / 'x.safetensors')[0]) == len(nano_classifier())

    def test_foreign_and_torn_files(self, tmp_path, capsys):
        foreign = save(tmp_path / 'vgg.pth', {'features.0.weight': torch.zeros(2)})
        incomplete = tmp_path / 'incomplete.pth'
        incomplete.write_bytes(save(tmp_path / 'a.pth', nano_classifier()).read_bytes()[:5000])
        for path, says in (
            (foreign, 'not a known released'),
            (incomplete, 'was refused'),
            (tmp_path / 'no', 'does not exist'),
        ):
            assert main([str(path), str(tmp_path / 'x.safetensors')]) == 1
            assert says in capsys.readouterr().err and not (tmp_path / 'x.safetensors').exists()

    def test_destination(self, tmp_path, capsys):
        source = save(tmp_path / 'a.pth', nano_classifier())
        for name, says in (('x.bin', 'must end in'), ('a.pth', 'source')):
            assert main([str(source), str(tmp_path / name)]) == 1
            assert says in capsys.readouterr().err
        assert main([str(source), str(tmp_path / 'x.pth')]) == 0
        assert read_weights(tmp_path / 'x.pth')[1]['kind'] == 'classifier'
        assert main([str(source), str(tmp_path / 'x.safetensors'), '--kind', 'deeplabv3']) == 1
        assert "is of kind 'classifier'" in capsys.readouterr().err


@functools.cache
def _released_training(dim: int = 32, length: int = 64) -> dict[str, torch.Tensor]:
    names = keys('supernet_tiny_keys.json')
    state = {}
    for side in 'qk':
        state |= {f'encoder_{side}.0.{name}': tensor for name, tensor in filled(names['backbone']).items()}
        state |= {f'encoder_{side}.1.{name}': tensor for name, tensor in filled(names['neck']).items()}
        if side == 'k':
            state['encoder_k.0.bn1.bias'] = state['encoder_k.0.bn1.bias'] + 1
    state |= {f'backbone.{name}': tensor for name, tensor in filled(names['backbone']).items()}
    return state | {'queue': fill_value('queue', (dim, length)), 'queue_ptr': torch.tensor([5])}


def released_training() -> dict[str, torch.Tensor]:
    """A dictionary of its own, of tensors that are made once."""
    return dict(_released_training())


class TestSupernet:
    def check_golden(self, path: Path) -> None:
        golden = arrays('supernet_tiny.npz')
        net = load_supernet(path, PINAS_TINY).eval()
        with torch.no_grad():
            out = net(image(), tuple(map(int, golden['path'])))
        np.testing.assert_allclose(out, golden['out'], rtol=0, atol=1e-4)

    def test_backbone_only(self, tmp_path):
        state = filled(keys('supernet_tiny_keys.json')['backbone'])
        converted = convert_file(save(tmp_path / 'a.pth', state, author='someone'), tmp_path / 'x.safetensors')
        assert converted.kind == 'supernet' and 'author' in converted.report.dropped
        self.check_golden(tmp_path / 'x.safetensors')

    @pytest.mark.parametrize('name', ['x.safetensors', 'x.pth'])
    def test_training(self, tmp_path, name):
        source, path = save(tmp_path / 'a.pth', released_training(), epoch=3), tmp_path / name
        assert main([str(source), str(path), '--kind', 'supernet-training']) == 0
        self.check_golden(path)
        state, metadata = read_weights(path)
        method = PiNAS(SuperNet(PINAS_TINY), dim=32, queue_length=64)
        method.load_state_dict({name.removeprefix('method.'): tensor for name, tensor in state.items()})
        assert method.queue_ptr.item() == 5
        student, teacher = method.student.backbone, method.teacher.backbone
        torch.testing.assert_close(teacher.bn1.bias - 1, student.bn1.bias)
        assert metadata['kind'] == 'supernet-training'

    @pytest.mark.parametrize(
        ('change', 'says'),
        [
            (('backbone.conv1.0.weight', 0), 'backbone.conv1.0.weight is not equal to encoder_q.0.conv1.0.weight'),
            (('encoder_k.1.mlp.0.bias', None), 'missing: method.teacher.projector.2.bias'),
            (('queue', None), 'missing: method.queue'),
            (('encoder_q.2.x', 0), 'unexpected: encoder_q.2.x'),
        ],
    )
    def test_refusal(self, tmp_path, capsys, change, says):
        state, (name, value) = released_training(), change
        state[name] = torch.zeros_like(state.get(name, torch.zeros(1)))
        if value is None:
            del state[name]
        assert main([str(save(tmp_path / 'a.pth', state)), str(tmp_path / 'x.safetensors')]) == 1
        assert says in capsys.readouterr().err and not (tmp_path / 'x.safetensors').exists()


def test_kinds_by_their_names():
    assert recognise(deeplab_shapes_released(PINAS_NANO, '01-23-32-10', 5)) == 'deeplabv3'
    assert recognise(mask_rcnn_shapes_released(PINAS_NANO, '01-23-32-10', 5)) == 'mask-rcnn'
