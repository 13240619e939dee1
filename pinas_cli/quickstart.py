"""The main job on two CPU cores: from an unsupervised supernet to a detector and a segmentor, with a report.

    pinas quickstart                   # in a clone `bash tools/quickstart.sh`, which sets up first
    pinas quickstart --seed 1 --root work_dirs/quickstart-1

Every stage is one call of a command of `pinas`, so that it can be repeated by hand. A later call continues an
interrupted stage, skips what is done, and repeats what is stale: stages whose data, settings, code or inputs have
changed.
"""

import argparse
from pathlib import Path

from pinas_cli.options import errors_as_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas quickstart`."""
    parser.add_argument('--root', type=Path, help='folder for everything; default work_dirs/quickstart')
    parser.add_argument(
        '--quick', action='store_true', help='a few iterations per stage: checks that everything runs, not the numbers'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of trainings, search and random draws; default 0')
    parser.add_argument('--plan', action='store_true', help='only say which stages are done, stale (and why) or new')


def run(args: argparse.Namespace) -> int:
    """Runs the job."""
    with errors_as_line(ImportError):
        from pinas_zoo.mm.quickstart.job import run_job

    return run_job(args.root, args.quick, args.seed, args.plan)
