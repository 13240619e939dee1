"""What a position chooses from: the base class of all kinds of candidates, inverted residual and identity.

`Candidate` (search_space.py), the paper's split-attention bottleneck, is a kind too. A kind is a frozen dataclass; its
fields are what configs and checkpoints record. `pinas_zoo.models.kinds.register_builder` adds further ones.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pinas_zoo.space.search_space import SearchSpace

__all__ = ['KINDS', 'CandidateKind', 'Identity', 'InvertedResidual', 'read_candidate', 'write_candidate']

#: The classes of candidates by kind; those of the paper ('bottleneck') are recorded without their kind.
KINDS: dict[str, type[CandidateKind]] = {}
BOTTLENECK = 'bottleneck'


def is_count(value: object) -> bool:
    """Whether a value is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class CandidateKind:
    """Base class of the kinds: a frozen dataclass per kind, hashable, with plain values as fields.

    Attributes:
        kind: Name in configs and checkpoints.
        skip: The block is left out where the shape of input and output is the same.
        projects: With `skip`: fits also where the shape changes, as a projection.
        shares_shortcut: Where the shape changes, its branch is added to a projection that the position owns and its
            candidates share. Otherwise the branch is the whole block there.
        activates: An activation follows the sum of shortcut and branch.
    """

    kind: ClassVar[str]
    skip: bool = False
    projects: ClassVar[bool] = False
    shares_shortcut: ClassVar[bool] = False
    activates: ClassVar[bool] = False

    def check(self, space: SearchSpace) -> None:
        """Raises ValueError if the candidate does not fit the widths of a space."""

    def words(self) -> str:
        """What it is, for legends: its fields that are not zero."""
        assert dataclasses.is_dataclass(self)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return ', '.join([self.kind.replace('_', ' '), *(f'{name} {value}' for name, value in fields.items() if value)])

    def label(self) -> tuple[str, ...]:
        """The same in at most two lines of about seven characters."""
        return (self.kind[:7],)


@dataclass(frozen=True)
class InvertedResidual(CandidateKind):
    """Inverted residual (Sandler et al., MobileNetV2, 2018): expand, depthwise convolution, project.

    The input is added where the shape stays; nothing follows the projection.

    Args:
        kernel: Odd kernel size of the depthwise convolution.
        expansion: Hidden channels per input channel; with 1 the expanding convolution is omitted.
        se: Hidden channels of the squeeze-excitation after the depthwise convolution, as a fraction of its channels,
            rounded to a multiple of 8; 0 leaves it out.

    Raises:
        ValueError: A field is out of its range.
    """

    kernel: int = 3
    expansion: int = 6
    se: float = 0.0

    kind: ClassVar[str] = 'inverted_residual'

    def __post_init__(self) -> None:
        for field in ('kernel', 'expansion'):
            if not is_count(value := getattr(self, field)):
                raise ValueError(f'InvertedResidual.{field} must be an integer of at least 1, got {value!r}')
        if self.kernel % 2 == 0:
            raise ValueError(f'InvertedResidual.kernel must be odd, got {self.kernel}')
        if isinstance(self.se, bool) or not isinstance(self.se, (int, float)) or not 0 <= self.se <= 1:
            raise ValueError(f'InvertedResidual.se must be a number in 0..1, got {self.se!r}')

    def se_width(self, hidden: int) -> int:
        """Hidden channels of its squeeze-excitation: a multiple of 8, at least 8."""
        return max(8, int(hidden * self.se + 4) // 8 * 8)

    def label(self) -> tuple[str, ...]:
        return f'e{self.expansion} k{self.kernel}', f'se {self.se:g}' if self.se else ''


@dataclass(frozen=True)
class Identity(CandidateKind):
    """No block: the input where the shape stays, a strided 1x1 convolution with BN where it changes."""

    kind: ClassVar[str] = 'identity'
    skip: ClassVar[bool] = True  # type: ignore[misc] # a field only in `Candidate`
    projects: ClassVar[bool] = True

    def words(self) -> str:
        return 'identity; a 1×1 convolution where the shape changes'


def write_candidate(candidate: CandidateKind) -> dict[str, Any]:
    """Plain values of a candidate: its fields, and its kind unless it is the paper's."""
    assert dataclasses.is_dataclass(candidate)
    fields = dataclasses.asdict(candidate)
    return fields if candidate.kind == BOTTLENECK else {'kind': candidate.kind, **fields}


def read_candidate(values: dict[str, Any]) -> CandidateKind:
    """A candidate from its plain values.

    Raises:
        ValueError: The kind is unknown, or a field is unknown, missing or out of its range.
    """
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    kind = fields.pop('kind', BOTTLENECK)
    if kind not in KINDS:
        raise ValueError(
            f'unknown kind of candidate {kind!r}, known: {sorted(KINDS)}; a kind of your own is known after the import '
            'of the module that registers its builder (config: custom_imports)'
        )
    try:
        return KINDS[kind](**fields)
    except TypeError as error:
        raise ValueError(f'{values} is not a candidate of kind {kind!r}: {error}') from error


KINDS.update({one.kind: one for one in (InvertedResidual, Identity)})
