"""Transfer study: random, supervised and Pi-NAS initialisation and a plain ResNet, in detection and segmentation.

    python -m benchmarks.transfer run --source work_dirs/nano
    python -m benchmarks.transfer report

`run` skips what benchmarks/transfer/results.json has and continues what was interrupted; two calls may share
the work, one with `--tasks detection`, one with `--tasks segmentation`. `report` writes table
and figure of docs/transfer.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.transfer.plan import ARMS, TASKS, Inputs, planned
from benchmarks.transfer.report import is_current, write_page
from benchmarks.transfer.study import Study

RESULTS, PAGE = Path('benchmarks/transfer/results.json'), Path('docs/transfer.md')


def run_study(args: argparse.Namespace) -> int:
    out = args.out or (args.work_dir / RESULTS.name if args.quick else RESULTS)
    study = Study(args.work_dir, out, Inputs(args.source, args.scenes or args.source / 'scenes'), args.quick)
    study.complete(planned(args.tasks, args.arms, args.seeds))
    return 0


def run_report(args: argparse.Namespace) -> int:
    if args.check:
        current = is_current(args.results, args.page)
        print(f'{args.page}: {"up to date" if current else "out of date"}')
        return 0 if current else 1
    print(write_page(args.results, args.page), end='')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    run = commands.add_parser('run', help='train what is not done yet')
    run.add_argument(
        '--source', type=Path, default=Path('work_dirs/nano'), help='folder of nano_weights.sh, quickstart.sh'
    )
    run.add_argument('--scenes', type=Path, help='use these scenes instead')
    run.add_argument('--work-dir', type=Path, default=Path('work_dirs/transfer'), help='folder of the runs')
    run.add_argument('--out', type=Path, help=f'file of the figures; default {RESULTS}')
    run.add_argument('--tasks', nargs='+', choices=TASKS, default=list(TASKS))
    run.add_argument('--arms', nargs='+', choices=ARMS, default=list(ARMS))
    run.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    run.add_argument('--quick', action='store_true', help='four iterations per run, figures into the work dir')
    run.set_defaults(call=run_study)
    report = commands.add_parser('report', help='table and figure')
    report.add_argument('--results', type=Path, default=RESULTS)
    report.add_argument('--page', type=Path, default=PAGE, help='page with the markers for the table')
    report.add_argument('--check', action='store_true', help='write nothing, exit 1 if the table is out of date')
    report.set_defaults(call=run_report)
    args = parser.parse_args(argv)
    try:
        return args.call(args)
    except (RuntimeError, ValueError, OSError) as error:
        print(f'\n{error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    raise SystemExit(main())
