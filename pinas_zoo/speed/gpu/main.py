"""The parts of the GPU check in their order, and the function that runs it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pinas_zoo.speed.gpu.dense import dense
from pinas_zoo.speed.gpu.evaluating import inference, paths, precision
from pinas_zoo.speed.gpu.loaders import loading
from pinas_zoo.speed.gpu.programs import programs
from pinas_zoo.speed.gpu.right import amp, graphs, host_syncs, parity
from pinas_zoo.speed.gpu.session import Part, Session
from pinas_zoo.speed.gpu.steps import autotune, batches, compiled, compiled_step, profile, step

__all__ = ['PARTS', 'check']

#: In the order of a run: correctness first, then the step, then the rest; the slowest last.
PARTS = (
    Part(parity, 25),
    Part(graphs, 75),
    Part(host_syncs, 25),
    Part(step, 90),
    Part(profile, 30),
    Part(programs, 150),
    Part(amp, 30),
    Part(batches, 60),
    Part(precision, 30),
    Part(inference, 45),
    Part(paths, 30),
    Part(loading, 40),
    Part(dense, 80),
    Part(autotune, 90),
    Part(compiled, 120),
    Part(compiled_step, 600),
)


def check(out: Path, budget: float, only: Sequence[str] = (), device: str = 'cuda', tiny: bool = False) -> int:
    """Runs the check; returns 0 if no part failed.

    Args:
        out: Folder of results.json, written after every part.
        budget: Seconds in total; parts that do not fit are left out.
        only: Names of parts; an empty list means all of them, in the order of `PARTS`.
        device: 'cuda', or 'cpu' for a rehearsal.
        tiny: Use tiny sizes, to see that every part runs.

    Raises:
        ValueError: An unknown part, or no CUDA device.
    """
    by_name = {part.name: part for part in PARTS}
    if unknown := [name for name in only if name not in by_name]:
        raise ValueError(f'--only got {unknown}, allowed: {", ".join(by_name)}')
    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('torch sees no CUDA device; use --device cpu --tiny for a rehearsal')
    out.mkdir(parents=True, exist_ok=True)
    session = Session(torch.device(device), tiny, out, budget)
    passed = session.run([by_name[name] for name in only or by_name])
    print(table(session), flush=True)
    print(f'written: {out / "results.json"}')
    return int(not passed)


def table(session: Session) -> str:
    """One line per part: its result."""
    lines = []
    for name, part in session.results['parts'].items():
        state = next((f'{k.replace("_", " ")}: {part[k]}' for k in ('error', 'left_out') if k in part), 'done')
        lines.append(f'{name:12}{part["seconds"]:7.1f} s  {state}')
    return '\n'.join(lines)
