"""SuperNet: every candidate at every position, and paths through it as views.

`SuperNet.path(arch)` is the one primitive: the stem and the chosen blocks, without copies. The architecture is always
an argument, never state of a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pinas_zoo.models.blocks import Skeleton, init_weights, make_candidate, make_final, make_shortcut
from pinas_zoo.models.kinds import Block, Skip
from pinas_zoo.models.mixed import add_branches
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.typed import ModuleList
from pinas_zoo.space import PINAS, Arch, SearchSpace, get_space, kept

__all__ = ['Factors', 'Path', 'Position', 'Segment', 'SuperNet', 'zero_momenta']

#: By position, the factors of the candidates that it adds up; None where there is one candidate without a factor.
Factors = Sequence[Tensor | None]


class Position(nn.Module):
    """The candidates of one position and the shortcut that they share.

    Args:
        space: The space.
        position: Position from 0.
    """

    def __init__(self, space: SearchSpace, position: int) -> None:
        super().__init__()
        self.downsample = make_shortcut(space, position)
        self.changes_shape = space.changes_shape(position)
        every = range(len(space.candidates))
        self.shares = [space.shares(position, choice) for choice in every]
        self.activates = [candidate.activates for candidate in space.candidates]
        # A skip that does not fit keeps its index; no valid arch selects it.
        self.candidates: ModuleList[Block] = ModuleList(
            make_candidate(space, position, choice) if choice in space.choices(position) else Skip() for choice in every
        )

    def __getitem__(self, choice: int) -> Block:
        return self.candidates[choice]

    def __len__(self) -> int:
        return len(self.candidates)

    def shortcut(self, x: Tensor) -> Tensor | None:
        """Output of the shared shortcut; None where there is none."""
        return None if self.downsample is None else self.downsample(x)

    def projection(self, choice: int | tuple[int, ...]) -> nn.Module | None:
        """The shared shortcut if a candidate, or one of several, needs it."""
        choices = choice if isinstance(choice, tuple) else (choice,)
        return self.downsample if any(self.shares[one] for one in choices) else None

    def forward(self, x: Tensor, choice: int | tuple[int, ...], factors: Tensor | None = None) -> Tensor:
        """Runs one candidate, or adds up several behind their shortcut, which is computed once.

        Args:
            x: Input.
            choice: The candidate; a tuple adds up the branches of all its members (that of a skip is zero).
            factors: Factor of each member, (len(choice),); None gives each 1 / len(choice), as in a new network.

        Shape:
            That of `Bottleneck`.
        """
        projection = self.projection(choice)
        identity = None if projection is None else projection(x)
        if not isinstance(choice, tuple):
            return self.candidates[choice](x, identity)
        if factors is None:
            factors = torch.full((len(choice),), 1 / len(choice), device=x.device, dtype=x.dtype)
        blocks = [self.candidates[one] for one in choice]
        places = [place for place, block in enumerate(blocks) if not isinstance(block, Skip)]
        branches = [block.branch(x) for block in blocks if not isinstance(block, Skip)]
        if identity is None and not (self.changes_shape and branches):
            identity = x
        out = add_branches(identity, branches, factors[places])
        return F.relu(out) if any(self.activates[one] for one in choice) else out


class Path:
    """One architecture of a supernet: a view that shares every module with it.

    Args:
        supernet: The supernet.
        arch: The architecture, already checked by `SuperNet.path`. A method that weights candidates creates its path
            directly: a tuple of any length is then a mixture.
        factors: Factors of the positions that add up several candidates; None for those of a new network.

    Raises:
        ValueError: The factors do not fit the architecture.
    """

    def __init__(self, supernet: SuperNet, arch: Arch, factors: Factors | None = None) -> None:
        factors = [None] * len(arch) if factors is None else list(factors)
        if len(factors) != len(arch):
            raise ValueError(f'{len(arch)} positions need one entry of factors each (or None), got {len(factors)}')
        for position, (choice, factor) in enumerate(zip(arch, factors, strict=True)):
            if factor is not None and (not isinstance(choice, tuple) or factor.shape != (len(choice),)):
                raise ValueError(
                    f'position {position} keeps {choice} and needs as many factors, got shape {tuple(factor.shape)}'
                )
        self.supernet, self.arch, self.factors = supernet, arch, factors

    def __call__(self, x: Tensor) -> Tensor:
        """Features of the last stage. Shape: (N, in_chans, H, W) -> (N, num_features, h, w)"""
        x = self.supernet.forward_stem(x)
        for position, choice, factors in zip(self.supernet.blocks, self.arch, self.factors, strict=True):
            x = position(x, choice, factors)
        return self.supernet.final_conv(x)

    def children(self) -> Iterator[nn.Module]:
        """The path's modules in order: stem, each position's shortcut (if any) and chosen block, final convolution."""
        yield from self.supernet.stem_modules()
        for position, choice in zip(self.supernet.blocks, self.arch, strict=True):
            if (projection := position.projection(choice)) is not None:
                yield projection
            for one in kept(choice):
                yield position[one]
        yield self.supernet.final_conv

    def modules(self) -> Iterator[nn.Module]:
        """Every module on the path, including nested ones."""
        for child in self.children():
            yield from child.modules()

    def parameters(self) -> list[nn.Parameter]:
        """The parameters on the path, in a fixed order."""
        return [parameter for child in self.children() for parameter in child.parameters()]

    def state_dict(self) -> dict[str, Tensor]:
        """The path's tensors under the names of a stand-alone `PiNASNet`; views, nothing is copied.

        Factors that were not given are left out: a new network already has them.
        """
        net = self.supernet
        state = {f'conv1.{k}': v for k, v in net.conv1.state_dict().items()}
        state |= {f'bn1.{k}': v for k, v in net.bn1.state_dict().items()}
        state |= {f'final_conv.{k}': v for k, v in net.final_conv.state_dict().items()}
        for index, (position, choice) in enumerate(zip(net.blocks, self.arch, strict=True)):
            stage, block = net.space.stage_of(index)
            prefix = f'layer{stage + 1}.{block}.'
            for one in kept(choice):
                inner = f'{prefix}candidates.{one}.' if isinstance(choice, tuple) else prefix
                state |= {inner + k: v for k, v in position[one].state_dict().items()}
            if (factors := self.factors[index]) is not None:
                state[f'{prefix}factors'] = factors.detach()
            if (projection := position.projection(choice)) is not None:
                state |= {f'{prefix}downsample.{k}': v for k, v in projection.state_dict().items()}
        return state


class SuperNet(Skeleton):
    """The weight-sharing network of a search space.

    Args:
        space: Search space, its name, or its dict of fields.
        in_chans: Image channels.
        zero_init_last: Every block starts as its shortcut (as released).

    Shape:
        forward: (N, in_chans, H, W), an architecture -> (N, num_features, h, w)

    Examples:
        >>> net = SuperNet('pinas_nano')
        >>> net(torch.zeros(2, 3, 28, 28), net.space.parse('30-32-20-03')).shape
        torch.Size([2, 384, 2, 2])
    """

    def __init__(
        self,
        space: str | dict[str, Any] | SearchSpace = PINAS,
        in_chans: int = 3,
        zero_init_last: bool = True,
    ) -> None:
        space = get_space(space)
        super().__init__(space, in_chans)
        self.blocks: ModuleList[Position] = ModuleList(Position(space, p) for p in range(space.num_positions))
        self.final_conv = make_final(space)
        init_weights(self, zero_init_last)

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.parameters()).device

    def path(self, arch: str | Sequence[int | Sequence[int]], factors: Factors | None = None) -> Path:
        """The view of one architecture.

        Args:
            arch: The architecture; positions in brackets add up the candidates that they keep.
            factors: By position the factors of those candidates, (number kept,), in ascending order of the candidates;
                None where one is kept, or for the factors of a new network.

        Raises:
            ValueError: The architecture is malformed, or the factors do not fit it.
        """
        return Path(self, self.space.parse(arch), factors)

    def forward(self, x: Tensor, arch: str | Sequence[int | Sequence[int]]) -> Tensor:
        return self.path(arch)(x)

    def extract(
        self, arch: str | Sequence[int | Sequence[int]], factors: Factors | None = None, **kwargs: Any
    ) -> PiNASNet:
        """A stand-alone copy of one path, in eval mode.

        Its outputs are bit-equal to the path's in eval mode: eager, with the same batch, memory format, dtype and
        number of threads.

        Args:
            arch: The architecture.
            factors: Factors of the positions in brackets, as for `path`.
            **kwargs: Arguments of `PiNASNet`; without `num_classes` the network has no classifier.

        Raises:
            ValueError: The architecture is malformed, or the factors do not fit it.
        """
        path, stem = self.path(arch, factors), next(self.conv1.parameters())
        defaults: dict[str, Any] = dict(num_classes=0, in_chans=self.in_chans, device=stem.device, dtype=stem.dtype)
        net = PiNASNet(path.arch, self.space, **defaults | kwargs)
        missing, unexpected = net.load_state_dict(path.state_dict(), strict=False)
        left = [name for name in missing if not name.startswith('fc.') and not name.endswith('.factors')]
        assert not unexpected and not left, (left, unexpected)
        return net.eval()


class Segment(nn.Module):
    """One block of a path with what always runs beside it; all modules belong to the supernet.

    Args:
        supernet: The supernet.
        position: Position from 0.
        choice: Candidate.
        head: What follows the last position, after the final convolution; None for nothing.

    Shape:
        The input of the position (images at position 0) -> its output (the head's at the last position).
    """

    def __init__(self, supernet: SuperNet, position: int, choice: int, head: nn.Module | None = None) -> None:
        super().__init__()
        last = position == len(supernet.blocks) - 1
        self.stem = nn.ModuleList(supernet.stem_modules() if position == 0 else ())
        self.shortcut = supernet.blocks[position].projection(choice)
        self.block = supernet.blocks[position][choice]
        self.final_conv = supernet.final_conv if last else nn.Identity()
        self.head = head if last else None

    @property
    def empty(self) -> bool:
        """Whether nothing runs here: the candidate leaves the block out."""
        alone = not self.stem and self.head is None and isinstance(self.final_conv, nn.Identity)
        return isinstance(self.block, Skip) and alone

    def forward(self, x: Tensor) -> Tensor:
        for module in self.stem:
            x = module(x)
        x = self.final_conv(self.block(x, None if self.shortcut is None else self.shortcut(x)))
        return x if self.head is None else self.head(x)


def zero_momenta(optimiser: torch.optim.Optimizer) -> None:
    """Gives every parameter of a fused SGD a zero momentum buffer, which leaves the first update the same.

    Fused SGD refuses to mix parameters with and without momentum, as the first steps of a supernet would.
    """
    for parameter in (p for group in optimiser.param_groups for p in group['params']):
        optimiser.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
