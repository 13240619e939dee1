"""The small weights under checkpoints/: files, rows and cards agree; tools/test.py measures again what was recorded."""

import json
import re
from dataclasses import fields

import pytest
import torch
from project_copy import ROOT

from pinas_zoo.files import file_sha256
from pinas_zoo.weights.load import read_weights
from pinas_zoo.weights.manifest import entries

OWN = [entry for entry in entries().values() if entry.own]
FILES = sorted(path.name for path in (ROOT / 'checkpoints').glob('*.safetensors'))
own = pytest.mark.parametrize('entry', OWN, ids=[entry.name for entry in OWN])


def test_every_file_has_a_row():
    if not FILES and not OWN:
        pytest.skip('no weights of our own are there yet: tools/dev/publish_zoo.py makes them')
    assert sorted(entry.file for entry in OWN) == FILES
    models = {entry.model for entry in OWN}
    assert {'pinas_nano_a', 'pinas_nano_b', 'supernet', 'mask-rcnn', 'deeplabv3'} <= models


@own
def test_what_belongs_to_a_file(entry):
    path = ROOT / entry.sources[0]['package']
    assert path.stat().st_size == entry.size <= 10_000_000 and file_sha256(path) == entry.sha256
    state, metadata = read_weights(path)
    assert metadata.get('arch') == entry.arch and int(metadata['num_classes']) == entry.num_classes
    assert metadata['licence'] == entry.licence and all(tensor.isfinite().all() for tensor in state.values())
    card = (ROOT / entry.card).read_text()
    (result,) = entry.results
    assert result.reported_by == 'us' and entry.sha256 in card and metadata['source_sha256'] in card
    assert all(f'- {name}: {value}' in card for name, value in result.values.items())
    assert 'demonstrator' in card and result.protocol in card
    for line in re.findall(r'^from pinas_zoo.*', card, re.MULTILINE):
        exec(line)  # the card's example of use
    lines = [json.loads(line) for line in path.with_suffix('.log').read_text().splitlines()]
    assert len(lines) > 1 and all('stage' in line for line in lines)
    assert not any(f'{quote}/' in (ROOT / entry.config).read_text() for quote in '\'"'), 'a path of one machine'


def compose_scenes(root, recorded):
    """Makes the scenes that a row's result was measured on, without those of the training, on which they do not depend.

    `recorded` is its `Result.scenes`.
    """
    from pinas_zoo.data import open_source
    from pinas_zoo.data.scenes.prepare import SceneSettings, prepare_scenes

    known = {field.name for field in fields(SceneSettings)}
    values = {key: value for key, value in recorded['settings'].items() if key in known}
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    train, val = (open_source({'kind': recorded['data'], 'split': split}) for split in ('train', 'test'))
    prepare_scenes(root, SceneSettings(**values | {'train': 1}), train, val)


@own
@pytest.mark.mm
@pytest.mark.slow
def test_the_metrics_are_measured_again(entry, tmp_path_factory, tmp_path, forked_python):
    """To 0.1 points, by tools/test.py on the shipped config, weights by name; scenes are composed from their seed."""
    from pinas_zoo.data import open_source
    from pinas_zoo.mm.release.measure import measure, scene_options

    used = open_source({'kind': 'fashion-mnist', 'split': 'test', 'limit': 1}).description['data']
    if used != 'fashion-mnist':
        pytest.skip(f'the metrics are of Fashion-MNIST, which is not here ({used} is used instead)')
    (result,) = entry.results
    options = {}
    if result.scenes is not None:
        root = tmp_path_factory.getbasetemp() / f'scenes-{result.scenes["sha256"][:8]}'  # one set for both tasks
        compose_scenes(root, result.scenes)
        options = scene_options(ROOT / entry.config, root)
    again = measure(ROOT / entry.config, f'pinas://{entry.name}', options, tmp_path)
    assert again == pytest.approx(result.values, abs=0.1)


@own
def test_timm_sees_what_the_network_was_measured_on(entry):
    """timm's transform of the weight row gives the tensor that the evaluation of this project gives."""
    if not entry.timm:
        pytest.skip('no network of timm')
    import timm
    from PIL import Image

    from pinas_zoo.data import SupervisedView

    spec = {'kind': 'fashion-mnist', 'split': 'test'}
    view = SupervisedView(spec, size=28)
    if view.source.description['data'] != 'fashion-mnist':
        pytest.skip('the row states the mean and std of Fashion-MNIST, which is not here')
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=entry.preprocess))
    for index in range(3):
        image = Image.fromarray(view.source.load(index).permute(1, 2, 0).numpy())
        torch.testing.assert_close(transform(image), view[index]['image'], rtol=0, atol=1e-6)
