"""RLNAS: a supernet trained on random labels, ranked by how far its weights turned (Zhang et al., CVPR 2021).

arXiv 2101.11834. Every image has one random class for the whole training; one uniform path is trained per step, as in
SPOS. A path's score is the angle between its initial weights V0 and its trained weights V, each as one vector:

    score(a) = arccos(<V0(a), V(a)> / (|V0(a)| |V(a)|)),   V(a): weights of stem, shortcuts, chosen blocks and head

Larger is better: architectures that converge faster, even on noise, move further. No label is read.
"""

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pinas_zoo.methods.alternating import enable_branches
from pinas_zoo.methods.base import SupervisedSettings
from pinas_zoo.methods.spos import SPOS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import Arch

__all__ = ['RLNAS', 'random_labels']

#: Multiplier of a well-known 32-bit integer hash.
MIX = 0x45D9F3B
WORD = 0xFFFFFFFF


def random_labels(index: Tensor, num_classes: int, seed: int) -> Tensor:
    """A uniform random class for each image number, always the same one for the same seed.

    A hash instead of a table, so that the number of images need not be known.

    Shape: (N,) -> (N,), long
    """
    x = (index.long() + (seed * 0x9E3779B1) % WORD) & WORD
    for _ in range(2):
        x = (((x >> 16) ^ x) * MIX) & WORD
    return ((x >> 16) ^ x) % num_classes


class RLNAS(SPOS):
    """SPOS on random labels, and the angle between initial and trained weights.

    The batch's 'label' is not read; its 'index' selects the random label. The vectors contain the weights of
    convolutions and linear layers, not biases and BN. `head` predicts random labels: to rank by accuracy, train another
    one on the frozen supernet.

    Args:
        supernet: The supernet; branches whose last BN starts at zero train too late to turn, so build it with
            ``zero_init_last=False``, or leave that to `wake`.
        num_classes: Number of random classes.
        wake: Set the last BN of every block to 1 at the start.
        **settings: As for `SupervisedMethod`.

    Examples:
        >>> method = RLNAS(SuperNet('pinas_nano'), num_classes=10)
        >>> method.score(method.paths(0)[0])  # nothing has moved
        0.0
    """

    initial: Tensor

    def __init__(
        self, supernet: SuperNet, num_classes: int, wake: bool = True, **settings: Unpack[SupervisedSettings]
    ) -> None:
        super().__init__(supernet, num_classes, **settings)
        if wake:
            enable_branches(supernet)
        # A copy of all weights at the start, part of every checkpoint.
        self.register_buffer('initial', torch.cat([w.detach().flatten() for w in self._weights().values()]))

    def _weights(self) -> dict[str, nn.Parameter]:
        """The weights that an angle may contain, by name: those of convolutions and linear layers."""
        return {name: p for name, p in self.named_parameters() if p.ndim > 1}

    def loss(self, batch: dict[str, Any], step: int, part: int = 0) -> dict[str, Tensor]:
        """Cross-entropy of the step's path with the random labels. Arguments and result as in `Method.loss`.

        Raises:
            ValueError: The batch does not say which images it contains.
        """
        if 'index' not in batch:
            raise ValueError(f"random labels belong to image numbers: the batch needs 'index', it has {sorted(batch)}")
        label = random_labels(batch['index'], self.head.out_features, self.seed).to(batch['image'].device)
        return super().loss(batch | {'label': label}, step, part)

    # ---- the angle -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def products(self) -> dict[tuple[int, int] | None, tuple[float, float, float]]:
        """<V0, V>, <V0, V0> and <V, V>: of each block by (position, candidate), by None of what is on every path."""
        weights = self._weights()
        starts = self.initial.split([w.numel() for w in weights.values()])
        table: dict[tuple[int, int] | None, list[Tensor]] = {}
        for (name, weight), start in zip(weights.items(), starts, strict=True):
            a, b = start.double(), weight.detach().flatten().double()
            found = torch.stack([a @ b, a @ a, b @ b])
            table.setdefault(_block_of(name), []).append(found)
        sums = {place: torch.stack(parts).sum(dim=0) for place, parts in table.items()}
        rows = torch.stack(list(sums.values())).tolist()  # one read from the device
        return {place: (row[0], row[1], row[2]) for place, row in zip(sums, rows, strict=True)}

    def score(self, arch: Arch) -> float | None:
        """The angle of a path in radians, in 0..pi."""
        table, chosen = self.products(), self.supernet.space.single(arch)
        places = [None, *enumerate(chosen)]
        dot, start, end = (sum(table[p][i] for p in places if p in table) for i in range(3))
        return math.acos(max(-1.0, min(1.0, dot / math.sqrt(start * end))))


def _block_of(name: str) -> tuple[int, int] | None:
    """(position, candidate) of a parameter of a block; None for stem, shortcuts and head."""
    parts = name.split('.')
    if 'candidates' not in parts:
        return None
    return int(parts[2]), int(parts[4])
