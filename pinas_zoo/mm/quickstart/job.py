"""The main job on two CPU cores: from an unsupervised supernet to a detector and a segmentor, with a report.

Every stage is one call of a tool, so that it can be repeated by hand. A later call continues an interrupted stage,
skips what is done, and runs again what is stale: stages whose data, settings, code or inputs have changed.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from pinas_zoo.data.small_sets import DataSetInfo, resolve_fashion_mnist
from pinas_zoo.mm.quickstart.commands import (
    COCO_VAL,
    DETECTION,
    LINEAR,
    PRETRAIN,
    RETRAIN,
    SEARCH,
    SEGMENTATION,
    SHORT,
    SHORTLIST,
    Job,
)
from pinas_zoo.mm.quickstart.engine import Context, Engine, Stage, StageError

__all__ = ['STAGES', 'find_data', 'open_engine']

DATA = ('data', 'files.py')
#: Code that every training, and everything that reads a supernet, may run.
TRAINING = (
    *DATA, 'space.py', 'dist.py', 'models', 'methods', 'weights', 'mmcv_ext', 'registry.py', 'mm/engine',
    'mm/preflight', 'mm/pretrain.py', 'mm/classify.py', 'mm/checkpoint_loader.py', 'search/log.py',
    'search/searcher.py',
)  # fmt: skip
SEARCHING = (*TRAINING, 'search', 'mm/search.py', 'mm/shortlist.py')
TRANSFER = (*TRAINING, 'mm/backbone.py', 'mm/heads.py')

#: The job. Networks this small gain nothing from a second thread; the shortlist trains two of them in parallel.
STAGES = (
    Stage(
        'scenes',
        'scenes for detection and segmentation',
        Job.scenes,
        code=DATA,
        outputs=('scenes/manifest.json', f'scenes/{COCO_VAL}'),
    ),
    Stage(
        'pretrain',
        'unsupervised supernet',
        Job.pretrain,
        configs=(PRETRAIN,),
        code=TRAINING,
        outputs=('pretrain/last_checkpoint',),
    ),
    Stage(
        'linear',
        'linear stage',
        Job.linear,
        after=('pretrain',),
        configs=(LINEAR,),
        code=TRAINING,
        outputs=('linear/last_checkpoint',),
    ),
    Stage(
        'search',
        'search',
        Job.search,
        after=('linear',),
        configs=(SEARCH,),
        code=SEARCHING,
        outputs=('search/best.json', 'search/archs.jsonl'),
    ),
    Stage(
        'shortlist',
        'shortlist, each network trained alone',
        Job.shortlist,
        after=('search',),
        configs=(SHORTLIST, SHORT),
        code=SEARCHING,
        outputs=('shortlist/shortlist.json',),
        threads=2,
    ),
    Stage(
        'derive',
        'derive the backbone',
        Job.derive,
        after=('linear', 'shortlist'),
        configs=(SEARCH,),
        code=SEARCHING,
        outputs=('backbone.safetensors',),
    ),
    Stage(
        'retrain',
        'retrain from scratch',
        Job.retrain,
        after=('shortlist',),
        configs=(RETRAIN,),
        code=TRAINING,
        outputs=('retrain/last_checkpoint',),
    ),
    Stage(
        'publish',
        'publish the retrained network',
        Job.publish,
        after=('retrain',),
        code=(*TRAINING, 'mm/quickstart/results.py', 'search/derive.py'),
        outputs=('retrained.safetensors',),
    ),
    Stage(
        'detection',
        'detection and instance segmentation',
        Job.detection,
        after=('scenes', 'publish'),
        configs=(DETECTION,),
        code=TRANSFER,
        outputs=('detection/last_checkpoint',),
    ),
    Stage(
        'segmentation',
        'semantic segmentation',
        Job.segmentation,
        after=('scenes', 'publish'),
        configs=(SEGMENTATION,),
        code=TRANSFER,
        outputs=('segmentation/last_checkpoint',),
    ),
    Stage(
        'report',
        'report',
        Job.report,
        after=(
            'scenes', 'pretrain', 'linear', 'search', 'shortlist', 'derive', 'retrain', 'publish', 'detection',
            'segmentation',
        ),
        code=('',),
        outputs=('report.html', 'table.txt'),
    ),
)  # fmt: skip


def open_engine(job: Job, data: DataSetInfo) -> Engine:
    """The engine that runs the stages of a job.

    Args:
        job: Its commands.
        data: The data set that all stages use.
    """
    again = ['bash', 'tools/quickstart.sh', '--root', str(job.root), *(['--quick'] if job.quick else [])]
    return Engine(Context(job.root, (data.title, data.fingerprint), data.environment, shlex.join(again)), STAGES, job)


def find_data() -> DataSetInfo:
    """The data set; messages during the search for it go to the standard error, so that it is the first line here."""
    with redirect_stdout(sys.stderr):
        return resolve_fashion_mnist()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='tools/quickstart.sh', description=__doc__)
    parser.add_argument('--root', type=Path, help='folder for everything; default: work_dirs/quickstart')
    parser.add_argument(
        '--quick', action='store_true', help='a few iterations per stage: checks that everything runs, not the numbers'
    )
    parser.add_argument('--plan', action='store_true', help='only say which stages are done, stale (and why) or new')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job; returns 0, or 1 with the failed stage's message."""
    args = _parser().parse_args(argv)
    root = args.root or Path('work_dirs/quickstart-quick' if args.quick else 'work_dirs/quickstart')
    start = time.perf_counter()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the tools are ended, too
    try:
        data = find_data()
        print(f'data: {data}', flush=True)
        job = Job(root, args.quick)
        engine = open_engine(job, data)
        if args.plan:
            for name, word in engine.plan().items():
                print(f'{engine.numbers[name]} {engine.stages[name].title}: {word}')
            return 0
        engine.run()
    except (StageError, ValueError, ImportError) as error:
        print(f'\n{error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ninterrupted; call it again to continue', file=sys.stderr)
        return 130
    print(f'\n{(root / "table.txt").read_text()}')
    seconds = sum(entry.seconds for entry in engine.records.entries.values())
    print(f'this call took {time.perf_counter() - start:.0f} s, all stages {seconds:.0f} s of their own')
    print(f'report: {root / "report.html"}\n\nTo try next:')
    for command in job.next_commands():
        print(f'  {command}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
