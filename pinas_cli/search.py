"""Search a supernet for its best architecture; continues the same search if the work dir contains one.

    pinas search configs/quickstart/....py --checkpoint work_dirs/linear/iter_300.pth

Writes archs.jsonl (one line per evaluation), best.json, trace.png and pareto.png; `pinas derive` reads best.json.
"""

import argparse

from pinas_cli.options import add_config, add_run_options, config_path, errors_as_line, run_options


def _shard(text: str) -> tuple[int, int]:
    job, separator, jobs = text.partition('/')
    if not (separator and job.isdigit() and jobs.isdigit() and int(job) < int(jobs)):
        raise argparse.ArgumentTypeError(f'must be I/N with I from 0 to N - 1, got {text!r}')
    return int(job), int(jobs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas search`."""
    add_config(parser, 'config file in configs/search/ or configs/quickstart/')
    parser.add_argument('--checkpoint', required=True, help='checkpoint of the linear stage')
    parser.add_argument(
        '--shard',
        type=_shard,
        metavar='I/N',
        help='run as job I of N, from 0; they share this search and its work dir (docs/cluster.md)',
    )
    add_run_options(parser, 'what the search writes', "the config's, else 0")


def run(args: argparse.Namespace) -> int:
    """Searches."""
    from pinas_zoo.mm.search import search

    with errors_as_line(ValueError, OSError):
        best = search(config_path(args.config), args.checkpoint, run_options(args), args.shard)
    if best.loss is not None:  # rank 0 has the log
        print(f'best of the search: {best.arch}, score {best.score:.4f}, loss {best.loss:.4f} in the supernet')
    return 0
