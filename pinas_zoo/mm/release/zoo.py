"""Our own small weights: from finished trainings to checkpoints/ and the rows of the manifest.

Of each training a weight file, a config that inherits from its recipe, the log, a model card and a row are written;
tools/test.py measures exactly that file. A supernet is published as after its linear stage, so that it can be searched.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from torch import Tensor

from pinas_zoo.data import SupervisedView, open_source
from pinas_zoo.files import file_sha256, write_text
from pinas_zoo.mm.inference.pictures import PALETTE
from pinas_zoo.mm.release.measure import measure, scene_options
from pinas_zoo.mm.release.trainings import Training, find_trainings
from pinas_zoo.space import PINAS_NANO
from pinas_zoo.weights.download import SCHEME
from pinas_zoo.weights.load import save_weights
from pinas_zoo.weights.manifest import MANIFEST, Entry, put_rows, read_rows
from pinas_zoo.weights.model_card import Card, model_card
from pinas_zoo.weights.publish import describe, find_network
from pinas_zoo.weights.shapes import shapes_of, supernet_shapes

__all__ = ['LIMIT', 'publish_zoo']

#: Largest size of a weight file in bytes.
LIMIT = 10_000_000
LICENCE = 'Apache-2.0'
LIMITS = 'a small demonstrator, trained for minutes on small grey images: it shows that every stage works, nothing more'


@dataclass(frozen=True)
class Part:
    """How a kind of training is published.

    Args:
        name: Name of the weights; `{}` is the timm model of the backbone.
        task: Task as in metafiles.
        dataset: Data it is trained and measured on.
        protocol: How it is measured; `{}` is the path of a supernet.
        tags: Library and task, as the hub names them.
        usage: How it is loaded.
    """

    name: str
    task: str
    dataset: str
    protocol: str
    tags: tuple[str, str]
    usage: str


SCENES = 'scenes of Fashion-MNIST'
INFERENCER = "import pinas_zoo.registry\nfrom {0}.apis import {1}\npredict = {1}('{{name}}', scope='pinas_zoo')"
PARTS = {
    'classifier': Part(
        '{}.fmnist',
        'Image Classification',
        'Fashion-MNIST',
        'test set, 28 px',
        ('timm', 'image-classification'),
        "import timm, pinas_zoo\nnet = timm.create_model('{name}', pretrained=True)",
    ),
    'linear-stage': Part(
        'pinas_nano_supernet_fmnist',
        'Architecture Search',
        'Fashion-MNIST',
        'path {} with its linear head, BN re-estimated, training images that no stage has seen, 28 px',
        ('pinas_zoo', 'image-classification'),
        'from pinas_zoo.weights.loading import load_supernet\n'
        "net = load_supernet('checkpoints/{name}.safetensors', 'pinas_nano')",
    ),
    'mask-rcnn': Part(
        '{}_mask-rcnn_scenes',
        'Instance Segmentation',
        SCENES,
        'held-out scenes',
        ('mmdet', 'image-segmentation'),
        INFERENCER.format('mmdet', 'DetInferencer'),
    ),
    'deeplabv3': Part(
        '{}_deeplabv3_scenes',
        'Semantic Segmentation',
        SCENES,
        'held-out scenes, whole images, no flip',
        ('mmseg', 'image-segmentation'),
        INFERENCER.format('mmseg', 'MMSegInferencer'),
    ),
}


def publish_zoo(
    runs: Sequence[Path],
    out: Path,
    hardware: str = 'hardware not stated',
    manifest: Path = MANIFEST,
    anew: bool = False,
) -> list[dict[str, Any]]:
    """Publishes the trainings in some folders.

    Classifiers become pinas_nano_a, pinas_nano_b, ... in the order of the runs and, within one, of their folders'
    names; an architecture in the manifest keeps its name. Detectors and segmentors are named by their backbone.

    Args:
        runs: Folders of trainings, as written by nano_weights.sh.
        out: Folder of the weights, `checkpoints` below the project's root.
        hardware: What they were trained on, for the model cards.
        manifest: Manifest that gets the rows.
        anew: Remove the rows of our earlier weights from it.

    Returns:
        The rows.

    Raises:
        ValueError: There is nothing, a file would be larger than `LIMIT`, a config contains a path of this machine, a
            backbone is not one of the classifiers, or two trainings would get one name. Nothing is written then.
        RuntimeError: tools/test.py failed; nothing is written then either.
    """
    trainings = [training for run in runs for training in find_trainings(run)]
    earlier = [row for row in read_rows(manifest) if Entry.from_dict(row).own]
    backbones = {row['arch']: row['model'] for row in earlier if row.get('timm') and not anew}
    publications: dict[str, _Publication] = {}
    for training in sorted(trainings, key=lambda training: list(PARTS).index(training.kind or '')):
        publication = _Publication(training, backbones, hardware)
        if (twin := publications.get(publication.name)) is not None:
            raise ValueError(
                f'{twin.training.folder} and {training.folder} would both be published as {publication.name}'
            )
        publications[publication.name] = publication
    if not publications:
        raise ValueError(f'no finished training in {[str(run) for run in runs]}')
    out.mkdir(parents=True, exist_ok=True)
    # Beside `out`, so that a config finds its recipe in ../configs before and after the move.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.') as folder:
        rows = [publication.write(Path(folder)) for publication in publications.values()]
        for file in sorted(file for file in Path(folder).iterdir() if file.is_file()):
            file.replace(out / file.name)
    put_rows(rows, manifest, drop=[row['name'] for row in earlier] if anew else [])
    return rows


class _Publication:
    """One training to be published; `backbones` has the timm models by architecture and gets new ones."""

    def __init__(self, training: Training, backbones: dict[str, str], hardware: str) -> None:
        assert training.kind is not None  # `find_trainings` leaves the others out
        self.kind: str = training.kind
        self.training, self.part, self.hardware = training, PARTS[self.kind], hardware
        self.arch: str | None = None
        if self.kind == 'linear-stage':
            self.model, self.state = 'supernet', _linear_stage(training)
        else:
            net, space, arch = find_network(training.content.state, {}, training.checkpoint)
            if space != PINAS_NANO:
                raise ValueError(
                    f'{training.checkpoint} is of space {space.name!r}, but only the nano space is published here'
                )
            if self.kind == 'classifier':
                free = [name for name in map('pinas_nano_{}'.format, 'abcdefgh') if name not in backbones.values()]
                backbones.setdefault(arch, free[0])
            elif arch not in backbones:
                raise ValueError(f'{training.folder}: {arch} is not among the published classifiers {backbones}')
            self.arch, self.backbone = arch, backbones[arch]
            self.state, self.model = training.content.state, self.kind
            if self.kind == 'classifier':
                self.state, self.model = net, self.backbone
        self.name = self.part.name.format(getattr(self, 'backbone', ''))

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the files and measures; returns the row."""
        print(f'{self.training.folder}: {self.name} ...', flush=True)
        training, part = self.training, self.part
        weights, config = folder / f'{self.name}.safetensors', folder / f'{self.name}.py'
        preprocess = _preprocess(training.cfg) if self.kind == 'classifier' else {}
        facts = describe(
            training.checkpoint, {'licence': LICENCE}, self.kind, PINAS_NANO, self.arch, self._num_classes()
        )
        save_weights(weights, self.state, facts | self._for_inferencers())
        if weights.stat().st_size > LIMIT:
            raise ValueError(f'{self.name} would have {weights.stat().st_size} bytes, allowed are {LIMIT}')
        trainings = [before for before in (training.before, training) if before is not None]
        head = ['Written by tools/dev/publish_zoo.py. Trained with', *(Path(t.cfg.filename).name for t in trainings)]
        cfg, path = self._config(folder.parent / 'configs')
        write_text(config, ''.join(f'# {line}\n' for line in head) + cfg.pretty_text.rstrip() + '\n')
        write_text(folder / f'{self.name}.log', ''.join(f'{line}\n' for t in trainings for line in t.log()))
        options = scene_options(config, training.folder.parent / 'scenes')
        values = measure(config, str(weights), options, folder / f'test-{self.name}')
        protocol, recipe = part.protocol.format(path), '; then '.join(t.recipe() for t in trainings)
        card = Card(trainings[0].data(), f'{recipe}; {self.hardware}', values, protocol, LIMITS, LICENCE)
        title, usage = f'{self.name}: {part.task.lower()}, {part.dataset}', part.usage.format(name=self.name)
        write_text(folder / f'{self.name}.md', model_card(title, usage, weights, facts, card, part.tags))
        result = {'dataset': part.dataset, 'protocol': protocol, 'reported_by': 'us', 'values': values}
        result |= {'hardware': _hardware()} | ({'scenes': training.scenes} if training.scenes else {})
        return self._row(weights, preprocess, result)

    def _num_classes(self) -> int:
        head = {'classifier': 'fc.weight', 'linear-stage': 'head.weight'}.get(self.kind)
        return self.state[head].shape[0] if head else len(self.training.cfg.test_dataloader.dataset.metainfo.classes)

    def _for_inferencers(self) -> dict[str, str]:
        """Metadata for infer.py and the Inferencers: the classes; for scenes also a colour each, and the library."""
        if self.kind == 'classifier':
            source = open_source(self.training.cfg.test_dataloader.dataset.source)
            return {'dataset_meta': json.dumps({'classes': list(source.classes)})}
        if self.training.scenes is None:
            return {}
        classes = list(self.training.cfg.test_dataloader.dataset.metainfo.classes)
        palette = [PALETTE[index % len(PALETTE)] for index in range(len(classes))]
        return {
            'dataset_meta': json.dumps({'classes': classes, 'palette': palette}),
            'default_scope': self.part.tags[0],
        }

    def _config(self, configs: Path) -> tuple[Config, str]:
        """The config that builds and measures it, and the architecture that is measured."""
        if self.arch is not None:
            return self.training.shipped_config(f'{SCHEME}{self.backbone}.fmnist', configs), self.arch
        header, path = self.training.search()
        calibration, evaluation = (dict(data, in_memory=True) for data in header['data'])
        settings = dict(space=PINAS_NANO.name, num_classes=self._num_classes(), arch=path, channels_last=True)
        return Config(dict(settings, calibration=calibration, evaluation=evaluation)), path

    def _row(self, weights: Path, preprocess: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        return {
            'name': self.name,
            'model': self.model,
            **({'timm': True} if preprocess else {}),
            'task': self.part.task,
            'dataset': self.part.dataset,
            'arch': self.arch,
            'space': PINAS_NANO.name,
            'num_classes': self._num_classes(),
            'file': weights.name,
            'size': weights.stat().st_size,
            'sha256': file_sha256(weights),
            'sources': [{'package': f'checkpoints/{weights.name}'}],
            'config': f'checkpoints/{self.name}.py',
            'card': f'checkpoints/{self.name}.md',
            'licence': LICENCE,
            **({'preprocess': preprocess} if preprocess else {}),
            'results': [result],
        }


def _linear_stage(training: Training) -> dict[str, Tensor]:
    """Supernet and head of a linear stage of the nano space."""
    state, expected = training.content.state, supernet_shapes(PINAS_NANO)
    came = shapes_of({name.removeprefix('supernet.'): t for name, t in state.items() if name.startswith('supernet.')})
    if came != expected:
        wrong = sorted(name for name in came | expected if came.get(name) != expected.get(name))
        raise ValueError(f'{training.checkpoint} is not a linear stage of the nano space: {wrong[:5]}')
    return state


def _preprocess(cfg: Config) -> dict[str, Any]:
    """timm's settings for the input that a network was measured on."""
    view = {key: value for key, value in cfg.test_dataloader.dataset.items() if key != 'type'}
    return SupervisedView(**view).preprocess


def _hardware() -> str:
    if get_device() == 'cuda':
        return torch.cuda.get_device_name()
    return f'CPU, {os.environ.get("OMP_NUM_THREADS") or os.cpu_count()} thread(s)'
