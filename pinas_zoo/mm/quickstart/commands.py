"""The commands of the main job's stages: configs, tools and their options, in one folder."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pinas_zoo
from pinas_zoo.mm.engine.checkpoint_content import find_checkpoint
from pinas_zoo.mm.quickstart.console import Display
from pinas_zoo.mm.quickstart.process import ToolProcess, log_end

__all__ = [
    'COCO_VAL',
    'DETECTION',
    'LINEAR',
    'PRETRAIN',
    'RETRAIN',
    'SEARCH',
    'SEGMENTATION',
    'SHORT',
    'SHORTLIST',
    'SPACE',
    'Job',
]

#: The command line of this project, called as a module: where it is installed and in a clone.
PINAS = ('-m', 'pinas_cli')
#: In a clone relative, as in its documentation, otherwise in the installed package.
CONFIGS = Path('configs/quickstart')
if not CONFIGS.is_dir():
    CONFIGS = Path(pinas_zoo.__file__).parent / '.mim' / CONFIGS
PRETRAIN = CONFIGS / 'pinas-patch-supernet_b32-coslr_pairs.py'
LINEAR = CONFIGS / 'pinas-patch-linear_b32-step_pairs.py'
SEARCH = CONFIGS / 'pinas-patch-tree_128_pairs.py'
SHORTLIST = CONFIGS / 'pinas-patch-shortlist_5-8_pairs.py'
SHORT = CONFIGS / 'pinas-patch-short_b32-coslr_pairs.py'
RETRAIN = CONFIGS / 'pinas-patch_b32-coslr_pairs.py'
DETECTION = CONFIGS / 'mask-rcnn_pinas-patch_fpn_scenes.py'
SEGMENTATION = CONFIGS / 'fcn_pinas-patch-d8_scenes.py'
SPACE = 'pinas_patch'
COCO_VAL = 'coco/annotations/instances_val2017.json'
#: Scenes for training and held out, and their side in px.
SCENES, SCENE_SIZE = (1200, 200), 96


class Job:
    """The commands of a run in one folder.

    Args:
        root: Folder for everything.
        quick: A few iterations per stage, for tests.
        seed: Seed of the trainings, the search and the draw of random networks; the scenes are the same.
    """

    def __init__(self, root: Path, quick: bool = False, seed: int = 0) -> None:
        self.root, self.quick = root, quick
        self.seed = ['--seed', str(seed)] if seed else []

    # ---- commands -------------------------------------------------------------------------------

    def train(self, config: Path, name: str, iters: int, **options: Any) -> list[str]:
        """`pinas train`, continued if it was stopped; in a quick run `iters` replaces the config's number."""
        if self.quick:
            options |= {'train_cfg.max_iters': iters, 'train_cfg.val_interval': iters}
            options |= {'train_dataloader.batch_size': 8, 'default_hooks.logger.interval': 1}
        command = [*PINAS, 'train', str(config), '--work-dir', str(self.root / name), '--resume']
        command += self.seed
        return [*command, '--cfg-options', *(f'{k}={v}' for k, v in options.items())] if options else command

    def checkpoint(self, name: str) -> str:
        """The last checkpoint of a training.

        Raises:
            FileNotFoundError: There is none.
        """
        found = find_checkpoint(self.root / name, 'auto')
        if found is None:
            raise FileNotFoundError(f'{self.root / name} has no checkpoint')
        return str(self.root / name / Path(found).name)

    @property
    def arch(self) -> str:
        """The architecture that the shortlist chose."""
        return json.loads((self.root / 'shortlist/shortlist.json').read_text())['arch']

    def scenes(self) -> list[str]:
        train, val = (16, 8) if self.quick else SCENES
        where = ['--root', str(self.root / 'scenes'), '--size', str(SCENE_SIZE)]
        sizes = ['--train', str(train), '--val', str(val)]
        return [*PINAS, 'prepare', 'scenes', *where, *sizes, '--seed', '0', '--formats', 'coco', 'ade20k']

    def pretrain(self) -> list[str]:
        # The third hook evaluates the nearest neighbours.
        quick = {'custom_hooks.2.bank.source.pairs': 200, 'custom_hooks.2.queries.source.pairs': 50}
        return self.train(PRETRAIN, 'pretrain', 4, **(quick if self.quick else {}))

    def linear(self) -> list[str]:
        return self.train(LINEAR, 'linear', 4, **{'model.supernet': self.checkpoint('pretrain')})

    def search(self) -> list[str]:
        command = [*PINAS, 'search', str(SEARCH), '--checkpoint', self.checkpoint('linear')]
        command += ['--work-dir', str(self.root / 'search'), *self.seed]
        quick = ['budget=10', 'searcher.initial=8', 'calibration.batches=1']
        quick += ['evaluation.view.source.pairs=200', 'evaluation.batch_size=100']
        return [*command, '--cfg-options', *quick] if self.quick else command

    def random(self) -> list[str]:
        return self._shortlist('random', '--random-only', '--workers', '1')

    def shortlist(self) -> list[str]:
        return self._shortlist(
            'shortlist', '--search', str(self.root / 'search'), '--trained', str(self.root / 'random')
        )

    def _shortlist(self, name: str, *options: str) -> list[str]:
        command = [*PINAS, 'shortlist', str(SHORTLIST), *options, '--work-dir', str(self.root / name), *self.seed]
        quick = ['top=1', 'random=1', 'workers=1', 'search_options.budget=10', 'search_options.searcher.initial=8']
        quick.append('training_options.train_cfg.max_iters=2')
        for split in ('val', 'test'):
            quick.append(f'training_options.{split}_dataloader.dataset.source.pairs=100')
        return [*command, '--cfg-options', *quick] if self.quick else command

    def derive(self) -> list[str]:
        arch, out = str(self.root / 'shortlist/shortlist.json'), str(self.root / 'backbone.safetensors')
        return [*PINAS, 'derive', str(SEARCH), '--checkpoint', self.checkpoint('linear'), '--arch', arch, '--out', out]

    def retrain(self) -> list[str]:
        quick = {'val_dataloader.dataset.source.pairs': 100}
        return self.train(RETRAIN, 'retrain', 4, **{'model.model.arch': self.arch}, **(quick if self.quick else {}))

    def publish(self) -> list[str]:
        return ['-m', 'pinas_zoo.mm.quickstart.results', 'publish', str(self.root)]

    def detection(self) -> list[str]:
        data = {f'{split}_evaluator.ann_file': f'{self.root}/scenes/{COCO_VAL}' for split in ('val', 'test')}
        return self.train(DETECTION, 'detection', 4, **self._transfer('coco'), **data)

    def segmentation(self) -> list[str]:
        return self.train(SEGMENTATION, 'segmentation', 4, **self._transfer('ade20k'))

    def _transfer(self, layout: str) -> dict[str, Any]:
        """Where the scenes are and which backbone is trained on them."""
        root = f'{self.root}/scenes/{layout}/'
        options: dict[str, Any] = {f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')}
        options |= {'model.backbone.arch': self.arch, 'model.backbone.init_cfg.type': 'Pretrained'}
        return options | {'model.backbone.init_cfg.checkpoint': self.root / 'retrained.safetensors'}

    def report(self) -> list[str]:
        return ['-m', 'pinas_zoo.mm.quickstart.report', str(self.root)]

    def next_commands(self) -> list[str]:
        """What a reader can try with the results."""
        root, checkpoint = self.root, self.checkpoint('detection')
        config, scene = root / 'detection' / DETECTION.name, sorted((root / 'scenes/coco/val2017').iterdir())[0]
        features = (
            'import timm, torch, pinas_zoo; '
            f"net = timm.create_model('pinas', checkpoint='{root}/retrained.safetensors', num_classes=0); "
            'print(net.eval()(torch.rand(1, 3, 20, 40)).shape)'
        )
        python = _python()
        model = ['--model', config, '--checkpoint', checkpoint]
        infer = [python, *PINAS, 'infer', scene, *model, '--out', root / 'drawn']
        test = [python, *PINAS, 'test', config, checkpoint, '--work-dir', root / 'test']
        return [shlex.join(map(str, command)) for command in (infer, test, [python, '-c', features])]

    def call(self, command: list[str], name: str, label: str) -> None:
        """Runs one tool outside the stages, with its log in `logs`.

        Raises:
            RuntimeError: It failed; the message ends with the end of its log.
        """
        log = self.root / 'logs' / f'{name}.log'
        with Display() as display:
            display.begin(name, label)
            status = ToolProcess(command, log).follow(lambda line: display.read(name, line))
            display.end(name)
        if status:
            raise RuntimeError(f'{label} failed with {status}; the end of {log}:\n{log_end(log)}')


def _python() -> str:
    """This interpreter, as a relative path if it is below the working folder."""
    path, here = Path(sys.executable), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
