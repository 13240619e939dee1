"""What networks cost, and learning curves of runs.

    pinas analyze model pinas_a pinas_b resnet50 --json costs.json
    pinas analyze model configs/coco/mask-rcnn_pinas-b_fpn_1x_coco.py --size 800 1344 --no-latency
    pinas analyze curves work_dirs/run-a work_dirs/run-b --keys 'loss*' coco/bbox_mAP --out curves.png

MACs count convolutions and linear layers only. docs/tools.md has examples of both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pinas_cli.options import add_cfg_options, add_part, config_path, errors_as_line, overrides


def run_model(args: argparse.Namespace) -> None:
    """Counts and times."""
    import torch

    from pinas_zoo.files import write_text
    from pinas_zoo.mm.inference.analyze import Timing, analyze, table  # curves need no mmcv

    if args.checkpoint and len(args.models) > 1:
        raise ValueError(f'--checkpoint needs exactly one model, got {len(args.models)}')
    timing = None if args.no_latency else Timing(args.warmup, args.seconds, args.batch_size)
    rows, changes = [], overrides(args.cfg_options)
    for number, name in enumerate(args.models, start=1):
        print(f'[{number}/{len(args.models)}] {name}', file=sys.stderr, flush=True)
        rows.append(analyze(config_path(name), args.size, args.device, timing, args.checkpoint, changes))
    machine = {'device': args.device, 'threads': torch.get_num_threads(), 'torch': torch.__version__}
    if args.device.startswith('cuda'):
        machine['gpu'] = torch.cuda.get_device_name(args.device)
    print(table(rows))
    if timing is not None:
        where = ', '.join(f'{key} {value}' for key, value in machine.items())
        print(f'latency: median ± half the distance of the quartiles; {where}')
    if args.json:
        text = json.dumps({**machine, 'models': [row.record() for row in rows]}, indent=1) + '\n'
        write_text(args.json, text)


def run_curves(args: argparse.Namespace) -> None:
    """Draws."""
    from pinas_zoo.files import write_atomic
    from pinas_zoo.report.curves import choose_keys, draw_curves, read_run

    if args.names and len(args.names) != len(args.logs):
        raise ValueError(f'--names has {len(args.names)} names for {len(args.logs)} logs')
    runs = [read_run(log, name) for log, name in zip(args.logs, args.names or [None] * len(args.logs), strict=True)]
    if args.list:
        print('\n'.join(sorted({key for run in runs for key in run.scalars})))
        return
    keys = choose_keys(runs, args.keys)
    picture = draw_curves(runs, keys, args.smooth, args.title)
    write_atomic(args.out, lambda path: path.write_bytes(picture))
    print(f'{args.out}: {len(keys)} panels of {len(runs)} runs: {", ".join(keys)}')


def _add_model_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(commands, 'model', 'parameters, MACs and latency')
    parser.add_argument('models', nargs='+', help='timm names (ours included) and config files')
    parser.add_argument('--size', type=int, nargs='+', help="side, or height and width, in px; default: the model's")
    parser.add_argument('--checkpoint', help='weights of the one model; a detector is timed on what it finds')
    add_cfg_options(parser)
    parser.add_argument('--batch-size', type=int, default=1, help='images per call, for the latency; default 1')
    parser.add_argument('--device', default='cpu', help='device for the timing; default cpu')
    parser.add_argument('--warmup', type=int, default=3, help='calls before the measurement; default 3')
    parser.add_argument('--seconds', type=float, default=2.0, help='minimum measuring time; default 2')
    parser.add_argument('--no-latency', action='store_true', help='count only')
    parser.add_argument('--json', type=Path, help='file for the same figures')
    parser.set_defaults(run_part=run_model, prog=parser.prog)


def _add_curves_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_part(commands, 'curves', 'learning curves of several runs in one PNG, one panel per key')
    parser.add_argument('logs', nargs='+', type=Path, help='work dirs, or files of JSON lines (vis_data/scalars.json)')
    parser.add_argument('--keys', nargs='+', help="names or patterns such as 'loss*'; default: all but times and rates")
    parser.add_argument('--names', nargs='+', help='names of the runs, for the legend; default: their work dirs')
    parser.add_argument(
        '--smooth', type=int, default=9, help='width of the mean, in points; 1 draws raw values; default 9'
    )
    parser.add_argument('--title', default='', help='text above the picture')
    parser.add_argument('--out', type=Path, default=Path('curves.png'), help='default curves.png')
    parser.add_argument('--list', action='store_true', help='only print the keys')
    parser.set_defaults(run_part=run_curves, prog=parser.prog)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands of `pinas analyze`."""
    commands = parser.add_subparsers(dest='part', required=True, metavar='model|curves')
    _add_model_parser(commands)
    _add_curves_parser(commands)


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand."""
    with errors_as_line(ValueError, OSError, ImportError, RuntimeError):
        args.run_part(args)
    return 0
