"""Publishing: timm's hub folder, mmengine's form, torch.hub, model cards."""

import json
import runpy
from pathlib import Path

import pytest
import timm
import torch

from pinas_zoo.files import file_sha256
from pinas_zoo.models.network import PINAS_A, PINAS_B, PiNASNet
from pinas_zoo.ranking.spaces import RANK_SPACE
from pinas_zoo.space import PINAS, PINAS_NANO, PINAS_TINY
from pinas_zoo.weights.load import read_weights, save_weights
from pinas_zoo.weights.publish import publish
from tools.publish_model import main

ROOT = Path(__file__).resolve().parents[1]
ARCH = '01-23-32-10'


def checkpoint(folder: Path, prefix: str = 'net.', **kwargs) -> tuple[PiNASNet, Path]:
    """A training checkpoint of the retraining stage, with what the runner leaves in it."""
    net = PiNASNet(ARCH, PINAS_NANO, **dict(num_classes=10) | kwargs).eval()
    state = {f'{prefix}{name}': tensor for name, tensor in net.state_dict().items()}
    content = {'state_dict': state, 'optimizer': {'state': {0: torch.zeros(9)}}, 'meta': {'seed': 1, 'cfg': 'x'}}
    torch.save(content, folder / 'iter_10.pth')
    return net, folder / 'iter_10.pth'


@pytest.mark.parametrize('prefix', ['', 'net.', 'module.net.'])
def test_classifier(tmp_path, prefix):
    net, path = checkpoint(tmp_path, prefix)
    command = ['--data', 'Fashion-MNIST', '--metric', 'top-1=91.5', '--protocol', 'test set', '--licence', 'Apache-2.0']
    assert main([str(path), str(tmp_path / 'out'), *command, '--preprocess', '{"mean": [0.5, 0.5, 0.5]}']) == 0
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
        features = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True, features_only=True).eval()
        assert torch.equal(features(x)[-1], net.forward_features(x))
    assert again.pretrained_cfg['mean'] == [0.5, 0.5, 0.5] and again.pretrained_cfg['license'] == 'Apache-2.0'
    card = (tmp_path / 'out' / 'README.md').read_text()
    digest = file_sha256(tmp_path / 'out' / 'model.safetensors')
    assert all(text in card for text in (ARCH, 'Fashion-MNIST', 'top-1: 91.5', 'test set', digest, file_sha256(path)))


def test_mmengine_form(tmp_path):
    _, path = checkpoint(tmp_path)
    published = publish(path, tmp_path / 'out', name='nano')
    assert published.mmengine.name == f'nano-{file_sha256(published.mmengine)[:8]}.pth'
    content = torch.load(published.mmengine, weights_only=True)
    assert set(content) == {'state_dict', 'meta'} and 'net.fc.bias' in content['state_dict']
    assert content['meta']['arch'] == ARCH and 'cfg' in content['meta']


def test_backbone_of_a_segmentor(tmp_path):
    net, path = checkpoint(tmp_path, 'backbone.', num_classes=0)
    content = torch.load(path)
    content['state_dict']['decode_head.x'] = torch.zeros(1)
    torch.save(content, path)
    published = publish(path, tmp_path / 'out')
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True, features_only=True).eval()
    x = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(x)[-1], net.forward_features(x))
    assert 'decode_head.x' in read_weights(published.mmengine)[0]


def test_a_space_with_a_stem_of_single_pixels(tmp_path):
    net = PiNASNet('04-21', RANK_SPACE, num_classes=5).eval()
    save_weights(tmp_path / 'net.safetensors', net.state_dict(), {'space': json.dumps(RANK_SPACE.to_dict())})
    assert publish(tmp_path / 'net.safetensors', tmp_path / 'out').architecture == 'pinas'
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = torch.rand(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


def test_names_and_spaces(tmp_path):
    """pinas_a and pinas_b have names of their own; any other network is `pinas` with its architecture."""
    tiny = PiNASNet(PINAS_A, PINAS_TINY, num_classes=3, in_chans=1).eval()
    torch.save(tiny.state_dict(), tmp_path / 'tiny.pth')
    assert publish(tmp_path / 'tiny.pth', tmp_path / 'tiny').architecture == 'pinas'
    again = timm.create_model(f'local-dir:{tmp_path / "tiny"}', pretrained=True).eval()
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), tiny(x))
    net = PiNASNet(PINAS_B, PINAS, num_classes=0)
    torch.save(net.state_dict(), tmp_path / 'b.pth')
    assert publish(tmp_path / 'b.pth', tmp_path / 'b').architecture == 'pinas_b'
    assert 'model_args' not in json.loads((tmp_path / 'b' / 'config.json').read_text())


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        ({'net.layer1.0.bn1.bias': None}, 'layer1.0.bn1.bias'),
        ({'net.odd': 0}, 'odd'),
        ({'net.conv1.0.weight': None}, 'no network of this project'),
    ],
)
def test_refusal(tmp_path, capsys, change, says):
    _, path = checkpoint(tmp_path)
    content = torch.load(path)
    for name, value in change.items():
        content['state_dict'].pop(name, None)
        if value is not None:
            content['state_dict'][name] = torch.zeros(1)
    torch.save(content, path)
    assert main([str(path), str(tmp_path / 'out')]) == 1
    assert says in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_torch_hub(tmp_path, monkeypatch):
    monkeypatch.setenv('PINAS_OFFLINE', '1')
    monkeypatch.setenv('PINAS_ZOO_HOME', str(tmp_path))
    net = torch.hub.load(str(ROOT), 'pinas_nano', source='local', num_classes=3)
    assert net(torch.rand(2, 3, 28, 28)).shape == (2, 3)
    with pytest.raises(RuntimeError, match='could not be obtained'):
        torch.hub.load(str(ROOT), 'pinas_a', source='local', pretrained=True)


def test_torch_hub_lists_what_timm_lists():
    hub = runpy.run_path(str(ROOT / 'hubconf.py'))  # torch.hub takes every callable for an entry point
    names = {name for name, value in hub.items() if callable(value) and not name.startswith('_')}
    assert names == set(timm.list_models('pinas*')) and 'Pi-NAS-cls' in hub['pinas_a'].__doc__
    net = torch.hub.load(str(ROOT), 'pinas', source='local', arch=PINAS_B, num_classes=2)
    assert net.space.format(net.arch) == PINAS_B
