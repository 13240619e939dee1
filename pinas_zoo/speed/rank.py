"""Evaluation of many paths: with shared prefixes, and one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.search.evaluate import Evaluator, PathScore, PrefixTree
from pinas_zoo.search.strategies import mutate
from pinas_zoo.space import PINAS_NANO, Arch, SearchSpace
from pinas_zoo.speed.timing import Settings, alternate, compare, row

__all__ = ['measure', 'mutations']

Batches = list[tuple[Tensor, Tensor]]


class PathModule(nn.Module):
    """One path as a module with its head, as `update_bn` needs it."""

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
        found[mutate(space, origins[len(found) % parents], rng)] = None
    return list(found)


def measure(settings: Settings) -> dict[str, Any]:
    """Times of both ways on the same batches; at most 3 rounds after 1 warm-up, since they take long."""
    settings = replace(settings, rounds=min(settings.rounds, 3), warmups=min(settings.warmups, 1))
    batch, parents, count = (4, 2, 8) if settings.quick else (32, 8, 256)
    torch.manual_seed(settings.seed)
    supernet, side = SuperNet(PINAS_NANO, zero_init_last=False), PINAS_NANO.input_size
    head = nn.Linear(PINAS_NANO.num_features, 10)
    calibration = [torch.randn(batch, 3, side, side)]
    held = [(torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,)))]
    archs = mutations(PINAS_NANO, parents, count, settings.seed)
    scores: dict[str, list[PathScore]] = {}

    def shared(_: int) -> None:
        scores['shared'] = Evaluator(supernet, head, calibration, held)(archs)

    def alone(_: int) -> None:
        scores['alone'] = [evaluate_alone(supernet, head, arch, calibration, held) for arch in archs]

    times = alternate({'shared prefixes': shared, 'one by one': alone}, settings, 'rank')
    blocks = PrefixTree(supernet, archs).num_blocks / (count * PINAS_NANO.num_positions)
    ratio = compare(times['shared prefixes'], times['one by one'])
    apart = max(abs(a.loss - b.loss) for a, b in zip(scores['shared'], scores['alone'], strict=True))
    rows = [row(name, t) for name, t in times.items()]
    return {
        'settings': dict(
            space=PINAS_NANO.name, side=side, batch=batch, parents=parents, paths=count,
            rounds=settings.rounds, warmups=settings.warmups,
        ),
        'rows': [line | {'paths_per_second': count / line['seconds']} for line in rows],
        'ratios': {
            'time, shared / one by one': ratio,
            'blocks run, shared / one by one': dict(ratio=blocks),
            'time ratio / block ratio': {kind: value / blocks for kind, value in ratio.items()},
            'largest difference of a loss': dict(ratio=apart),
        },
    }  # fmt: skip
