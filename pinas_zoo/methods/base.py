"""What a training loop needs of a method, and what the supervised methods share. torch only.

The loops use Pi-NAS (`pinas_zoo.methods.pinas`) and its peers only through the members of `Method`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinas_zoo.models.graphs import BlockGraphs
from pinas_zoo.models.recorder import Recorder
from pinas_zoo.models.supernet import Path, SuperNet
from pinas_zoo.search.limits import Limits
from pinas_zoo.space import Arch

__all__ = [
    'ArchitectureMethod',
    'Method',
    'SupervisedMethod',
    'SupervisedSettings',
    'decay_groups',
    'restrict_gradient',
    'top1_percent',
]


@runtime_checkable
class Method(Protocol):
    """A way to train a supernet: an `nn.Module` with these members.

    A step is `parts(step)` forward and backward passes on one batch, then one step of every optimiser. The loop passes
    in the index of the step, so that a method draws what it needs from (seed, step) and keeps no count itself.
    """

    if TYPE_CHECKING:  # a submodule, which isinstance() does not find since Python 3.12

        @property
        def supernet(self) -> SuperNet:
            """What is trained, and ranked afterwards."""
            ...

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The paths of a step."""
        ...

    def units(self, step: int) -> float:
        """What a step costs, in path units: a path forward and backward on one batch is 1, a forward pass alone 1/3."""
        ...

    def log_scalars(self, step: int) -> dict[str, float]:
        """Numbers that are too expensive for every step; computed when a line is logged."""
        ...

    def parts(self, step: int) -> int:
        """Backward passes of a step."""
        ...

    def loss(self, batch: dict[str, Any], step: int, part: int = 0) -> dict[str, Tensor]:
        """One forward pass.

        Args:
            batch: 'views' (N, 4, C, H, W) for Pi-NAS, 'image' (N, C, H, W) and 'label' (N,) for supervised methods;
                sources add 'index', 'name' and 'broken'.
            step: Index of the optimiser step.
            part: Index of the pass within the step; with gradient accumulation it keeps counting, so it is taken
                modulo `parts(step)` where its meaning repeats.

        Returns:
            'loss', to be differentiated: the loop sums the gradients of all parts. Everything else is logged, as the
            mean over the parts; no other name may contain 'loss', since mmengine would add it.
        """
        ...

    def param_groups(self) -> dict[str, list[Any]]:
        """The parameters, or torch's parameter groups, of each optimiser by name; one of them is 'weights'.

        Parameters that are not trained are in none. Architecture parameters form their own group, 'arch'.
        """
        ...

    def score(self, arch: Arch) -> float | None:
        """The method's native score of an architecture, higher is better; None where it ranks by accuracy alone."""
        ...


@runtime_checkable
class ArchitectureMethod(Method, Protocol):
    """A method whose training itself selects an architecture."""

    def derive(self, limits: Limits | None = None) -> Arch:
        """The selected architecture, within the limits."""
        ...


class SupervisedSettings(TypedDict, total=False):
    """Settings that the constructors of supervised methods pass on to `SupervisedMethod`."""

    label_smoothing: float
    seed: int


class SupervisedMethod(nn.Module):
    """Base of the methods that train a supernet with labels: the supernet, a linear head, cross-entropy on a path.

    Subclasses define `paths`; the default is one path and one backward pass per step.

    Args:
        supernet: The supernet.
        num_classes: Classes of the head.
        label_smoothing: Share of the target that is spread over the classes, in 0..1.
        seed: Everything random is drawn from (seed, step): equal on all ranks, also after an interruption.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, supernet: SuperNet, num_classes: int, label_smoothing: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        if num_classes < 1 or not 0 <= label_smoothing <= 1 or seed < 0:
            raise ValueError(
                f'allowed: num_classes >= 1, label_smoothing in 0..1, seed >= 0; got {num_classes=}, '
                f'{label_smoothing=}, {seed=}'
            )
        self.supernet = supernet
        self.head = nn.Linear(supernet.space.num_features, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.label_smoothing, self.seed = label_smoothing, seed
        self.graphs: BlockGraphs | None = None

    def use_graphs(self, recorder: Recorder, log: Callable[[str], None]) -> None:
        """Trains from captured blocks where possible, see `BlockGraphs`; the results do not change.

        Args:
            recorder: Captures the graphs, `CudaRecorder()`.
            log: Called with one line of text at a time.
        """
        self.graphs = BlockGraphs(self.supernet, None, recorder, log)

    def rng(self, *place: int) -> np.random.Generator:
        """The generator of a key such as (step,) or (step, part)."""
        return np.random.default_rng([self.seed, *place])

    def features(self, images: Tensor, arch: Arch | Path) -> Tensor:
        """Pooled features of one path. Shape: (N, C, H, W) -> (N, num_features)"""
        if isinstance(arch, Path):
            return arch(images).mean((2, 3))
        graphs = self.graphs
        run = self.supernet if graphs is None or not graphs.accepts(images, arch) else graphs
        return run(images, arch).mean((2, 3))

    def logits(self, images: Tensor, arch: Arch | Path) -> Tensor:
        """Class scores of one path. Shape: (N, C, H, W) -> (N, num_classes)"""
        logits = self.head(self.features(images, arch))
        # Half types lack the precision for a loss.
        return logits if logits.dtype == torch.float64 else logits.float()

    def path_loss(self, batch: dict[str, Any], arch: Arch | Path) -> dict[str, Tensor]:
        """'loss', the cross-entropy of one path on a batch, and its 'top1' accuracy in percent."""
        logits, label = self.logits(batch['image'], arch), batch['label']
        loss = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        return {'loss': loss, 'top1': top1_percent(logits, label)}

    # ---- the interface of a method --------------------------------------------------------------

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The paths of a step."""
        raise NotImplementedError(f'{type(self).__name__} does not define its paths')

    def parts(self, step: int) -> int:
        """Backward passes in a step."""
        return 1

    def log_scalars(self, step: int) -> dict[str, float]:
        """None."""
        return {}

    def units(self, step: int) -> float:
        """Path units of a step, one per part."""
        return float(self.parts(step))

    def loss(self, batch: dict[str, Any], step: int, part: int = 0) -> dict[str, Tensor]:
        """Cross-entropy of the step's path. Arguments and result as in `Method.loss`."""
        (arch,) = self.paths(step)
        return self.path_loss(batch, arch)

    def param_groups(self) -> dict[str, list[Any]]:
        """All weights; those of one dimension (BN, biases) without weight decay."""
        return {'weights': decay_groups(self.parameters())}

    def score(self, arch: Arch) -> float | None:
        """No native score."""
        return None


def top1_percent(logits: Tensor, label: Tensor) -> Tensor:
    """Accuracy in percent, without gradient. Shape: (N, classes), (N,) -> ()"""
    return (logits.detach().argmax(dim=1) == label).float().mean() * 100


def decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Two groups for an optimiser: what may decay, and the parameters of BN and biases, which may not."""
    parameters = list(parameters)
    kept = [p for p in parameters if p.ndim <= 1]
    return [{'params': [p for p in parameters if p.ndim > 1]}, {'params': kept, 'weight_decay': 0.0}]


def restrict_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """A loss of the same value whose backward pass reaches only these parameters.

    Where one part of a step trains the weights and another the architecture, the second must not leave gradients in
    the weights. Over several ranks the gradients are averaged as usual.

    Args:
        loss: Scalar loss with its graph.
        parameters: Parameters that the loss depends on.
    """
    gradients = torch.autograd.grad(loss, parameters)
    inner = cast(Tensor, sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True)))
    return loss.detach() + inner - inner.detach()
