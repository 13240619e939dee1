"""`pinas rank proxies`: training-free scores of the truth's paths, or of any paths of any space."""

from __future__ import annotations

import argparse
from pathlib import Path

from pinas_cli.options import add_part, errors_as_line
from pinas_cli.rank_truth import add_instrument, instrument_of


def add_proxies(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand."""
    parser = add_part(commands, 'proxies', 'training-free scores: AZ-NAS, synflow, NASWOT; resumes')
    add_instrument(parser)
    parser.add_argument('--seeds', type=int, default=5, help='initialisations; default 5')
    parser.add_argument('--file', type=Path, help='the table; default proxies.jsonl beside the truth')
    parser.add_argument('--space', default='pinas', help='with --arch: name of the space; default pinas')
    parser.add_argument('--arch', nargs='+', metavar='ARCH', help='instead, print the scores of these paths')
    parser.add_argument('--size', type=int, help="with --arch: side of the input in px; default the space's")
    parser.set_defaults(run_part=run_proxies, prog=parser.prog)


def run_proxies(args: argparse.Namespace) -> int:
    """Scores paths without training."""
    from pinas_zoo.ranking.proxies import extend_proxies
    from pinas_zoo.ranking.truth import read_truth

    if args.arch:
        return print_scores(args)
    file = instrument_of(args).truth
    extend_proxies(args.file or file.with_name('proxies.jsonl'), read_truth(file), args.seeds, progress=print)
    return 0


def print_scores(args: argparse.Namespace) -> int:
    """Prints a table of the given paths, averaged over the initialisations; inputs are random numbers."""
    import numpy as np
    import torch

    from pinas_zoo.ranking.proxies import PROXIES, proxy_scores
    from pinas_zoo.space import get_space

    with errors_as_line(ValueError):
        space = get_space(args.space)
        archs = [space.single(arch) for arch in args.arch]
    size = args.size or space.input_size
    images = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    runs = [proxy_scores(space, archs, images, 1000, seed) for seed in range(args.seeds)]
    print('path', *PROXIES.values(), sep='\t')
    for number, arch in enumerate(archs):
        values = [float(np.mean([run[name][number] for run in runs])) for name in PROXIES]
        print(space.format(arch), *(f'{value:.3f}' for value in values), sep='\t')
    return 0
