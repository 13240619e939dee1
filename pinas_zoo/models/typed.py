"""Types that torch's annotations lack: containers with the type of their content, and a network's memory format.

At run time the containers are torch's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

__all__ = ['ModuleDict', 'ModuleList', 'to_memory_format']

M = TypeVar('M', bound=nn.Module)

if TYPE_CHECKING:
    from collections.abc import Iterator, ValuesView
    from typing import Generic

    class ModuleList(nn.ModuleList, Generic[M]):
        """Modules of one type in order."""

        def __getitem__(self, index: int) -> M: ...  # type: ignore[override] # slices are not used
        def __iter__(self) -> Iterator[M]: ...

    class ModuleDict(nn.ModuleDict, Generic[M]):
        """Modules of one type by name."""

        def __getitem__(self, name: str) -> M: ...
        def values(self) -> ValuesView[M]: ...

else:
    ModuleDict, ModuleList = nn.ModuleDict, nn.ModuleList


def to_memory_format(module: M, memory_format: torch.memory_format) -> M:
    """Sets the memory format of a module's four-dimensional tensors, in place; returns the module."""
    return module.to(memory_format=memory_format)  # type: ignore[call-overload] # not in torch's stub
