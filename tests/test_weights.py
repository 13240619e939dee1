"""One safe way to load: what is refused, what is reported, and that every entry point uses it."""

import collections
import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from pinas_zoo.models.network import PiNASNet
from pinas_zoo.space import PINAS_NANO
from pinas_zoo.weights.load import load_weights, read_checkpoint, read_weights, save_weights
from pinas_zoo.weights.loading import load_backbone

ARCH = '01-23-32-10'


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.fixture
def net() -> PiNASNet:
    return PiNASNet(ARCH, PINAS_NANO, num_classes=10).eval()


class TestSafety:
    @pytest.mark.parametrize('legacy', [False, True])
    def test_hostile_pickle(self, tmp_path, legacy):
        planted = tmp_path / 'planted'
        content = {'state_dict': {'fc.weight': torch.zeros(2)}, 'meta': Hostile(planted)}
        torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match=r'needs (posix|os)\.system.* Nothing in it was run'):
            read_weights(tmp_path / 'a.pth')
        assert not planted.exists()

    def test_plain_pickle(self, tmp_path):
        planted = tmp_path / 'planted'
        (tmp_path / 'a.pth').write_bytes(pickle.dumps(Hostile(planted)))
        with pytest.raises(ValueError, match='was refused'):
            read_weights(tmp_path / 'a.pth')
        assert not planted.exists()

    @pytest.mark.parametrize('thing', [collections.Counter, np.linalg.norm, print, torch.nn.Linear])
    def test_other_globals(self, tmp_path, thing):
        torch.save({'state_dict': {'a': torch.zeros(1)}, 'extra': thing}, tmp_path / 'a.pth')
        if thing is collections.Counter:  # torch's own list has it: a container
            assert read_weights(tmp_path / 'a.pth')
            return
        with pytest.raises(ValueError, match=rf'needs \S*{thing.__name__}'):
            read_weights(tmp_path / 'a.pth')

    def test_what_others_allowed_does_not_count(self, tmp_path):
        torch.save({'state_dict': {'a': torch.zeros(1)}, 'extra': PINAS_NANO}, tmp_path / 'a.pth')
        kind = type(PINAS_NANO)
        torch.serialization.add_safe_globals([kind])
        try:
            with pytest.raises(ValueError, match='needs pinas_zoo.space.search_space.SearchSpace'):
                read_weights(tmp_path / 'a.pth')
            assert kind in torch.serialization.get_safe_globals()
        finally:
            torch.serialization.clear_safe_globals()

    def test_numpy_values_are_data(self, tmp_path):
        beside = dict(best_pred=np.float64(81.6), array=np.arange(6).reshape(2, 3), name=np.str_('x'), flag=np.bool_(1))
        torch.save({'state_dict': {'a': torch.zeros(1)}, **beside}, tmp_path / 'a.pth')
        extras = read_checkpoint(tmp_path / 'a.pth').extras
        assert extras['best_pred'] == 81.6 and extras['array'].tolist() == [[0, 1, 2], [3, 4, 5]] and extras['flag']
        torch.save({'a': torch.zeros(1), 'objects': np.array([PINAS_NANO], dtype=object)}, tmp_path / 'b.pth')
        with pytest.raises(ValueError, match='was refused'):
            read_checkpoint(tmp_path / 'b.pth')
        assert torch.serialization.get_safe_globals() == []

    def test_numpy_values_of_either_numpy(self, tmp_path):
        """numpy 1 kept its reconstructors in numpy.core; files of both are read."""
        torch.save({'state_dict': {'a': torch.zeros(1)}, 'best_pred': np.float32(2)}, tmp_path / 'a.pth')
        legacy = tmp_path / 'b.pth'
        torch.save(
            {'state_dict': {'a': torch.zeros(1)}, 'b': np.float32(2)}, legacy, _use_new_zipfile_serialization=False
        )
        written = legacy.read_bytes()
        old, new = b'cnumpy.core.multiarray\n', b'cnumpy._core.multiarray\n'
        for content in (written.replace(new, old), written.replace(old, new)):
            legacy.write_bytes(content)
            assert read_checkpoint(legacy).extras['b'] == 2

    @pytest.mark.parametrize('content', [[1, 2], {'state_dict': {'a': 3}}, {'state_dict': {}}, {'epoch': 1}])
    def test_no_weights(self, tmp_path, content):
        torch.save(content, tmp_path / 'a.pth')
        with pytest.raises(ValueError, match='state dict of tensors'):
            read_weights(tmp_path / 'a.pth')

    def test_damaged_files(self, tmp_path, net):
        torch.save(net.state_dict(), tmp_path / 'a.pth')
        for name, content in (('empty.pth', b''), ('incomplete.pth', (tmp_path / 'a.pth').read_bytes()[:4000])):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match='not a readable torch archive'):
                read_weights(tmp_path / name)
        (tmp_path / 'a.safetensors').write_bytes(b'<html>')
        with pytest.raises(ValueError, match='not a readable safetensors'):
            read_weights(tmp_path / 'a.safetensors')


