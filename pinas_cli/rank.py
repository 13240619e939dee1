"""Measure how well supernets rank architectures (docs/ranking.md).

    pinas rank truth --workers 2          # train what benchmarks/rank/truth.jsonl still lacks
    pinas rank truth --further            # two more seeds of the reporting half
    pinas rank truth --verify 3           # train three recorded lines again
    pinas rank transfer --workers 2       # train paths alone, then fine-tune them on a dense task
    pinas rank proxies --seeds 5          # training-free scores; --space and --arch for any path
    pinas rank run --seeds 3 --workers 2  # train and score every contestant's supernets
    pinas rank report                     # tables and figures of the reporting half
    pinas rank report --instrument macro --table FILE  # against the published table of NAS-Bench-Macro
    pinas rank trials                     # every recipe that was tried, on the tuning half

Each subcommand continues where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinas_cli.options import UsageError, add_part, errors_as_line
from pinas_cli.rank_proxies import add_proxies
from pinas_cli.rank_truth import (
    FURTHER,
    INSTRUMENTS,
    TRANSFER,
    add_device,
    add_instrument,
    add_table,
    add_transfer,
    add_truth,
    instrument_of,
)

if TYPE_CHECKING:
    from pinas_zoo.ranking.recipe import SupernetRecipe

PAGE = Path('docs', 'ranking.md')
MACRO_PAGE = Path('docs', 'ranking_macro.md')
HALVES = ('tuning', 'reporting', 'both')


# ---- supernets -------------------------------------------------------------------------------------------------------


def _add_files(parser: argparse.ArgumentParser) -> None:
    add_instrument(parser)
    parser.add_argument('--truth', type=Path, help="the truth table; default the instrument's, below benchmarks/")
    parser.add_argument('--scores', type=Path, help='the supernets; default scores.jsonl in the same folder')


def files_of(args: argparse.Namespace) -> tuple[Path, Path]:
    """The files of truth and supernets."""
    folder = instrument_of(args).truth.parent
    return args.truth or folder / 'truth.jsonl', args.scores or folder / 'scores.jsonl'


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
    """The recipe that --set makes of the instrument's."""
    return instrument_of(args).recipe.changed(dict(pair.split('=', 1) for pair in args.set))


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(commands, 'run', 'train and score supernets; resumes')
    _add_recipe(parser)
    parser.add_argument('--methods', nargs='+', metavar='NAME', help='methods of docs/methods.md; default: all')
    parser.add_argument('--seeds', type=int, help='supernets per method, seeds 0, 1, ...; default 3, with eight 5')
    parser.add_argument('--paths', type=int, help="number of paths of the truth to score; default the instrument's")
    parser.add_argument('--workers', type=int, default=1, help='supernets at a time; default 1')
    parser.add_argument('--threads', type=int, default=1, help='threads of each; default 1')
    parser.add_argument(
        '--keep', type=Path, metavar='FOLDER', help='folder that keeps trained supernets until they are scored'
    )
    add_device(parser)
    parser.set_defaults(run_part=run_supernets, prog=parser.prog)


def run_supernets(args: argparse.Namespace) -> int:
    """Trains supernets and scores their paths."""
    from pinas_zoo.ranking.contestants import CONTESTANTS
    from pinas_zoo.ranking.study import Job, missing_jobs, run
    from pinas_zoo.ranking.truth import draw_paths, read_truth

    methods = args.methods or list(CONTESTANTS)
    if unknown := [name for name in methods if name not in CONTESTANTS]:
        raise UsageError(f'--methods got {unknown}, allowed: {", ".join(CONTESTANTS)}')
    instrument, (truth, scores) = instrument_of(args), files_of(args)
    study = read_truth(truth).study if truth.is_file() else instrument.study
    archs, recipe = tuple(draw_paths(study, args.paths or instrument.paths)), recipe_of(args)
    seeds = range(args.seeds or instrument.seeds)
    jobs = [Job(name, seed, study.space, study.task, recipe, archs) for seed in seeds for name in methods]
    begin, todo = time.monotonic(), len(missing_jobs(scores, jobs))
    print(f'recipe {recipe.id}: {len(jobs) - todo} of {len(jobs)} supernets are done', flush=True)

    def report(done: int, total: int, row: dict[str, Any]) -> None:
        left = (time.monotonic() - begin) / done * (total - done)
        top1 = [score[0] for score in row['scores'].values()]
        print(
            f'{done}/{total}  {row["contestant"]} seed {row["seed"]}: paths {min(top1):.2f} to {max(top1):.2f} %, '
            f'{sum(row["seconds"].values()):.0f} s, {row["peak_memory_mb"]} MiB  ETA {left / 60:.0f} min',
            flush=True,
        )

    run(scores, jobs, args.workers, args.threads, args.device, report, args.keep)
    return 0


