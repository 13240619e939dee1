"""Measure a latency table of a search space on this device: blocks alone, checked against whole networks.

    pinas latency pinas_nano --batch 1 --out work_dirs/latency.json
    pinas latency configs/search/pinas-tree_1000_in1k.py --device cuda --batch 64 --precision float16 --out gpu.json

A search's config limits by it, in seconds: limits=dict(max_latency=0.004, latency_table='work_dirs/latency.json').
"""

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

from pinas_cli.machine import cores, cpu_model
from pinas_cli.options import config_path, errors_as_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas latency`."""
    parser.add_argument('space', help='name of a space, or config of a search')
    parser.add_argument('--out', type=Path, required=True, help='JSON file to write')
    parser.add_argument('--batch', type=int, default=1, help='images per call; default 1')
    parser.add_argument('--size', type=int, nargs='+', help="side, or height and width, in px; default: the space's")
    parser.add_argument('--classes', type=int, default=1000, help='classes of the linear layer; default 1000')
    parser.add_argument('--device', default='cpu', help='device; default cpu')
    parser.add_argument(
        '--precision', choices=('float32', 'bfloat16', 'float16'), default='float32', help='default float32'
    )
    parser.add_argument('--contiguous', action='store_true', help='contiguous instead of channels-last tensors')
    parser.add_argument(
        '--processor-time',
        action='store_true',
        help='count processor time instead of wall time: on a CPU that other programs use, with one thread',
    )
    parser.add_argument('--threads', type=int, default=cores(), help="torch's threads; default: all cores")
    parser.add_argument('--checks', type=int, default=20, help='random whole networks to compare with; default 20')
    parser.add_argument('--seconds', type=float, default=0.2, help='minimum time per measurement; default 0.2')
    parser.add_argument('--seed', type=int, default=0, help='seed of the whole networks; default 0')


def run(args: argparse.Namespace) -> int:
    """Measures, writes and prints."""
    import torch

    from pinas_zoo.models.latency import measure_table
    from pinas_zoo.models.supernet import SuperNet

    with errors_as_line(ValueError, OSError, RuntimeError):
        torch.set_num_threads(args.threads)
        cuda = args.device.startswith('cuda')
        name = torch.cuda.get_device_name(args.device) if cuda else cpu_model() or platform.machine()
        supernet = SuperNet(_space(args.space)).to(args.device)
        if args.size is not None and len(args.size) > 2:
            raise ValueError(f'--size takes a side, or height and width; got {args.size}')
        table = measure_table(
            supernet,
            name,
            args.batch,
            None if args.size is None else (args.size[0], args.size[-1]),
            args.classes,
            args.precision,
            not args.contiguous,
            args.checks,
            args.seconds,
            args.seed,
            'processor' if args.processor_time else 'wall',
            lambda line: print(line, file=sys.stderr, flush=True),
        )
        table.save(args.out)
    print('position  candidates: median ms (quartiles)')
    for part, one in table.fixed.items():
        print(f'{part:>8}  {one}')
    for position, row in enumerate(table.table):
        print(f'{position:>8}  ' + '  '.join('-' if one is None else str(one) for one in row))
    if table.checks:
        errors = table.errors()
        print(
            f'sums against {len(table.checks)} whole networks: median error {errors["median"]:.1%}, worst '
            f'{errors["worst"]:.1%}, Kendall tau {errors["tau"]:.2f}'
        )
    print(f'written: {args.out}')
    return 0


def _space(name: str) -> str | dict[str, Any]:
    """A name, or the space of a search's config."""
    if not name.endswith('.py'):
        return name
    from mmengine.config import Config

    space = Config.fromfile(config_path(name)).space
    return space if isinstance(space, str) else dict(space)
