"""The tables of docs/cluster.md: bytes and times of a pre-training step, and a search shared by jobs, by arithmetic.

    python tools/dev/cluster_figures.py

Nothing here is measured except `STEP`. The formulas are in docs/cluster.md; tools/dev/make_tables.py fills the page.
"""

import math
import statistics
from collections.abc import Iterable, Sequence

import torch

from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet

RANKS = (8, 16, 32, 64, 128, 256, 512)
PER_NODE = 8
#: Of a step on one GPU: the paper's recipe in bf16, contiguous, from graphs (docs/gpu.md), in s; images per GPU.
STEP, IMAGES = 52.0e-3, 24
#: Bandwidths in bytes/s: within a node per GPU, and between nodes per node.
INSIDE, FAST, SLOW = 300e9, 400e9, 12.5e9
PIXELS, DIM, FLOAT = 3 * 224 * 224, 128, 4
#: Paths of a search, random ones, paths proposed at a time (configs/search/pinas-tree_1000_in1k.py).
BUDGET, INITIAL, BLOCK = 1000, 80, 8


def gradients(pairs: int = 100) -> tuple[float, float]:
    """Bytes of all gradients of the student, and the mean over path pairs of those that a step computes."""
    with torch.device('meta'):
        method = PiNAS(SuperNet('pinas'), dim=DIM, queue_length=49152)
    student = method.student
    whole = sum(parameter.numel() for parameter in student.parameters())
    active = [
        sum({id(p): p.numel() for arch in method.paths(step) for p in student.on_path(arch)}.values())
        for step in range(pairs)
    ]
    return FLOAT * whole, FLOAT * statistics.mean(active)


def all_reduce(size: float, ranks: int, network: float) -> float:
    """Seconds of a ring over all GPUs whose slowest link is a node's network."""
    slowest = INSIDE if ranks <= PER_NODE else min(INSIDE, network)
    return 2 * (ranks - 1) / ranks * size / slowest


def shuffle(ranks: int) -> tuple[float, float]:
    """Bytes that a GPU receives for the keys' images of both paths: gathered, as released, and exchanged."""
    rows = 2 * IMAGES * PIXELS * FLOAT
    return (ranks - 1) * rows, (ranks - 1) / ranks * rows


def shuffle_time(ranks: int, network: float, gathered: bool) -> float:
    """Seconds of that: a ring passes every row through each link once; an exchange sends a GPU's rows to others."""
    received, exchanged = shuffle(ranks)
    if ranks <= PER_NODE:
        return (received if gathered else exchanged) / INSIDE
    if gathered:
        return received / min(INSIDE, network)
    return PER_NODE * exchanged * (ranks - PER_NODE) / (ranks - 1) / network


def step_time(size: float, ranks: int, network: float, overlapped: bool, gathered: bool = False) -> float:
    """Seconds of a step; an overlapped all-reduce hides behind the backward pass, taken as half of the step."""
    reducing = all_reduce(size, ranks, network)
    if overlapped:
        reducing = max(0.0, reducing - STEP / 2)
    return STEP + reducing + shuffle_time(ranks, network, gathered)


def search_speedup(jobs: int) -> float:
    """How many times faster than one job: a block ends with its slowest job, and the next one needs its results."""
    waves = math.ceil(INITIAL / jobs) + (BUDGET - INITIAL) / BLOCK * math.ceil(BLOCK / jobs)
    return BUDGET / waves


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return ''.join('| ' + ' | '.join(map(str, line)) + ' |\n' for line in lines)


def table() -> str:
    """Both tables in Markdown."""
    whole, active = gradients()
    bytes_header = ['GPUs', 'images per step', 'gradients: all', 'active', 'key images: gathered', 'exchanged', 'keys']
    bytes_rows = [
        [
            ranks,
            IMAGES * ranks,
            f'{2 * (ranks - 1) / ranks * whole / 1e6:.0f}',
            f'{2 * (ranks - 1) / ranks * active / 1e6:.0f}',
            f'{shuffle(ranks)[0] / 1e6:,.0f}',
            f'{shuffle(ranks)[1] / 1e6:.1f}',
            f'{3 * (ranks - 1) * IMAGES * DIM * FLOAT / 1e6:.2f}',
        ]
        for ranks in RANKS
    ]
    ways = ['as released', "'all'", "'active'"]
    columns = [f'{n} GB/s: {way}' for n in ('400', '12.5') for way in ways]
    time_header = ['GPUs', *columns, 'images/s at 400', 'at 12.5']
    time_rows = []
    for ranks in RANKS:
        times = [
            step_time(size, ranks, network, overlapped, gathered) * 1e3
            for network in (FAST, SLOW)
            for size, overlapped, gathered in ((whole, True, True), (whole, True, False), (active, False, False))
        ]
        best = [IMAGES * ranks / min(times[part]) * 1e3 for part in (slice(1, 3), slice(4, 6))]
        time_rows.append([ranks, *(f'{time:,.0f}' for time in times), *(f'{images:,.0f}' for images in best)])
    jobs = (1, 2, 4, 8, 16, 64)
    searches = markdown(['jobs', *map(str, jobs)], [['times as fast', *(f'{search_speedup(n):.1f}' for n in jobs)]])
    parts = (
        f'MB per GPU and step; of {whole / 1e6:.1f} MB of gradients {active / 1e6:.1f} MB are active (mean):\n\n',
        markdown(bytes_header, bytes_rows),
        '\nMilliseconds of a step by the bandwidth of a node:\n\n',
        markdown(time_header, time_rows),
        f'\nA search of {BUDGET} paths, {INITIAL} random ones, then blocks of {BLOCK}, by several jobs:\n\n',
        searches,
    )
    return ''.join(parts)


if __name__ == '__main__':
    print(table(), end='')