class TestReport:
    def test_every_kind(self, net, tmp_path):
        state = net.state_dict()
        del state['layer1.0.conv1.weight']
        state |= {'odd': torch.zeros(1), 'bn1.bias': torch.zeros(3), 'fc.bias': torch.zeros(3)}
        with pytest.raises(ValueError, match='do not fit PiNASNet') as error:
            load_weights(net, state, 'a file', optional=('fc.',))
        text = str(error.value)
        assert 'a file: matched' in text and 'missing 1, unexpected 1, mismatched 1, skipped 1' in text
        assert 'bn1.bias (3,) for (32,)' in text and 'unexpected: odd' in text

    def test_remapped(self, net, tmp_path):
        torch.save({'state_dict': {f'module.{k}': v for k, v in net.state_dict().items()}}, tmp_path / 'a.pth')
        report = load_backbone(PiNASNet(ARCH, PINAS_NANO, num_classes=10), tmp_path / 'a.pth')
        assert report.fits and len(report.remapped) == len(report.matched) == len(net.state_dict())
        assert 'module.fc.bias -> fc.bias' in report.remapped

    def test_an_unfilled_classifier_is_a_warning(self, net, tmp_path, caplog):
        save_weights(tmp_path / 'a.safetensors', net.state_dict(), {})
        with caplog.at_level(logging.INFO, 'pinas_zoo'):
            timm.create_model('pinas_nano', arch=ARCH, checkpoint=tmp_path / 'a.safetensors')
            timm.create_model('pinas_nano', arch=ARCH, checkpoint=tmp_path / 'a.safetensors', num_classes=3)
        assert [record.levelname for record in caplog.records] == ['INFO', 'WARNING']
        assert 'fc.weight (10, 384) for (3, 384)' in caplog.text


class TestCheckpoint:
    """`checkpoint=` means the same everywhere."""

    @pytest.fixture(params=['plain.pth', 'metadata.safetensors', 'mm.pth'])
    def checkpoint(self, request, net, tmp_path) -> Path:
        path, meta = tmp_path / request.param, {'arch': ARCH, 'space': json.dumps(PINAS_NANO.to_dict())}
        if path.suffix == '.safetensors':
            save_weights(path, net.state_dict(), meta)
        else:
            torch.save({'state_dict': net.state_dict()} | ({'meta': meta} if 'mm' in path.name else {}), path)
        return path

    def test_classifier_and_features(self, net, checkpoint):
        x = torch.rand(2, 3, 28, 28)
        with torch.no_grad():
            # The architecture comes from the file: said there, or found from its shapes.
            assert torch.equal(timm.create_model('pinas_nano', checkpoint=checkpoint).eval()(x), net(x))
            features = timm.create_model('pinas_nano', checkpoint=checkpoint, features_only=True).eval()(x)
            assert torch.equal(features[-1], net.forward_features(x))
            assert timm.create_model('pinas', checkpoint=str(checkpoint), num_classes=10).space == PINAS_NANO

    @pytest.mark.mm
    def test_mm_backbone(self, net, checkpoint):
        from pinas_zoo.mm.backbone import PiNASBackbone

        init = dict(type='Pretrained', checkpoint=str(checkpoint))
        backbone = PiNASBackbone(ARCH, 'pinas_nano', init_cfg=init)
        backbone.init_weights()
        x = torch.rand(2, 3, 28, 28)
        with torch.no_grad():
            assert torch.equal(backbone.eval()(x)[-1], net.forward_features(x))
        other = PiNASBackbone('11-23-32-10', 'pinas_nano', init_cfg=init)
        with pytest.raises(ValueError, match=rf'{ARCH}, but the network has 11-23-32-10'):
            other.init_weights()

    def test_another_architecture(self, checkpoint):
        for extra in ({}, {'features_only': True}):
            with pytest.raises(ValueError, match=rf'has architecture {ARCH}, but the network has 11-23-32-10'):
                timm.create_model('pinas_nano', arch='11-23-32-10', checkpoint=checkpoint, **extra)

    def test_prefix(self, net, tmp_path):
        state = {f'backbone.{k}': v for k, v in net.state_dict().items()} | {'neck.x': torch.zeros(1)}
        torch.save({'state_dict': state}, tmp_path / 'a.pth')
        report = load_backbone(PiNASNet(ARCH, PINAS_NANO, num_classes=10), tmp_path / 'a.pth', 'backbone.')
        assert report.fits and not report.unexpected
        with pytest.raises(ValueError, match=r"no name begins with 'model\.'"):
            load_backbone(net, tmp_path / 'a.pth', 'model.')


@pytest.mark.mm
@pytest.mark.parametrize(('before', 'after'), [('pinas_zoo', 'mmseg'), ('mmdet', 'mmdet')])
def test_mmengine_reads_classes_and_scope(tmp_path, before, after):
    """An Inferencer that was given our scope builds the model in the one that the file names; other scopes stay."""
    from mmengine.registry import DefaultScope, init_default_scope

    from pinas_zoo.mm.checkpoint_loader import load_from_pinas_zoo

    meta = {'default_scope': 'mmseg', 'dataset_meta': json.dumps({'classes': ['wall', 'floor']})}
    save_weights(tmp_path / 'a.safetensors', {'x': torch.ones(2)}, meta)
    earlier = DefaultScope.get_current_instance()
    init_default_scope(before)
    try:
        checkpoint = load_from_pinas_zoo(str(tmp_path / 'a.safetensors'), 'cpu')
        assert DefaultScope.get_current_instance().scope_name == after
    finally:
        init_default_scope(earlier.scope_name if earlier else 'pinas_zoo')
    assert checkpoint['meta']['dataset_meta']['classes'] == ['wall', 'floor']
    assert torch.equal(checkpoint['state_dict']['x'], torch.ones(2))


def test_equal_weights_have_equal_hashes(tmp_path):
    from pinas_zoo.files import file_sha256
    from pinas_zoo.weights.load import read_weights, save_weights

    state = {'a': torch.arange(3.0), 'b.weight': torch.ones(2, 3, dtype=torch.bfloat16)}
    facts = {f'key {i}': i for i in range(12)}
    for i in range(4):
        save_weights(tmp_path / f'{i}.safetensors', state, facts)
    assert len({file_sha256(tmp_path / f'{i}.safetensors') for i in range(4)}) == 1
    back, metadata = read_weights(tmp_path / '0.safetensors')
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert metadata == {key: str(value) for key, value in facts.items()}
