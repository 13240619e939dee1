"""Published folders in timm and transformers: what they make of a config.json, scored on the real test set."""

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import pinas_zoo  # noqa: F401  # registers the models
from pinas_zoo.data import open_source
from pinas_zoo.weights.manifest import find_entry
from pinas_zoo.weights.publish import publish

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NAME = 'pinas_nano_a.fmnist'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return publish(ROOT / 'checkpoints' / f'{NAME}.safetensors', tmp_path_factory.mktemp('hub') / 'nano').folder


@pytest.fixture(scope='module')
def pictures() -> tuple[list[Image.Image], torch.Tensor]:
    """The test images as RGB pictures, as a user has them."""
    source = open_source({'kind': 'fashion-mnist', 'split': 'test'})
    if source.description['data'] != 'fashion-mnist':
        pytest.skip('the metrics are of Fashion-MNIST, which is not here')
    images = [source.load(index).permute(1, 2, 0).numpy() for index in range(len(source))]
    return [Image.fromarray(image) for image in images], torch.as_tensor(source.labels)


def published_top1() -> float:
    (result,) = find_entry(NAME).results
    return result.values['Top 1 Accuracy']


def test_timm_scores_what_was_published(folder, pictures):
    net = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    images, labels = pictures
    with torch.no_grad():
        found = torch.cat([net(torch.stack([transform(x) for x in part])).argmax(1) for part in batches(images)])
    assert round(100 * (found == labels).double().mean().item(), 2) == published_top1()


def test_transformers_scores_what_was_published(folder, pictures):
    transformers = pytest.importorskip('transformers')
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    net = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images, labels = pictures
    with torch.no_grad():
        found = torch.cat([net(**processor(part, return_tensors='pt')).logits.argmax(1) for part in batches(images)])
    assert round(100 * (found == labels).double().mean().item(), 2) == published_top1()
    pipe = transformers.pipeline('image-classification', model=net, image_processor=processor)
    names = [part[0]['label'] for part in pipe(images[:8])]
    classes = open_source({'kind': 'fashion-mnist', 'split': 'test'}).classes
    assert names == [classes[index] for index in found[:8].tolist()]


def batches(images: list, size: int = 500) -> list[list]:
    return [images[first : first + size] for first in range(0, len(images), size)]
