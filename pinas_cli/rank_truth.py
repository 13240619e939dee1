"""`pinas rank truth` and `pinas rank transfer`: networks trained alone."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pinas_cli.options import add_part, errors_as_line

if TYPE_CHECKING:
    from pinas_zoo.ranking.instruments import Instrument
    from pinas_zoo.search.log import SearchRecord

TRANSFER = Path('benchmarks', 'rank', 'transfer_truth.jsonl')
#: Further seeds, beside a truth table.
FURTHER = 'truth_seeds.jsonl'
#: The keys of `pinas_zoo.ranking.instruments.INSTRUMENTS` and of `pinas_zoo.ranking.transfer.DESIGNS`.
INSTRUMENTS = ('four', 'eight', 'macro')
DESIGNS = ('overlap', 'frozen')


def add_instrument(parser: argparse.ArgumentParser) -> None:
    """The option that selects space, truth and budget."""
    words = 'positions of the space: four, or eight with a small budget; macro: NAS-Bench-Macro; default four'
    parser.add_argument('--instrument', choices=INSTRUMENTS, default=INSTRUMENTS[0], help=words)


def instrument_of(args: argparse.Namespace) -> Instrument:
    """What --instrument selects."""
    from pinas_zoo.ranking.instruments import INSTRUMENTS

    return INSTRUMENTS[args.instrument]


def add_table(parser: argparse.ArgumentParser) -> None:
    """The option that names the published table."""
    words = 'with macro: the published table of NAS-Bench-Macro; default $PINAS_NAS_BENCH_MACRO'
    parser.add_argument('--table', type=Path, metavar='FILE', help=words)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option that selects a device."""
    parser.add_argument('--device', default='cpu', help='device that trains the networks, such as cuda:1; default cpu')


def add_truth(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand."""
    parser = add_part(commands, 'truth', 'stand-alone training of paths; resumes')
    add_instrument(parser)
    add_table(parser)
    parser.add_argument('--file', type=Path, help="the table; default the instrument's, below benchmarks/")
    parser.add_argument('--paths', type=int, help="number of paths in the table; default the instrument's")
    parser.add_argument('--workers', type=int, default=1, help='processes, one thread each; default 1')
    add_device(parser)
    parser.add_argument(
        '--further', action='store_true', help='instead, seeds 2 and 3 of the reporting half, in truth_seeds.jsonl'
    )
    parser.add_argument('--verify', type=int, metavar='N', help='instead, repeat N recorded trainings and compare')
    parser.set_defaults(run_part=run_truth, prog=parser.prog)


def run_truth(args: argparse.Namespace) -> int:
    """Trains paths alone."""
    from pinas_zoo.ranking.truth import extend, read_truth

    instrument = instrument_of(args)
    if instrument.published:
        with errors_as_line(ValueError, OSError):
            return check_table(args.table, instrument)
    file = args.file or instrument.truth
    if args.verify:
        return verify_truth(file, args.verify)
    if args.further:
        return run_further(file, args)
    begin = time.monotonic()

    def report(done: int, total: int, record: SearchRecord) -> None:
        left = (time.monotonic() - begin) / done * (total - done)
        print(
            f'{done}/{total}  {record.arch}  {record.score:.2f} %  loss {record.loss:.4f}  {record.seconds:.1f} s  '
            f'ETA {left / 60:.0f} min',
            flush=True,
        )

    extend(file, instrument.study, args.paths or instrument.paths, args.workers, args.device, report)
    print(f'{file}: {len(read_truth(file).rows)} paths')
    return 0


def check_table(file: Path | None, instrument: Instrument) -> int:
    """Compares the published table with our counts; returns 1 if one differs."""
    from pinas_zoo.ranking.macro import differing_costs, find_table, published_truth, read_table
    from pinas_zoo.ranking.report import true_values
    from pinas_zoo.ranking.statistics import attainable_tau

    file, space = find_table(file), instrument.study.space
    table = read_table(file, space)
    differing = differing_costs(table, space)
    print(f'{len(table) - len(differing)} of {len(table)} networks have equal parameters and MACs')
    for arch, (theirs, ours) in list(differing.items())[:5]:
        print(f'{space.format(arch)}: {theirs} in the table, {ours} here')
    rows = published_truth(file, instrument.study, instrument.paths).rows
    top1 = true_values(rows, 'accuracy')
    tau = attainable_tau(*(true_values(rows, 'accuracy', seed) for seed in range(instrument.study.seeds)))
    print(f'{len(rows)} paths are drawn: {top1.min():.2f} to {top1.max():.2f} %, a tau of {tau:.3f} is attainable')
    return int(bool(differing))


def run_further(file: Path, args: argparse.Namespace) -> int:
    """Trains the reporting half of a table with further seeds."""
    from pinas_zoo.ranking.further_seeds import extend_seeds
    from pinas_zoo.ranking.truth import read_truth

    begin, truth = time.monotonic(), read_truth(file)

    def report(done: int, total: int, line: dict[str, Any]) -> None:
        left = (time.monotonic() - begin) / done * (total - done)
        print(
            f'{done}/{total}  {line["arch"]} seed {line["seed"]}  {line["top1"]:.2f} %  ETA {left / 60:.0f} min',
            flush=True,
        )

    paths = args.paths or len(truth.half('reporting'))
    extend_seeds(file.with_name(FURTHER), truth, paths, args.workers, file.with_name(TRANSFER.name), report)
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


def add_transfer(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand."""
    parser = add_part(commands, 'transfer', 'stand-alone training, then fine-tuning on a dense task; resumes')
    parser.add_argument('--file', type=Path, default=TRANSFER, help=f'the table; default {TRANSFER}')
    parser.add_argument('--design', choices=DESIGNS, default=DESIGNS[0], help='the dense target; default overlap')
    parser.add_argument('--paths', type=int, default=96, help='number of paths of the reporting half; default 96')
    parser.add_argument('--workers', type=int, default=1, help='processes, one thread each; default 1')
    parser.add_argument('--sources', type=Path, help='folder that keeps the networks before they are fine-tuned')
    add_device(parser)
    parser.set_defaults(run_part=run_transfer, prog=parser.prog)


def run_transfer(args: argparse.Namespace) -> int:
    """Trains paths alone and transfers them."""
    from pinas_zoo.ranking.instruments import INSTRUMENTS
    from pinas_zoo.ranking.transfer import DESIGNS, extend_transfer
    from pinas_zoo.ranking.truth import read_truth

    begin = time.monotonic()

    def report(done: int, total: int, line: dict[str, Any]) -> None:
        left = (time.monotonic() - begin) / done * (total - done)
        print(
            f'{done}/{total}  {line["arch"]} seed {line["seed"]}  mIoU {line["miou"]:.2f} %  '
            f'{sum(line["seconds"]):.1f} s  ETA {left / 60:.0f} min',
            flush=True,
        )

    truth = read_truth(INSTRUMENTS['four'].truth)
    design = DESIGNS[args.design]
    extend_transfer(args.file, design, truth, args.paths, args.workers, args.sources, args.device, report)
    return 0
