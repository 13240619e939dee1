"""The main job on two CPU cores: from an unsupervised supernet to a detector and a segmentor, with a report.

Every stage is one call of a tool, so that it can be repeated by hand. A later call continues an interrupted stage,
skips what is done, and runs again what is stale: stages whose data, settings, code or inputs have changed.
"""

import shlex
import signal
import sys
import time
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

__all__ = ['STAGES', 'find_data', 'open_engine', 'run_job']

DATA = ('data', 'files.py', 'dist.py')
#: Code that every training, and everything that reads a supernet, may run.
TRAINING = (
    *DATA, 'space', 'models', 'methods', 'weights', 'mmcv_ext', 'registry.py', 'mm/engine',
    'mm/preflight', 'mm/pretrain.py', 'mm/classify.py', 'mm/checkpoint_loader.py', 'search/limits.py',
    'search/log.py', 'search/searcher.py', 'probes/knn.py',
)  # fmt: skip
SEARCHING = (*TRAINING, 'search', 'mm/search.py', 'mm/shortlist.py', 'mm/side_by_side.py', 'mm/derive.py')
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
        'random',
        'random networks, each trained alone',
        Job.random,
        configs=(SHORTLIST, SHORT, SEARCH),
        code=SEARCHING,
        outputs=('random/random.json',),
    ),
    Stage(
        'shortlist',
        'shortlist, each network trained alone',
        Job.shortlist,
        after=('search', 'random'),
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
        code=(*TRAINING, 'mm/quickstart/results.py', 'search/derive.py', 'search/pareto.py'),
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
    script = Path('tools/quickstart.sh')
    again = ['bash', str(script)] if script.is_file() else ['pinas', 'quickstart']
    again += ['--root', str(job.root), *(['--quick'] if job.quick else []), *job.seed]
    return Engine(Context(job.root, (data.title, data.fingerprint), data.environment, shlex.join(again)), STAGES, job)


def find_data() -> DataSetInfo:
    """The data set; messages during the search for it go to the standard error, so that it is the first line here."""
    with redirect_stdout(sys.stderr):
        return resolve_fashion_mnist()


def run_job(root: Path | None = None, quick: bool = False, seed: int = 0, plan: bool = False) -> int:
    """Runs the job.

    Args:
        root: Folder for everything; None for work_dirs/quickstart (work_dirs/quickstart-quick).
        quick: A few iterations per stage: checks that everything runs, not the numbers.
        seed: See `Job`.
        plan: Only say which stages are done, stale (and why) or new.

    Returns:
        0; 1 with a failed stage's message; 130 if it was interrupted.
    """
    root = root or Path('work_dirs/quickstart-quick' if quick else 'work_dirs/quickstart')
    start = time.perf_counter()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the tools are stopped too
    try:
        data = find_data()
        print(f'data: {data}', flush=True)
        job = Job(root, quick, seed)
        engine = open_engine(job, data)
        if plan:
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
