"""Train a search's best architectures and some random ones alone, and choose one; continues an interrupted call.

    pinas shortlist configs/quickstart/....py --search work_dirs/search --work-dir work_dirs/shortlist
    pinas shortlist configs/quickstart/....py --random-only --work-dir work_dirs/random    # beside the search

Writes shortlist.json: both groups, their accuracies, the choice and its rank, the rank correlation of the supernet's
estimates. `pinas derive` and the retraining use the choice.
"""

import argparse
from typing import Any

from pinas_cli.options import add_cfg_options, add_config, config_path, errors_as_line, run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas shortlist`."""
    add_config(parser, 'shortlist config in configs/search/ or configs/quickstart/')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--search', metavar='DIR', help='work dir of the search, or its archs.jsonl')
    source.add_argument(
        '--random-only',
        action='store_true',
        help="train only the random architectures, which follow from the search's config: beside or before the search",
    )
    parser.add_argument(
        '--trained', metavar='DIR', help='work dir of a call with --random-only, whose trainings are reused'
    )
    parser.add_argument(
        '--work-dir', help='folder for the trainings and shortlist.json; default work_dirs/<config name>'
    )
    parser.add_argument('--workers', type=int, metavar='N', help="number of parallel trainings; default the config's")
    parser.add_argument('--seed', type=int, help="seed of the random draw and of the trainings; default the config's")
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Trains and chooses."""
    from pinas_zoo.mm.shortlist import shortlist, train_random

    config, options = config_path(args.config), run_options(args)
    with errors_as_line(ValueError, OSError, RuntimeError):
        if args.random_only:
            train_random(config, options, args.workers, _tell)
            return 0
        result = shortlist(config, args.search, options, args.workers, _tell, args.trained)
    print(summary(result))
    return 0


def _tell(done: int, total: int, arch: str) -> None:
    print(f'{done} of {total} networks ({arch})', flush=True)


def summary(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    chosen, random, tau = result['chosen'], result['random'], result['kendall_tau']
    lines = [f'chosen: {chosen["arch"]}, {chosen["value"]:.2f}, rank {chosen["rank"]} of {chosen["networks"]}']
    if random['std'] is not None:
        spread = f'with a standard deviation of {random["std"]:.2f} (n = {random["count"]})'
        lines.append(f'random: {random["mean"]:.2f} {spread}')
    if tau['tau'] is not None:
        lines.append(f"Kendall's tau of the supernet's {tau['estimate']}: {tau['tau']:.2f} (n = {tau['count']})")
    return '\n'.join(lines)
