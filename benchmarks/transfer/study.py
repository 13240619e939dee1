"""Transfer study: the effect of a backbone's pre-training on detection and segmentation, at one fixed budget.

Every run is one call of tools/train.py. A finished run is appended to a JSON file immediately; a later call skips it,
and continues the one that was interrupted.
"""

import json
import os
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.config import Config

from benchmarks.transfer.plan import TASKS, Inputs, Run
from benchmarks.transfer.results import ResultsFile, locked
from pinas_zoo import __version__
from pinas_zoo.files import file_sha256, write_text
from pinas_zoo.mm.engine.overrides import top_level_keys
from pinas_zoo.mm.quickstart.commands import Job
from pinas_zoo.mm.quickstart.record import leaves
from pinas_zoo.mm.resnet import NanoResNet, matched_channels
from pinas_zoo.models.cost import CostTable, count
from pinas_zoo.report.figures import read_scalars
from pinas_zoo.space import PINAS_NANO

__all__ = ['Study']

#: Side of the scenes in px, at which the baseline's MACs are matched.
SIDE = 128


class Study(Job):
    """The runs of a study in one folder, their figures in one file.

    Args:
        root: Folder for the runs.
        out: JSON file for the figures.
        inputs: Scenes and weights.
        quick: Four iterations per run, for tests.
    """

    def __init__(self, root: Path, out: Path, inputs: Inputs, quick: bool = False) -> None:
        super().__init__(root, quick)
        self.inputs = inputs
        self.cost = CostTable(PINAS_NANO, SIDE, 0).of(inputs.arch)
        self.channels = matched_channels(self.cost.macs, SIDE)
        root.mkdir(parents=True, exist_ok=True)
        self.results = ResultsFile(out, self.recipe(), root / 'results.lock')

    @property
    def arch(self) -> str:
        return self.inputs.arch

    # ---- commands -------------------------------------------------------------------------------

    def command(self, run: Run) -> list[str]:
        """The call of tools/train.py for a run."""
        task = TASKS[run.task]
        config = task.baseline if run.arm == 'resnet' else task.config
        options: dict[str, Any] = self._data_options(config) | {'randomness.seed': run.seed}
        options |= self._resnet_options(run.task) if run.arm == 'resnet' else {'model.backbone.arch': self.arch}
        if run.arm in ('supervised', 'resnet'):  # checkpoints of a classifier
            options['model.backbone.init_cfg.prefix'] = 'net.'
        if run.arm != 'random':
            options['model.backbone.init_cfg.type'] = 'Pretrained'
            options['model.backbone.init_cfg.checkpoint'] = self.weights(run.arm)
        return self.train(config, run.name, 4, **options)

    def weights(self, arm: str) -> Path:
        """The file that an arm starts from."""
        return Path(self.checkpoint('resnet')) if arm == 'resnet' else getattr(self.inputs, arm)

    def _data_options(self, config: Path) -> dict[str, str]:
        """Replaces every path below the config's own folder of scenes by one below the study's."""
        cfg = Config.fromfile(config)
        new = f'{self.inputs.scenes}/{Path(cfg.root).name}/'
        return {
            key: new + value.removeprefix(cfg.root)
            for key, value in leaves(cfg.to_dict())
            if isinstance(value, str) and value.startswith(cfg.root) and key.split('.')[0] in top_level_keys(cfg)
        }

    def _resnet_options(self, task: str) -> dict[str, Any]:
        outputs = [4 * channels for channels in self.channels]
        options: dict[str, Any] = {'model.backbone.channels': self.channels}
        if task == 'detection':
            return options | {'model.neck.in_channels': outputs[1:]}
        heads = {'decode_head': outputs[3], 'auxiliary_head': outputs[2]}
        return options | {f'model.{head}.in_channels': inputs for head, inputs in heads.items()}

    # ---- figures --------------------------------------------------------------------------------

    def recipe(self) -> dict[str, Any]:
        """What the figures depend on; all runs of a file share it."""
        resnet = count(NanoResNet(self.channels, num_classes=0), SIDE)
        manifest = json.loads((self.inputs.scenes / 'manifest.json').read_text())
        labels = self.inputs.retraining
        recipe: dict[str, Any] = {
            'quick': self.quick,
            'arch': self.arch,
            'nano': {'macs': self.cost.macs, 'params': self.cost.params},
            'resnet': {'channels': self.channels, 'macs': resnet.macs, 'params': resnet.params},
            'scenes': {'sha256': manifest['sha256'], **manifest.get('settings', {})},
            'weights': {arm: file_sha256(self.weights(arm)) for arm in ('supervised', 'pinas')},
            'labels': {'recipe': labels.recipe(), 'data': labels.data()},
        }
        for name, task in TASKS.items():
            cfg = Config.fromfile(task.config)
            recipe[name] = {
                'config': str(task.config),
                'iterations': cfg.train_cfg.max_iters,
                'batch_size': cfg.train_dataloader.batch_size,
                'optim_wrapper': cfg.optim_wrapper,
                'param_scheduler': cfg.param_scheduler,
            }
        return json.loads(json.dumps(recipe))

    @staticmethod
    def _last(folder: Path, scalar: str) -> float:
        return read_scalars(*sorted(folder.glob('*/vis_data/scalars.json')))[scalar][-1][1]

    # ---- running --------------------------------------------------------------------------------

    def pretrain_resnet(self) -> None:
        """Trains the baseline with labels, with the nano network's recipe, unless that was done."""
        with locked(self.root / 'resnet.lock'):
            if 'resnet' in self.results.read()['pretraining'] and (self.root / 'resnet' / 'last_checkpoint').is_file():
                return
            label = 'pre-training of the ResNet'
            print(f'{label} ...', flush=True)
            config, start = self.root / 'resnet-nano.py', time.perf_counter()
            text = self.inputs.resnet_config(self.channels).pretty_text
            write_text(config, text)
            self.call(self.train(config, 'resnet', 4), 'resnet', label)
            top1, seconds = self._last(self.root / 'resnet', 'accuracy/top1'), time.perf_counter() - start
            entry = {'sha256': file_sha256(self.checkpoint('resnet')), 'top1': top1, 'seconds': round(seconds, 1)}
            self.results.set_pretraining('resnet', entry)
            print(f'\r{label}: {entry["seconds"]:.0f} s, top-1 {entry["top1"]:.2f}'.ljust(110), flush=True)

    def complete(self, runs: Sequence[Run]) -> None:
        """Runs what is not in the file yet, with one line per run and the remaining time.

        Raises:
            ValueError: The file contains runs of another recipe.
            RuntimeError: A run failed; the message names its log.
        """
        results = self.results.read()
        if 'supervised' not in results['pretraining']:
            top1 = self._last(self.inputs.root / 'retrain', 'accuracy/top1')
            self.results.set_pretraining('supervised', {'sha256': file_sha256(self.inputs.supervised), 'top1': top1})
        done = {(entry['task'], entry['arm'], entry['seed']) for entry in results['runs']}
        todo = [run for run in runs if (run.task, run.arm, run.seed) not in done]
        print(f'{len(runs)} runs, {len(runs) - len(todo)} of them done before', flush=True)
        if any(run.arm == 'resnet' for run in todo):
            self.pretrain_resnet()
        for number, run in enumerate(todo, start=1):
            label = f'[{number}/{len(todo)}] {run.task}, {run.arm}, seed {run.seed}'
            print(f'{label} ...', flush=True)
            entry = self._train(run, label)
            shown = ', '.join(f'{name} {value:.2f}' for name, value in entry['metrics'].items())
            left = self._seconds_left(todo[number:])
            print(f'\r{label}: {entry["seconds"]:.0f} s, {shown}; {left}'.ljust(110), flush=True)

    def _train(self, run: Run, label: str) -> dict[str, Any]:
        continued = (self.root / run.name / 'last_checkpoint').is_file()
        start = time.perf_counter()
        self.call(self.command(run), run.name, label)
        folder, measured = self.root / run.name, TASKS[run.task].metrics.items()
        metrics = {name: round(factor * self._last(folder, key), 4) for name, (key, factor) in measured}
        entry = {'task': run.task, 'arm': run.arm, 'seed': run.seed, 'metrics': metrics}
        entry |= {'loss': round(self._last(folder, 'loss'), 4), 'seconds': round(time.perf_counter() - start, 1)}
        entry |= {'continued': continued, 'date': time.strftime('%Y-%m-%d'), 'versions': _versions()}
        self.results.append(entry)
        return entry

    def _seconds_left(self, todo: Iterable[Run]) -> str:
        """From the mean of the finished runs of each task; a task without one counts as the others."""
        entries = [entry for entry in self.results.read()['runs'] if not entry['continued']]
        seconds = {task: [e['seconds'] for e in entries if e['task'] == task] for task in TASKS}
        known = {task: sum(values) / len(values) for task, values in seconds.items() if values}
        if not known:
            return 'time left unknown'
        anything = sum(known.values()) / len(known)
        return f'about {sum(known.get(run.task, anything) for run in todo) / 60:.0f} min left'


def _versions() -> dict[str, Any]:
    packages = {name: version(name) for name in ('torch', 'mmengine', 'mmdet', 'mmsegmentation')}
    packages['mmcv'] = mmcv.__version__  # its distribution is mmcv or mmcv-lite
    threads = int(os.environ.get('PINAS_THREADS') or torch.get_num_threads())
    return {'pinas_zoo': __version__, **packages, 'threads': threads}
