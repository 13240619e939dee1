"""What finished trainings left in their folders: config as it was run, last checkpoint, log, data, recipe."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from pinas_zoo.data import open_source
from pinas_zoo.files import file_sha256
from pinas_zoo.mm.engine.checkpoint_content import find_checkpoint
from pinas_zoo.registry import type_name
from pinas_zoo.search.log import SearchLog, ranked
from pinas_zoo.weights.load import Checkpoint, read_checkpoint

__all__ = ['KINDS', 'Training', 'find_trainings']

#: Kind of a training, by the type of its model.
KINDS = {
    'Classifier': 'classifier',
    'LinearStage': 'linear-stage',
    'MaskRCNN': 'mask-rcnn',
    'EncoderDecoder': 'deeplabv3',
}
#: Entries of a dumped config that say what a network is and how it is measured; the rest of a training is its recipe's.
OF_A_NETWORK = ('classes', 'model', 'randomness', 'test_dataloader', 'test_evaluator')


@dataclass(frozen=True)
class Training:
    """The folder of one training.

    Args:
        folder: Its work_dir; related folders (scenes, search, the pre-training) are beside it.
        checkpoint: Its last checkpoint.
    """

    folder: Path
    checkpoint: Path

    @cached_property
    def cfg(self) -> Config:
        """The config as it was run, which mmengine dumps into the folder.

        Raises:
            ValueError: There is not exactly one.
        """
        files = sorted(self.folder.glob('*.py'))
        if len(files) != 1:
            raise ValueError(f'{self.folder} must contain one dumped config, got {[file.name for file in files]}')
        return Config.fromfile(files[0])

    @cached_property
    def content(self) -> Checkpoint:
        """The content of the checkpoint."""
        return read_checkpoint(self.checkpoint)

    @property
    def kind(self) -> str | None:
        """One of `KINDS`' values; None for other trainings."""
        return KINDS.get(type_name(self.cfg.model))

    @property
    def from_random(self) -> bool:
        """Whether it is a detector or segmentor whose backbone was initialised at random, for comparison."""
        backbone = self.cfg.model.get('backbone')
        return backbone is not None and not backbone.get('init_cfg')

    @property
    def scenes(self) -> dict[str, Any] | None:
        """`Result.scenes` of a detector or segmentor; None for the others."""
        if self.kind not in ('mask-rcnn', 'deeplabv3'):
            return None
        text = (self.folder.parent / 'scenes' / 'manifest.json').read_text()
        manifest = json.loads(text)
        settings = dict(manifest['settings'])
        data = settings.pop('data')['val']['data']
        return {'data': data, 'settings': settings, 'sha256': manifest['sha256']}

    @property
    def before(self) -> Training | None:
        """The pre-training that a linear stage started from."""
        named = self.cfg.model.get('supernet') if self.kind == 'linear-stage' else None
        if named is None:
            return None
        folder = Path(named).parent.name if Path(named).suffix else Path(named).name
        return _open(self.folder.parent / folder)

    def search(self) -> tuple[dict[str, Any], str]:
        """Header and best architecture of the first search that scored this linear stage.

        Raises:
            ValueError: There is none beside it.
        """
        digest = file_sha256(self.checkpoint)
        for log in sorted(self.folder.parent.glob('*/archs.jsonl')):
            header, records = SearchLog.read(log)
            if header['checkpoint'] == digest and records:
                return header, ranked(records)[0].arch
        raise ValueError(f'no search beside {self.folder} has scored its checkpoint {self.checkpoint.name}')

    def log(self) -> list[str]:
        """Its JSON lines, interruptions included, each with its stage; incomplete lines are left out."""
        lines = []
        for file in sorted(self.folder.glob('*/vis_data/scalars.json')):
            for line in file.read_text().splitlines():
                try:
                    lines.append(json.dumps({'stage': self.folder.name, **json.loads(line)}))
                except ValueError:  # cut off by a kill
                    continue
        return lines

    def recipe(self) -> str:
        """Config, seed and length, in words."""
        cfg = self.cfg
        length, batch = cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size
        return f'{Path(cfg.filename).name}, seed {cfg.randomness.seed}, {length} iterations of {batch} images'

    def data(self) -> str:
        """What it was trained on, in words."""
        if (scenes := self.scenes) is not None:
            settings = scenes['settings']
            return f'{settings["train"]} scenes of {settings["size"]} px, composed from {scenes["data"]}'
        dataset = self.cfg.train_dataloader.dataset
        source = open_source(dict(dataset.get('dataset', dataset).source)).description
        return f'{source["data"]}, {source["images"]} images of {source["split"]}'

    def shipped_config(self, backbone: str, configs: Path) -> Config:
        """How the network and its test differ from the recipe; it imports what lets mmengine read our weights.

        Args:
            backbone: ``pinas://NAME`` of the weights that the run's `retrained.safetensors` is published as.
            configs: Folder of the recipes, beside that of the shipped config.

        Raises:
            ValueError: There is not exactly one recipe of this name, or a path of this machine remains.
        """
        recipes = sorted(configs.rglob(Path(self.cfg.filename).name))
        if len(recipes) != 1:
            raise ValueError(f'{configs} must have one {Path(self.cfg.filename).name}, got {list(map(str, recipes))}')
        recipe, root = Config.fromfile(recipes[0]), str(Path(self.cfg.work_dir).parent)
        own = {key: copy.deepcopy(self.cfg[key]) for key in OF_A_NETWORK if key in self.cfg}
        stated = _difference(own, recipe._cfg_dict)
        imports = dict(imports=['pinas_zoo.mm.checkpoint_loader'], allow_failed_imports=False)
        base = Path('..', configs.name, recipes[0].relative_to(configs)).as_posix()
        cfg = Config(dict(stated, _base_=base, custom_imports=imports))
        for holder, place, text in _strings(cfg._cfg_dict):
            if text == f'{root}/retrained.safetensors':
                holder[place] = backbone
            elif text.startswith(f'{root}/') and Path(root).is_absolute():
                holder[place] = f'work_dirs/{Path(root).name}{text.removeprefix(root)}'
        if left := [text for _, _, text in _strings(cfg._cfg_dict) if text.startswith(('/', '~'))]:
            raise ValueError(f'{self.cfg.filename} contains paths of this machine: {left}')
        return cfg


def find_trainings(run: Path) -> list[Training]:
    """The trainings of the known kinds in a folder of trainings, by name; those from a random backbone are left out.

    Raises:
        ValueError: A folder contains several dumped configs.
    """
    found = [_open(folder) for folder in sorted(run.iterdir()) if folder.is_dir()]
    return [training for training in found if training and training.kind and not training.from_random]


def _open(folder: Path) -> Training | None:
    checkpoint = find_checkpoint(folder, 'auto')
    return Training(folder, Path(checkpoint)) if checkpoint else None


def _difference(values: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What a config that inherits from `base` has to state to contain `values`."""
    stated: dict[str, Any] = {}
    for key, value in values.items():
        inherited = base.get(key)
        if not (isinstance(value, dict) and isinstance(inherited, dict)):
            if key not in base or value != inherited:
                stated[key] = value
        elif inherited.keys() - value.keys():
            stated[key] = dict(value, _delete_=True)
        elif inner := _difference(value, inherited):
            stated[key] = inner
    return stated


def _strings(node: Any) -> Iterator[tuple[Any, Any, str]]:
    """Every string inside a config value, with its container and key."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for place, value in list(pairs):
        if isinstance(value, str):
            yield node, place, value
        else:
            yield from _strings(value)
