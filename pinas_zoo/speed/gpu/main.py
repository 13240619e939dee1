"""The command line of the GPU check."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from pinas_zoo.speed.gpu.dense import dense
from pinas_zoo.speed.gpu.evaluating import inference, paths, precision
from pinas_zoo.speed.gpu.loaders import loading
from pinas_zoo.speed.gpu.programs import programs
from pinas_zoo.speed.gpu.right import amp, graphs, host_syncs, parity
from pinas_zoo.speed.gpu.session import Part, Session
from pinas_zoo.speed.gpu.steps import autotune, batches, compiled, step

__all__ = ['PARTS', 'main']

#: In the order of a run: what is right, then the step, then the rest; the slowest last.
PARTS = (
    Part(parity, 25),
    Part(graphs, 60),
    Part(host_syncs, 25),
    Part(step, 90),
    Part(programs, 110),
    Part(amp, 30),
    Part(batches, 30),
    Part(precision, 30),
    Part(inference, 45),
    Part(paths, 30),
    Part(loading, 40),
    Part(dense, 80),
    Part(autotune, 90),
    Part(compiled, 120),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the check; 0 where no part failed."""
    parser = argparse.ArgumentParser(prog='pinas benchmark gpu', description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu'), help='folder of results.json')
    parser.add_argument('--budget', type=float, default=440, help='seconds in all; what does not fit is left out')
    parser.add_argument('--only', default=','.join(names), help=f'parts in this order, of {", ".join(names)}')
    parser.add_argument('--device', default='cuda', choices=('cuda', 'cpu'), help='cpu is a rehearsal')
    parser.add_argument('--tiny', action='store_true', help='tiny sizes, to see that every part runs')
    args = parser.parse_args(argv)
    wanted = args.only.split(',')
    if unknown := [name for name in wanted if name not in names]:
        parser.error(f'--only got {unknown}, allowed: {", ".join(names)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch sees no CUDA device; --device cpu --tiny is a rehearsal')
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(torch.device(args.device), args.tiny, args.out, args.budget)
    by_name = {part.name: part for part in PARTS}
    passed = session.run([by_name[name] for name in wanted])
    print(table(session), flush=True)
    print(f'written: {args.out / "results.json"}')
    return int(not passed)


def table(session: Session) -> str:
    """One line a part: how it went."""
    lines = []
    for name, part in session.results['parts'].items():
        state = next((f'{k.replace("_", " ")}: {part[k]}' for k in ('error', 'left_out') if k in part), 'done')
        lines.append(f'{name:12}{part["seconds"]:7.1f} s  {state}')
    return '\n'.join(lines)
