"""Measure how well supernets rank architectures (docs/ranking.md).

    python tools/rank.py truth --workers 2          # train what benchmarks/rank/truth.jsonl still lacks
    python tools/rank.py truth --verify 3           # train three recorded lines again
    python tools/rank.py run --seeds 3 --workers 2  # train and score every contestant's supernets
    python tools/rank.py report                     # tables and figures of the reporting half
    python tools/rank.py trials                     # every recipe that was tried, on the tuning half

Each subcommand goes on where it was stopped.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from pinas_zoo.files import read_lines
from pinas_zoo.ranking.contestants import CONTESTANTS, SupernetRecipe
from pinas_zoo.ranking.publish import write_report
from pinas_zoo.ranking.report import markdown, trials, trials_markdown
from pinas_zoo.ranking.study import Job, missing_jobs, run
from pinas_zoo.ranking.truth import HALVES, Study, draw_paths, extend, read_truth, verify
from pinas_zoo.search.log import SearchRecord

ROOT = Path(__file__).resolve().parent.parent
TRUTH = ROOT / 'benchmarks' / 'rank' / 'truth.jsonl'
SCORES = TRUTH.with_name('scores.jsonl')
PAGE = ROOT / 'docs' / 'ranking.md'


# ---- truth -----------------------------------------------------------------------------------------------------------


def add_truth(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser('truth', help='stand-alone training of paths; resumes')
    parser.add_argument('--file', type=Path, default=TRUTH, help=f'the table; default {TRUTH.name} of benchmarks/rank')
    parser.add_argument('--paths', type=int, default=192, help='paths that the table shall have; default 192')
    parser.add_argument('--workers', type=int, default=1, help='processes, one thread each; default 1')
    parser.add_argument('--verify', type=int, metavar='N', help='train N recorded lines again instead, and compare')
    parser.set_defaults(run=run_truth)


def run_truth(args: argparse.Namespace) -> int:
    if args.verify:
        return verify_truth(args.file, args.verify)
    begin = time.monotonic()

    def report(done: int, total: int, record: SearchRecord) -> None:
        left = (time.monotonic() - begin) / done * (total - done)
        print(
            f'{done}/{total}  {record.arch}  {record.score:.2f} %  loss {record.loss:.4f}  {record.seconds:.1f} s  '
            f'ETA {left / 60:.0f} min',
            flush=True,
        )

    extend(args.file, Study(), args.paths, args.workers, report)
    print(f'{args.file}: {len(read_truth(args.file).rows)} paths')
    return 0


def verify_truth(file: Path, count: int) -> int:
    failed = 0
    for check in verify(read_truth(file), count):
        verdict = 'holds' if check.holds else 'DIFFERS'
        print(
            f'{check.row.path}: seed {check.seed}, recorded {check.row.top1[check.seed]:.2f} %, again '
            f'{check.result.top1:.2f} %, spread of the seeds {check.spread:.2f}: {verdict}',
            flush=True,
        )
        failed += not check.holds
    return int(failed > 0)


# ---- supernets -------------------------------------------------------------------------------------------------------


def add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--truth', type=Path, default=TRUTH, help=f'the truth table; default {TRUTH.name}')
    parser.add_argument('--scores', type=Path, default=SCORES, help=f'the supernets; default {SCORES.name} beside it')


def add_recipe(parser: argparse.ArgumentParser) -> None:
    add_files(parser)
    parser.add_argument(
        '--set',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help=f'recipe other than the default: {", ".join(vars(SupernetRecipe()))}',
    )


def recipe_of(args: argparse.Namespace) -> SupernetRecipe:
    return SupernetRecipe().changed(dict(pair.split('=', 1) for pair in args.set))


def add_run(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser('run', help='train and score supernets; resumes')
    add_recipe(parser)
    parser.add_argument('--methods', nargs='+', choices=CONTESTANTS, default=list(CONTESTANTS), help='default: all')
    parser.add_argument('--seeds', type=int, default=3, help='supernets per method, seeds 0, 1, ...; default 3')
    parser.add_argument('--paths', type=int, default=192, help='paths of the truth that are scored; default 192')
    parser.add_argument('--workers', type=int, default=1, help='supernets at a time; default 1')
    parser.add_argument('--threads', type=int, default=1, help='threads of each; default 1')
    parser.set_defaults(run=run_supernets)


def run_supernets(args: argparse.Namespace) -> int:
    study = read_truth(args.truth).study if args.truth.is_file() else Study()
    archs, recipe = tuple(draw_paths(study, args.paths)), recipe_of(args)
    jobs = [
        Job(name, seed, study.space, study.task, recipe, archs) for seed in range(args.seeds) for name in args.methods
    ]
    begin, todo = time.monotonic(), len(missing_jobs(args.scores, jobs))
    print(f'recipe {recipe.id}: {len(jobs) - todo} of {len(jobs)} supernets are done', flush=True)

    def report(done: int, total: int, row: dict) -> None:
        left = (time.monotonic() - begin) / done * (total - done)
        top1 = [score[0] for score in row['scores'].values()]
        print(
            f'{done}/{total}  {row["contestant"]} seed {row["seed"]}: paths {min(top1):.2f} to {max(top1):.2f} %, '
            f'{sum(row["seconds"].values()):.0f} s, {row["peak_memory_mb"]} MiB  ETA {left / 60:.0f} min',
            flush=True,
        )

    run(args.scores, jobs, args.workers, args.threads, report)
    return 0


# ---- report ----------------------------------------------------------------------------------------------------------


def add_report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser('report', help='report.json, tables and figures')
    add_recipe(parser)
    parser.add_argument('--half', choices=HALVES, default='reporting', help='default reporting')
    parser.add_argument('--out', type=Path, default=TRUTH.parent, help='folder of report and figures')
    parser.add_argument(
        '--page', type=Path, help='page with the report; default docs/ranking.md for the default recipe'
    )
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> int:
    standard = args.half == 'reporting' and not args.set and args.out == TRUTH.parent
    page = args.page or (PAGE if standard else None)
    report = write_report(args.out, read_truth(args.truth), read_lines(args.scores), recipe_of(args), args.half, page)
    print(markdown(report))
    return 0


def add_trials(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser('trials', help='tau of every recipe in the scores, on the tuning half')
    add_files(parser)
    parser.set_defaults(run=run_trials)


def run_trials(args: argparse.Namespace) -> int:
    print(trials_markdown(trials(read_truth(args.truth), read_lines(args.scores))), end='')
    return 0


# ---- command line ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for add in (add_truth, add_run, add_report, add_trials):
        add(commands)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == '__main__':
    raise SystemExit(main())
