"""Evaluate frozen features: kNN and linear probes of networks and of paths of a supernet, with all and few labels.

    pinas probe pinas_nano_a.fmnist resnet18 --data fashion-mnist
    pinas probe work_dirs/pretrain --paths 8 --data data/imagenet --json probes.json
    pinas probe backbone.safetensors --train kind=folder root=train --test kind=folder root=val

A NETWORK is a timm name, a weight file or name (pinas download --list), or the work_dir of a training. Of a supernet,
paths are probed, their BN re-estimated. Features are extracted once per network. Top-1 in percent with its 95 %
interval: Wilson's for all labels, a bootstrap over draws and test images for a share of them.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pinas_cli.options import UsageError, errors_as_line

#: Sets that are known by name; each has a train and a test split.
NAMED = ('fashion-mnist', 'digits', 'cifar10', 'cifar100')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas probe`."""
    parser.add_argument('networks', nargs='+', metavar='NETWORK', help='timm names, weight files or names, work dirs')
    parser.add_argument(
        '--data', help=f'one of {", ".join(NAMED)}, or a folder with the class folders in train/ and val/ or test/'
    )
    for split in ('train', 'test'):
        parser.add_argument(
            f'--{split}', nargs='+', metavar='KEY=VALUE', help=f'{split} images as a source (docs/data.md), not --data'
        )
        parser.add_argument(f'--{split}-limit', type=int, help=f'number of {split} images, drawn by the seed')
    parser.add_argument(
        '--probes', nargs='+', choices=('knn', 'linear'), default=['knn', 'linear'], help='default both'
    )
    parser.add_argument('--k', type=int, default=20, help='neighbours; default 20')
    parser.add_argument(
        '--shares', nargs='*', type=float, default=[0.01, 0.1], help='shares of the labels; default 0.01 0.1'
    )
    parser.add_argument('--draws', type=int, default=5, help='draws of labelled images per share; default 5')
    parser.add_argument('--arch', nargs='+', default=[], help='paths of a supernet; default: drawn ones')
    parser.add_argument('--paths', type=int, default=4, help='number of paths that are drawn; default 4')
    parser.add_argument('--space', help='space of a supernet; default: found by its shapes')
    parser.add_argument('--calibration', type=int, default=2000, help='images for the BN of a path; default 2000')
    parser.add_argument('--random', action='store_true', help='timm names get random weights, for comparison')
    parser.add_argument('--size', type=int, help="side in px; default: the network's own")
    parser.add_argument('--seed', type=int, default=0, help='seed of paths, labels and limits; default 0')
    parser.add_argument('--batch-size', type=int, default=250, help='default 250')
    parser.add_argument('--workers', type=int, default=0, help='processes that decode images; default 0')
    parser.add_argument('--device', default='cpu', help='such as cuda:0; default cpu')
    parser.add_argument('--json', type=Path, help='file for the results')


def _sources(args: argparse.Namespace) -> list[dict[str, Any]]:
    from pinas_cli.options import overrides

    if args.data is None:
        if args.train is None or args.test is None:
            raise UsageError('give --data, or both --train and --test')
        specs = [overrides(args.train), overrides(args.test)]
    elif args.train is not None or args.test is not None:
        raise UsageError('give either --data, or --train and --test')
    elif args.data in NAMED:
        specs = [{'kind': args.data, 'split': split} for split in ('train', 'test')]
    else:
        root = Path(args.data)
        tests = [name for name in ('test', 'val') if (root / name).is_dir()]
        if not (root / 'train').is_dir() or len(tests) != 1:
            raise UsageError(
                f'--data {root} must be one of {", ".join(NAMED)}, or a folder with train/ and one of val/ and test/'
            )
        specs = [{'kind': 'folder', 'root': str(root / name)} for name in ('train', tests[0])]
    for spec, limit in zip(specs, (args.train_limit, args.test_limit), strict=True):
        spec.update({} if limit is None else {'limit': limit, 'seed': args.seed})
    return specs


def run(args: argparse.Namespace) -> int:
    """Probes."""
    train, test = _sources(args)
    with errors_as_line(ValueError, OSError, ImportError, RuntimeError):
        import torch

        from pinas_zoo.files import write_text
        from pinas_zoo.probes.probe import Images, Settings, probe, table
        from pinas_zoo.probes.targets import Paths, open_targets

        settings = Settings(tuple(args.probes), args.k, shares=tuple(args.shares), draws=args.draws, seed=args.seed)
        images = Images(train, test, args.batch_size, args.device, args.workers, args.size)
        paths = Paths(args.arch, args.paths, args.seed, args.space)
        results = []
        for name in args.networks:
            for target in open_targets(
                name, paths, lambda view: images.calibration(view, args.calibration, args.seed), not args.random
            ):
                results.append(probe(target, images, settings))
                print(f'{target.name}: {results[-1].seconds} s', file=sys.stderr, flush=True)
        print(table(results))
        if args.json:
            data = {'train': images.train.description, 'test': images.test.description}
            facts = {'data': data, 'settings': vars(settings), 'torch': torch.__version__, 'device': args.device}
            text = json.dumps({**facts, 'networks': [result.record() for result in results]}, indent=1, default=list)
            write_text(args.json, text + '\n')
    return 0
