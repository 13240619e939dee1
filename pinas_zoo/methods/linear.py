"""The linear stage in plain torch: a linear head on a frozen supernet, one uniform random path per step."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.methods.spos import SPOS
from pinas_zoo.models.supernet import Path, SuperNet
from pinas_zoo.space import Arch

__all__ = ['LinearHead', 'freeze']


class LinearHead(SPOS):
    """Trains the head of a supernet that does not change: one uniform random path per step, BN on batch statistics.

    `pinas_zoo.mm.classify.LinearStage` runs it under mmengine.

    The supernet is frozen in place: its parameters no longer require gradients, its BN layers no longer track
    statistics. Pass a copy if the supernet is trained further or evaluated.

    Args: see `SupervisedMethod`; labels are not smoothed by default.
    """

    def __init__(self, supernet: SuperNet, num_classes: int, label_smoothing: float = 0.0, seed: int = 0) -> None:
        super().__init__(freeze(supernet), num_classes, label_smoothing, seed)

    def features(self, images: Tensor, arch: Arch | Path) -> Tensor:
        with torch.no_grad():
            return super().features(images, arch)

    def units(self, step: int) -> float:
        """Path units of a step: one forward pass; the head itself is not counted."""
        return 1 / 3

    def param_groups(self) -> dict[str, list[Any]]:
        """The parameters of the head."""
        return {'weights': list(self.head.parameters())}


def freeze(supernet: SuperNet) -> SuperNet:
    """The supernet itself, with fixed parameters; BN uses batch statistics and does not update its buffers."""
    for module in supernet.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
    return supernet.requires_grad_(False)
