"""The main job on two CPU cores: supernet, linear stage, search, derive, retrain, detection, segmentation, report.

Every step is one call of a tool, so that it can be repeated by hand; finished ones are skipped by a later run, an
interrupted one continues.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinas_zoo.files import write_text

__all__ = ['Job', 'main']

CONFIGS = Path('configs/quickstart')
PRETRAIN = CONFIGS / 'pinas-nano-supernet_b128-coslr_fmnist.py'
LINEAR = CONFIGS / 'pinas-nano-linear_b256_fmnist.py'
SEARCH = CONFIGS / 'pinas-nano-tree_128_fmnist.py'
RETRAIN = CONFIGS / 'pinas-nano_b128-coslr_fmnist.py'
DETECTION = CONFIGS / 'mask-rcnn_pinas-nano_fpn_b8-lin_scenes.py'
SEGMENTATION = CONFIGS / 'deeplabv3_pinas-nano-d8_b8-poly_scenes.py'
SCENES = (600, 100)
#: What of a tool's output tells how far it is.
PROGRESS = re.compile(r'Iter\((?:train|val|test)\).*|.*\d+/\d+ \[.*|\d+ of \d+.*')


@dataclass(frozen=True)
class Step:
    """One step: a name for people, a short one for folders, and the command, given the job."""

    title: str
    name: str
    command: Callable[[Job], list[str]]


class Job:
    """A quickstart run in one folder.

    Args:
        root: Where everything goes.
        quick: A few iterations per step, for tests.
    """

    def __init__(self, root: Path, quick: bool = False) -> None:
        self.root, self.quick = root, quick
        self.state_file = root / 'steps.json'
        self.seconds: dict[str, float] = {}
        if self.state_file.is_file():
            state = json.loads(self.state_file.read_text())
            if state['quick'] != quick:
                raise ValueError(
                    f'{root} holds a run with quick={state["quick"]}, now quick={quick}: take another folder'
                )
            self.seconds = state['seconds']

    # ---- commands -------------------------------------------------------------------------------

    def train(self, config: Path, name: str, iters: int, **options: Any) -> list[str]:
        """tools/train.py, continued if it was stopped; `iters` replaces the config's in a quick run."""
        if self.quick:
            options |= {'train_cfg.max_iters': iters, 'train_cfg.val_interval': iters}
            options |= {'train_dataloader.batch_size': 8, 'default_hooks.logger.interval': 1}
        command = ['tools/train.py', str(config), '--work-dir', str(self.root / name), '--resume']
        return [*command, '--cfg-options', *(f'{k}={v}' for k, v in options.items())] if options else command

    def checkpoint(self, name: str) -> str:
        """The last checkpoint of a training step."""
        return (self.root / name / 'last_checkpoint').read_text().strip()

    @property
    def arch(self) -> str:
        return json.loads((self.root / 'search/best.json').read_text())['arch']

    def scenes(self) -> list[str]:
        train, val = (16, 8) if self.quick else SCENES
        where = ['--root', str(self.root / 'scenes'), '--size', '128']
        sizes = ['--train', str(train), '--val', str(val)]
        return ['tools/prepare_data.py', 'scenes', *where, *sizes, '--seed', '0', '--formats', 'coco', 'ade20k']

    def search(self) -> list[str]:
        command = ['tools/search.py', str(SEARCH), '--checkpoint', self.checkpoint('linear')]
        command += ['--work-dir', str(self.root / 'search')]
        quick = ['budget=12', 'searcher.initial=8', 'calibration.batches=1']
        return [*command, '--cfg-options', *quick] if self.quick else command

    def derive(self) -> list[str]:
        out = str(self.root / 'backbone.safetensors')
        where = ['--arch', str(self.root / 'search/best.json'), '--out', out]
        return ['tools/derive.py', str(SEARCH), '--checkpoint', self.checkpoint('linear'), *where]

    def transfer(self, config: Path, name: str, pretrained: bool) -> list[str]:
        """Detection or segmentation, with the retrained backbone or the same network at random."""
        options: dict[str, Any] = {'model.backbone.arch': self.arch}
        root, layout = self.root / 'scenes', 'ade20k' if config == SEGMENTATION else 'coco'
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            options[f'{loader}.dataset.data_root'] = f'{root}/{layout}/'
        if layout == 'coco':
            for evaluator in ('val_evaluator', 'test_evaluator'):
                options[f'{evaluator}.ann_file'] = f'{root}/coco/annotations/instances_val2017.json'
        if pretrained:
            options['model.backbone.init_cfg.type'] = 'Pretrained'
            options['model.backbone.init_cfg.checkpoint'] = self.root / 'retrained.safetensors'
        return self.train(config, name, 4, **options)

    # ---- running --------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step]) -> None:
        """Runs what is not done yet, with a line per step.

        Raises:
            RuntimeError: A step failed; its log is named.
        """
        for number, step in enumerate(steps, start=1):
            label = f'[{number}/{len(steps)}] {step.title}'
            if step.name in self.seconds:
                print(f'{label}: done before, {self.seconds[step.name]:.0f} s', flush=True)
                continue
            print(f'{label} ...', flush=True)
            start = time.perf_counter()
            self._call(step.command(self), step.name, label)
            self.seconds[step.name] = time.perf_counter() - start
            state = json.dumps({'quick': self.quick, 'seconds': self.seconds})
            write_text(self.state_file, state)
            print(f'\r{label}: {self.seconds[step.name]:.0f} s'.ljust(110), flush=True)

    def _call(self, command: list[str], name: str, label: str) -> None:
        log = self.root / 'logs' / f'{name}.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        # A waiting OpenMP thread sleeps instead of spinning: on two cores the spinning costs the other thread its core.
        environment = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ, 'PYTHONUNBUFFERED': '1'}
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        with open(log, 'a', buffering=1) as file, process:
            for line in process.stdout:  # universal newlines: a progress bar's returns end lines too
                file.write(line)
                if sys.stdout.isatty() and (shown := PROGRESS.search(line)):
                    print(f'\r{label}  {shown[0].strip()[:100]}'.ljust(110)[:150], end='', flush=True)
        if process.returncode:
            tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
            raise RuntimeError(f'{label} failed with {process.returncode}; the end of {log}:\n{tail}')


