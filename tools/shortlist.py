"""Train a search's best architectures and some random ones alone, and choose one; continues what was stopped.

    python tools/shortlist.py configs/quickstart/....py --search work_dirs/search --work-dir work_dirs/shortlist

Writes shortlist.json: both groups, their accuracies, the choice and its rank, the rank correlation of the supernet's
estimates. tools/derive.py and the retraining take the choice on.
"""

import argparse
import sys
from collections.abc import Sequence

from mmengine.config import DictAction

from pinas_zoo.mm.engine.launch import Options
from pinas_zoo.mm.shortlist import shortlist


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a shortlist config of configs/search/ or configs/quickstart/')
    parser.add_argument('--search', required=True, help='work dir of the search, or its archs.jsonl')
    parser.add_argument('--work-dir', help='default work_dirs/<config name>')
    parser.add_argument('--workers', type=int, help="trainings side by side; default: the config's")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override config entries, such as top=3 or training_options.train_cfg.max_iters=500',
    )
    parser.add_argument('--seed', type=int, help="of the random architectures and the trainings; default: the config's")
    args = parser.parse_args(argv)
    options = Options(args.work_dir, None, args.cfg_options, False, args.seed, 'none')
    try:
        result = shortlist(args.config, args.search, options, args.workers, _tell)
    except (ValueError, RuntimeError) as error:
        print(f'shortlist.py: error: {error}', file=sys.stderr)
        return 1
    print(summary(result))
    return 0


def _tell(done: int, total: int, arch: str) -> None:
    print(f'{done} of {total} networks ({arch})', flush=True)


def summary(result: dict) -> str:
    """The outcome in two lines."""
    chosen, random, tau = result['chosen'], result['random'], result['kendall_tau']
    lines = [f'chosen: {chosen["arch"]}, {chosen["value"]:.2f}, rank {chosen["rank"]} of {chosen["networks"]}']
    if random['std'] is not None:
        lines.append(
            f'random: {random["mean"]:.2f} with a standard deviation of {random["std"]:.2f} (n = {random["count"]})'
        )
    if tau['tau'] is not None:
        lines.append(f"Kendall's tau of the supernet's {tau['estimate']}: {tau['tau']:.2f} (n = {tau['count']})")
    return '\n'.join(lines)


if __name__ == '__main__':
    raise SystemExit(main())