# ---- report ----------------------------------------------------------------------------------------------------------


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(commands, 'report', 'report.json, tables and figures')
    _add_recipe(parser)
    add_table(parser)
    parser.add_argument(
        '--half', choices=HALVES, help='which half of the paths to report; default reporting, with eight both'
    )
    parser.add_argument('--out', type=Path, help='folder of report and figures; default that of the truth')
    parser.add_argument(
        '--page', type=Path, help='page with the report; default docs/ranking.md for the default recipe'
    )
    parser.set_defaults(run_part=run_report, prog=parser.prog)


def run_report(args: argparse.Namespace) -> int:
    """Writes report, tables and figures."""
    from pinas_zoo.files import read_lines
    from pinas_zoo.ranking.choice import read_searches
    from pinas_zoo.ranking.further_seeds import with_further_seeds
    from pinas_zoo.ranking.publish import write_block, write_report, write_transfer
    from pinas_zoo.ranking.tables import markdown
    from pinas_zoo.ranking.truth import read_truth

    if instrument_of(args).published:
        with errors_as_line(ValueError, OSError):
            return report_published(args)
    instrument, (truth, scores) = instrument_of(args), files_of(args)
    rows = read_lines(scores) + read_lines(scores.with_name('proxies.jsonl'))
    half, out = args.half or instrument.half, args.out or instrument.truth.parent
    standard = half == instrument.half and not args.set and out == instrument.truth.parent
    page, whole = args.page or (PAGE if standard else None), read_truth(truth)
    main = args.instrument == INSTRUMENTS[0]
    further = with_further_seeds(whole, truth.with_name(FURTHER))
    searches = read_searches(truth.parent)
    report = write_report(out, further, rows, recipe_of(args), half, page if main else None, searches)
    if page and not main:
        write_block(page, args.instrument, out / 'report.json', report, ['loss_to_accuracy'])
    if page and main and TRANSFER.is_file() and standard:
        write_transfer(page, TRANSFER, whole, rows, recipe_of(args))
    print(markdown(report))
    return 0


def report_published(args: argparse.Namespace) -> int:
    """Writes report and tables of an instrument whose truth was published."""
    from pinas_zoo.files import read_lines
    from pinas_zoo.ranking.macro import find_table, published_truth
    from pinas_zoo.ranking.publish import write_block
    from pinas_zoo.ranking.report import VIEWS, compute
    from pinas_zoo.ranking.tables import markdown

    instrument, (_, scores) = instrument_of(args), files_of(args)
    truth = published_truth(find_table(args.table), instrument.study, instrument.paths)
    report = compute(truth, read_lines(scores), recipe_of(args), args.half or instrument.half)
    views, out = [name for name in VIEWS if name in report], args.out or instrument.truth.parent
    if page := args.page or (MACRO_PAGE if out == instrument.truth.parent and not args.set else None):
        write_block(page, args.instrument, out / 'report.json', report, views)
    print(markdown(report, views))
    return 0


def _add_trials(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(commands, 'trials', 'tau of every recipe in the scores, on the tuning half')
    _add_files(parser)
    parser.set_defaults(run_part=run_trials, prog=parser.prog)


def run_trials(args: argparse.Namespace) -> int:
    """Prints every recipe's tau."""
    from pinas_zoo.files import read_lines
    from pinas_zoo.ranking.curves import trials
    from pinas_zoo.ranking.tables import trials_markdown
    from pinas_zoo.ranking.truth import read_truth

    truth, scores = files_of(args)
    print(trials_markdown(trials(read_truth(truth), read_lines(scores))), end='')
    return 0


# ---- command line ----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands of `pinas rank`."""
    commands = parser.add_subparsers(required=True, metavar='truth|transfer|proxies|run|report|trials')
    for add in (add_truth, add_transfer, add_proxies, _add_run, _add_report, _add_trials):
        add(commands)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    return args.run_part(args)
