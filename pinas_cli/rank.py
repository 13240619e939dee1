"""Measure how well supernets rank architectures (docs/ranking.md).

    pinas rank truth --workers 2          # train what benchmarks/rank/truth.jsonl still lacks
    pinas rank truth --verify 3           # train three recorded lines again
    pinas rank run --seeds 3 --workers 2  # train and score every contestant's supernets
    pinas rank report                     # tables and figures of the reporting half
    pinas rank trials                     # every recipe that was tried, on the tuning half

Each subcommand continues where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinas_cli.options import UsageError

if TYPE_CHECKING:
    from pinas_zoo.ranking.recipe import SupernetRecipe
    from pinas_zoo.search.log import SearchRecord

TRUTH = Path('benchmarks', 'rank', 'truth.jsonl')
SCORES = TRUTH.with_name('scores.jsonl')
PAGE = Path('docs', 'ranking.md')
HALVES = ('tuning', 'reporting')


# ---- truth -----------------------------------------------------------------------------------------------------------


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--device', default='cpu', help='device that trains the networks, such as cuda:1; default cpu')


def _add_truth(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser('truth', help='stand-alone training of paths; resumes')
    parser.add_argument('--file', type=Path, default=TRUTH, help=f'the table; default {TRUTH}')
    parser.add_argument('--paths', type=int, default=192, help='number of paths in the table; default 192')
    parser.add_argument('--workers', type=int, default=1, help='processes, one thread each; default 1')
    _add_device(parser)
    parser.add_argument('--verify', type=int, metavar='N', help='instead, repeat N recorded trainings and compare')
    parser.set_defaults(run_part=run_truth, prog=parser.prog)


def run_truth(args: argparse.Namespace) -> int:
    """Trains paths alone."""
    from pinas_zoo.ranking.truth import Study, extend, read_truth

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

    extend(args.file, Study(), args.paths, args.workers, args.device, report)
    print(f'{args.file}: {len(read_truth(args.file).rows)} paths')
    return 0


def verify_truth(file: Path, count: int) -> int:
    """Repeats recorded trainings; returns 1 if one differs."""
    from pinas_zoo.ranking.truth import read_truth, verify

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


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--truth', type=Path, default=TRUTH, help=f'the truth table; default {TRUTH}')
    parser.add_argument('--scores', type=Path, default=SCORES, help=f'the supernets; default {SCORES}')


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    parser.add_argument(
        '--set',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='change the default recipe; fields of pinas_zoo.ranking.contestants.SupernetRecipe',
    )


def recipe_of(args: argparse.Namespace) -> SupernetRecipe:
    """The recipe that --set defines."""
    from pinas_zoo.ranking.recipe import SupernetRecipe

    return SupernetRecipe().changed(dict(pair.split('=', 1) for pair in args.set))


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser('run', help='train and score supernets; resumes')
    _add_recipe(parser)
    parser.add_argument('--methods', nargs='+', metavar='NAME', help='methods of docs/methods.md; default: all')
    parser.add_argument('--seeds', type=int, default=3, help='supernets per method, seeds 0, 1, ...; default 3')
    parser.add_argument('--paths', type=int, default=192, help='number of paths of the truth to score; default 192')
    parser.add_argument('--workers', type=int, default=1, help='supernets at a time; default 1')
    parser.add_argument('--threads', type=int, default=1, help='threads of each; default 1')
    _add_device(parser)
    parser.set_defaults(run_part=run_supernets, prog=parser.prog)


def run_supernets(args: argparse.Namespace) -> int:
    """Trains supernets and scores their paths."""
    from pinas_zoo.ranking.contestants import CONTESTANTS
    from pinas_zoo.ranking.study import Job, missing_jobs, run
    from pinas_zoo.ranking.truth import Study, draw_paths, read_truth

    methods = args.methods or list(CONTESTANTS)
    if unknown := [name for name in methods if name not in CONTESTANTS]:
        raise UsageError(f'--methods got {unknown}, allowed: {", ".join(CONTESTANTS)}')
    study = read_truth(args.truth).study if args.truth.is_file() else Study()
    archs, recipe = tuple(draw_paths(study, args.paths)), recipe_of(args)
    jobs = [Job(name, seed, study.space, study.task, recipe, archs) for seed in range(args.seeds) for name in methods]
    begin, todo = time.monotonic(), len(missing_jobs(args.scores, jobs))
    print(f'recipe {recipe.id}: {len(jobs) - todo} of {len(jobs)} supernets are done', flush=True)

    def report(done: int, total: int, row: dict[str, Any]) -> None:
        left = (time.monotonic() - begin) / done * (total - done)
        top1 = [score[0] for score in row['scores'].values()]
        print(
            f'{done}/{total}  {row["contestant"]} seed {row["seed"]}: paths {min(top1):.2f} to {max(top1):.2f} %, '
            f'{sum(row["seconds"].values()):.0f} s, {row["peak_memory_mb"]} MiB  ETA {left / 60:.0f} min',
            flush=True,
        )

    run(args.scores, jobs, args.workers, args.threads, args.device, report)
    return 0


# ---- report ----------------------------------------------------------------------------------------------------------


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser('report', help='report.json, tables and figures')
    _add_recipe(parser)
    parser.add_argument(
        '--half', choices=HALVES, default='reporting', help='which half of the paths to report; default reporting'
    )
    parser.add_argument(
        '--out', type=Path, default=TRUTH.parent, help=f'folder of report and figures; default {TRUTH.parent}'
    )
    parser.add_argument(
        '--page', type=Path, help='page with the report; default docs/ranking.md for the default recipe'
    )
    parser.set_defaults(run_part=run_report, prog=parser.prog)


def run_report(args: argparse.Namespace) -> int:
    """Writes report, tables and figures."""
    from pinas_zoo.files import read_lines
    from pinas_zoo.ranking.publish import write_report
    from pinas_zoo.ranking.tables import markdown
    from pinas_zoo.ranking.truth import read_truth

    standard = args.half == 'reporting' and not args.set and args.out == TRUTH.parent
    page = args.page or (PAGE if standard else None)
    report = write_report(args.out, read_truth(args.truth), read_lines(args.scores), recipe_of(args), args.half, page)
    print(markdown(report))
    return 0


def _add_trials(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser('trials', help='tau of every recipe in the scores, on the tuning half')
    _add_files(parser)
    parser.set_defaults(run_part=run_trials, prog=parser.prog)


def run_trials(args: argparse.Namespace) -> int:
    """Prints every recipe's tau."""
    from pinas_zoo.files import read_lines
    from pinas_zoo.ranking.report import trials
    from pinas_zoo.ranking.tables import trials_markdown
    from pinas_zoo.ranking.truth import read_truth

    print(trials_markdown(trials(read_truth(args.truth), read_lines(args.scores))), end='')
    return 0


# ---- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands of `pinas rank`."""
    commands = parser.add_subparsers(required=True, metavar='truth|run|report|trials')
    for add in (_add_truth, _add_run, _add_report, _add_trials):
        add(commands)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    return args.run_part(args)
