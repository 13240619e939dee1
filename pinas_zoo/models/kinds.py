"""Kinds of blocks: what a block is to the networks, and the builders by kind of candidate.

A further kind is a frozen dataclass derived from `CandidateKind`, a module derived from `Block`, and a function that
builds one from the other, registered with `register_builder`; docs/spaces.md has an example.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pinas_zoo.models.layers import DEFAULT_LAYERS, Layers
from pinas_zoo.space.candidates import KINDS, CandidateKind

__all__ = ['BUILDERS', 'Block', 'Place', 'Skip', 'last_norm', 'register_builder']


class Block(nn.Module):
    """A candidate of a position, built. Subclasses define `forward` and `branch`.

    Attributes:
        residual: Whether its branch is added to something, so that it may start at zero.
    """

    residual = True  # TorchScript does not read postponed annotations

    def branch(self, x: Tensor) -> Tensor:
        """What the block adds to its shortcut; the whole block where it has none. Shape: as `forward`."""
        raise NotImplementedError(f'{type(self).__name__} does not define its branch')

    def last_norm(self) -> _BatchNorm | Any | None:
        """The BN that closes the branch, whose scale weights it; None if there is none."""
        return None


class Skip(Block):
    """The candidate that leaves the block out. The activation has already been applied to its input."""

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        return x


@dataclass(frozen=True)
class Place:
    """The position of a block in a network.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        planes: Planes of the stage (`SearchSpace.planes`).
        changes_shape: Whether the position changes the shape. By the space: where dilation removes the stride, weights
            keep their shapes.
        stride: Stride.
        dilation: Dilation.
        pool: Whether a bottleneck has its average pooling here.
        min_attention_width: That of the space.
        shortcut: Shared projection that the block owns; None where there is none or the caller runs it.
        drop_path: Probability of dropping the branch of a sample while training.
        layers: Activation and normalisation.
    """

    in_channels: int
    out_channels: int
    planes: int
    changes_shape: bool
    stride: int = 1
    dilation: int = 1
    pool: bool = False
    min_attention_width: int = 32
    shortcut: nn.Module | None = None
    drop_path: float = 0.0
    layers: Layers = DEFAULT_LAYERS


Builder = Callable[[Any, Place], Block]
B = TypeVar('B', bound=Builder)

#: The builders by class of candidate.
BUILDERS: dict[type[CandidateKind], Builder] = {}


def register_builder(candidate: type[CandidateKind]) -> Callable[[B], B]:
    """Registers a kind of candidate with the decorated function, which builds it at a place.

    Args:
        candidate: Frozen dataclass of the kind; `CandidateKind.kind` is its name in configs and checkpoints.

    Raises:
        ValueError: Another class has that name.
    """
    kind = getattr(candidate, 'kind', None)
    if not isinstance(kind, str) or not kind:
        raise ValueError(f'{candidate.__name__} needs a class attribute `kind`, its name in configs; got {kind!r}')
    if KINDS.setdefault(kind, candidate) is not candidate:
        raise ValueError(
            f'kind {kind!r} is already that of {KINDS[kind].__qualname__}: give {candidate.__qualname__} another'
        )

    def register(builder: B) -> B:
        BUILDERS[candidate] = builder
        return builder

    return register


def last_norm(block: nn.Module) -> _BatchNorm | None:
    """The BN that closes a candidate's branch; None for a skip, or where the branch ends in something else."""
    norm = block.last_norm() if isinstance(block, Block) else None
    return norm if isinstance(norm, _BatchNorm) else None
