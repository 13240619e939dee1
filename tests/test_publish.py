"""Publishing: timm's hub folder, mmengine's form, torch.hub, model cards."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from torch import nn

from pinas_zoo.data import SupervisedView
from pinas_zoo.files import file_sha256
from pinas_zoo.models.network import PINAS_A, PINAS_B, PiNASNet
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.ranking.spaces import RANK_SPACE
from pinas_zoo.space import PINAS, PINAS_NANO, PINAS_TINY
from pinas_zoo.weights import publish as publish_module
from pinas_zoo.weights.load import read_weights, save_weights
from pinas_zoo.weights.loading import stated_facts
from pinas_zoo.weights.manifest import find_entry
from pinas_zoo.weights.model_card import Card
from pinas_zoo.weights.publish import publish
from tools.publish_model import main

ROOT = Path(__file__).resolve().parents[1]
ARCH = '01-23-32-10'
NAMES = [f'thing {index}' for index in range(10)]
INPUT = {'input_size': [3, 28, 28], 'mean': [0.2] * 3, 'std': [0.3] * 3, 'crop_pct': 0.9, 'interpolation': 'bicubic'}
STATISTICS = {'mean': [0.2] * 3, 'std': [0.3] * 3}


def checkpoint(folder: Path, prefix: str = 'net.', **kwargs) -> tuple[PiNASNet, Path]:
    """A checkpoint of the retraining stage, with everything that the runner stores in it."""
    net = PiNASNet(ARCH, PINAS_NANO, **dict(num_classes=10) | kwargs).eval()
    state = {f'{prefix}{name}': tensor for name, tensor in net.state_dict().items()}
    meta = {'seed': 1, 'cfg': 'x', 'dataset_meta': {'classes': NAMES, 'preprocess': INPUT}}
    content = {'state_dict': state, 'optimizer': {'state': {0: torch.zeros(9)}}, 'meta': meta}
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
    row = again.pretrained_cfg
    assert row['license'] == 'Apache-2.0' and row['label_names'] == NAMES
    expected = INPUT | {'mean': [0.5] * 3}  # what is given is stronger than what the checkpoint states
    assert {key: row[key] for key in INPUT} == expected
    card = (tmp_path / 'out' / 'README.md').read_text()
    digest = file_sha256(tmp_path / 'out' / 'model.safetensors')
    assert all(text in card for text in (ARCH, 'Fashion-MNIST', 'top-1: 91.5', 'test set', digest, file_sha256(path)))


def test_a_file_of_the_zoo_brings_its_own_statistics(tmp_path):
    publish(ROOT / 'checkpoints' / 'pinas_nano_a.fmnist.safetensors', tmp_path / 'out')
    row = json.loads((tmp_path / 'out' / 'config.json').read_text())
    own = find_entry('pinas_nano_a.fmnist').preprocess
    assert own and {key: row['pretrained_cfg'][key] for key in own} == own
    assert row['label_names'][9] == 'Ankle boot'


def test_a_classifier_without_statistics_is_refused(tmp_path, capsys):
    net, _ = checkpoint(tmp_path)
    torch.save(net.state_dict(), tmp_path / 'plain.pth')
    assert main([str(tmp_path / 'plain.pth'), str(tmp_path / 'out')]) == 1
    assert 'does not state the mean and std' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_training_states_its_input():
    view = SupervisedView({'kind': 'digits', 'split': 'test', 'size': 28}, size=28, train=True)
    expected = {'input_size': [3, 28, 28], 'crop_pct': 1.0, 'interpolation': 'bicubic'}
    stated = view.metainfo['preprocess']
    assert {key: stated[key] for key in expected} == expected
    assert stated['mean'] == [0.3053] * 3 and stated['std'] == [0.3238] * 3
    assert SupervisedView({'kind': 'digits', 'split': 'test', 'size': 28}, size=24).preprocess['crop_pct'] == 0.875


def test_the_card_has_the_hubs_metadata(tmp_path):
    _, path = checkpoint(tmp_path)
    publish(path, tmp_path / 'out', Card('Fashion-MNIST', metrics={'Top 1 Accuracy': 91.5}, licence='Apache-2.0'))
    data = ModelCard.load(tmp_path / 'out' / 'README.md').data
    assert (data.license, data.library_name, data.pipeline_tag) == ('apache-2.0', 'timm', 'image-classification')
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == ('Fashion-MNIST', 'Top 1 Accuracy', 91.5)
    publish(path, tmp_path / 'theirs', Card(licence='none stated'))
    data = ModelCard.load(tmp_path / 'theirs' / 'README.md').data
    assert (data.license, data.license_name) == ('other', 'none stated')


def test_push_needs_a_token(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(publish_module, 'get_token', lambda: None)
    _, path = checkpoint(tmp_path)
    assert main([str(path), str(tmp_path / 'out'), '--push', 'me/net']) == 1
    assert 'me/net needs a token' in capsys.readouterr().err


def test_push(tmp_path, capsys, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repository, private, exist_ok):
            calls.append((repository, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, ignore_patterns):
            calls.append((repo_id, Path(folder_path).name, ignore_patterns))
            return 'the commit'

    monkeypatch.setattr(publish_module, 'get_token', lambda: 'hf_x')
    monkeypatch.setattr(publish_module, 'HfApi', Api)
    _, path = checkpoint(tmp_path)
    assert main([str(path), str(tmp_path / 'out'), '--push', 'me/net', '--private']) == 0
    assert calls == [('me/net', True, True), ('me/net', 'out', ['*.pth'])] and 'the commit' in capsys.readouterr().out


def test_mmengine_form(tmp_path):
    _, path = checkpoint(tmp_path)
    published = publish(path, tmp_path / 'out', name='nano')
    assert published.mmengine.name == f'nano-{file_sha256(published.mmengine)[:8]}.pth'
    content = torch.load(published.mmengine, weights_only=True)
    assert set(content) == {'state_dict', 'meta'} and 'net.fc.bias' in content['state_dict']
    assert content['meta']['arch'] == ARCH and 'cfg' in content['meta']
    assert publish(path, tmp_path / 'out', name='nano').mmengine == published.mmengine  # the same again, the same hash


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
    assert publish(tmp_path / 'net.safetensors', tmp_path / 'out', preprocess=STATISTICS).architecture == 'pinas'
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = torch.rand(2, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


def test_names_and_spaces(tmp_path):
    """pinas_a and pinas_b have names of their own; any other network is `pinas` with its architecture."""
    tiny = PiNASNet(PINAS_A, PINAS_TINY, num_classes=3, in_chans=1).eval()
    torch.save(tiny.state_dict(), tmp_path / 'tiny.pth')
    assert publish(tmp_path / 'tiny.pth', tmp_path / 'tiny', preprocess=STATISTICS).architecture == 'pinas'
    again = timm.create_model(f'local-dir:{tmp_path / "tiny"}', pretrained=True).eval()
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), tiny(x))
    mine = replace(PINAS_TINY, name='mine', stem_widths=(4, 4, 8))
    net = PiNASNet(PINAS_A, mine, num_classes=0).eval()
    torch.save({'state_dict': net.state_dict(), 'meta': stated_facts(nn.Sequential(net))}, tmp_path / 'mine.pth')
    assert publish(tmp_path / 'mine.pth', tmp_path / 'mine').architecture == 'pinas'
    assert timm.create_model(f'local-dir:{tmp_path / "mine"}', pretrained=True).space == mine
    assert stated_facts(SuperNet(mine)) == {'space': json.dumps(mine.to_dict())} and stated_facts(nn.ReLU()) == {}
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
