"""Evaluation of many paths: with shared prefixes, and one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks.timing import Settings, alternate, compare, row
from pinas_zoo.rank import Evaluator, PathScore, PrefixTree
from pinas_zoo.space import Arch, SearchSpace, get_space
from pinas_zoo.supernet import SuperNet

__all__ = ['measure', 'mutations']

Batches = list[tuple[Tensor, Tensor]]


class PathModule(nn.Module):
    """One path as a module with its head: what `update_bn` wants."""

    def __init__(self, supernet: SuperNet, arch: Arch, head: nn.Module) -> None:
        super().__init__()
        self.path = supernet.path(arch)
        self.parts, self.head = nn.ModuleList(self.path.children()), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.path(x).mean((2, 3)))


@torch.no_grad()
def evaluate_alone(
    supernet: SuperNet, head: nn.Module, arch: Arch, calibration: list[Tensor], held: Batches
) -> PathScore:
    """Re-estimates one path's BN statistics and scores it."""
    module = PathModule(supernet, arch, head)
    update_bn(calibration, module)
    module.eval()
    outputs = [(module(images), labels) for images, labels in held]
    hits = sum(int((logits.argmax(dim=1) == labels).sum()) for logits, labels in outputs)
    loss = sum(float(F.cross_entropy(logits.double(), labels, reduction='sum')) for logits, labels in outputs)
    count = sum(len(labels) for _, labels in held)
    return PathScore(arch, 100 * hits / count, loss / count, count)


def mutations(space: SearchSpace, parents: int, count: int, seed: int) -> list[Arch]:
    """Distinct mutations of random parents, in turn."""
    rng = np.random.default_rng(seed)
    origins, found = [space.sample(rng) for _ in range(parents)], dict[Arch, None]()
    while len(found) < count:
        found[space.mutate(origins[len(found) % parents], rng)] = None
    return list(found)


def measure(settings: Settings) -> dict[str, Any]:
    """Times of both ways on a small space and on the paper's, with the same batches.

    At most 3 rounds after 1 warm-up: they are long.
    """
    settings = replace(settings, rounds=min(settings.rounds, 3), warmups=min(settings.warmups, 1))
    if settings.quick:
        cases = [dict(space='pinas_nano', side=28, batch=4, batches=1, parents=2, paths=8)]
    else:
        cases = [
            dict(space='pinas_nano', side=28, batch=32, batches=1, parents=8, paths=256),
            dict(space='pinas', side=64, batch=4, batches=1, parents=8, paths=256),
        ]
    parts = [_measure_case(settings, **case) for case in cases]
    return {
        'settings': dict(cases=cases, rounds=settings.rounds, warmups=settings.warmups),
        'rows': [line for part in parts for line in part['rows']],
        'ratios': {name: ratio for part in parts for name, ratio in part['ratios'].items()},
    }


def _measure_case(
    settings: Settings, space: str, side: int, batch: int, batches: int, parents: int, paths: int
) -> dict[str, Any]:
    torch.manual_seed(settings.seed)
    supernet, skeleton = SuperNet(space, zero_init_last=False), get_space(space)
    head = nn.Linear(skeleton.num_features, 10)
    calibration = [torch.randn(batch, 3, side, side) for _ in range(batches)]
    held = [(torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,))) for _ in range(batches)]
    archs = mutations(skeleton, parents, paths, settings.seed)
    scores: dict[str, list[PathScore]] = {}

    def shared(_: int) -> None:
        scores['shared'] = Evaluator(supernet, head, calibration, held)(archs)

    def alone(_: int) -> None:
        scores['alone'] = [evaluate_alone(supernet, head, arch, calibration, held) for arch in archs]

    names = f'{space}, shared prefixes', f'{space}, one by one'
    times = alternate(dict(zip(names, (shared, alone), strict=True)), settings, 'rank')
    blocks = PrefixTree(supernet, archs).num_blocks / (len(archs) * skeleton.num_positions)
    ratio = compare(times[names[0]], times[names[1]])
    apart = max(abs(a.loss - b.loss) for a, b in zip(scores['shared'], scores['alone'], strict=True))
    return {
        'rows': [row(name, t) | {'paths_per_second': paths / row(name, t)['seconds']} for name, t in times.items()],
        'ratios': {
            f'{space}, shared / one by one': ratio,
            f'{space}, blocks run, shared / one by one': dict(ratio=blocks),
            f'{space}, time ratio / block ratio': {kind: value / blocks for kind, value in ratio.items()},
            f'{space}, largest difference of a loss': dict(ratio=apart),
        },
    }