STEPS = (
    Step('scenes for detection and segmentation', 'scenes', Job.scenes),
    Step('unsupervised supernet', 'pretrain', lambda job: job.train(PRETRAIN, 'pretrain', 4)),
    Step(
        'linear stage',
        'linear',
        lambda job: job.train(LINEAR, 'linear', 4, **{'model.supernet': job.checkpoint('pretrain')}),
    ),
    Step('search', 'search', Job.search),
    Step('derive', 'derive', Job.derive),
    Step(
        'retrain from scratch',
        'retrain',
        lambda job: job.train(RETRAIN, 'retrain', 4, **{'model.model.arch': job.arch}),
    ),
    Step(
        'publish the retrained network',
        'publish',
        lambda job: ['-m', 'pinas_zoo.mm.quickstart.report', 'publish', str(job.root)],
    ),
    Step('detection, pre-trained', 'det-pretrained', lambda job: job.transfer(DETECTION, 'det-pretrained', True)),
    Step('detection, random', 'det-random', lambda job: job.transfer(DETECTION, 'det-random', False)),
    Step('segmentation, pre-trained', 'seg-pretrained', lambda job: job.transfer(SEGMENTATION, 'seg-pretrained', True)),
    Step('segmentation, random', 'seg-random', lambda job: job.transfer(SEGMENTATION, 'seg-random', False)),
    Step('report', 'report', lambda job: ['-m', 'pinas_zoo.mm.quickstart.report', 'report', str(job.root)]),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns 0, or 1 with the failed step's message."""
    parser = argparse.ArgumentParser(prog='tools/quickstart.sh', description=__doc__)
    parser.add_argument('--root', type=Path, default=Path('work_dirs/quickstart'), help='where everything goes')
    parser.add_argument(
        '--quick', action='store_true', help='a few iterations per step: checks the way, not the numbers'
    )
    args = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        job = Job(args.root, args.quick)
        job.run(STEPS)
    except (RuntimeError, ValueError) as error:
        print(f'\n{error}', file=sys.stderr)
        return 1
    print(f'\n{(args.root / "table.txt").read_text()}')
    print(f'this call took {time.perf_counter() - start:.0f} s, all steps {sum(job.seconds.values()):.0f} s')
    print(f'report: {args.root / "report.html"}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
