"""A recorder for the CPU with the semantics of CUDA graphs: memory at fixed addresses, and no Python in a replay.

Recording notes every operator with the memory that it reads and writes. A replay runs these operators on that memory
again: constants, addresses and the operators themselves stay as they were, whatever happened to modules and parameters
since. What a card would or might overwrite is filled with NaN:

- the memory of a recording after the recording, since a capture runs nothing, and before each replay;
- the memory of everything recorded later into the same pool, which may lie over what this recording has freed;
- of what was recorded earlier, the memory that was free when this recording began.

Waits for the device are refused, as in a capture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from pinas_zoo.models.recorder import WARM_UPS

aten = torch.ops.aten
#: Operators that wait for the device.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}
#: Operators that do so with deterministic algorithms: CUDA sorts their indices, and older torch checks the range.
SORTS = {aten.index_copy_.default, aten.index_copy.default, aten.index_put_.default, aten.index_put.default}
LEFT = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its storage and layout."""

    storage: int
    dtype: torch.dtype
    layout: tuple[int, tuple[int, ...], tuple[int, ...]]

    def on(self, storages: dict[int, torch.UntypedStorage]) -> Tensor:
        return torch.empty(0, dtype=self.dtype).set_(storages[self.storage], *self.layout)


class Tape(TorchDispatchMode):
    """One recording."""

    def __init__(self, earlier: list[Tape]) -> None:
        super().__init__()
        self.references: dict[int, StorageWeakRef] = {}
        self.sizes: dict[int, int] = {}
        self.own: list[int] = []  # storages that were allocated while recording
        self.noted: list[tuple[Any, Any, list[Any], list[Any]]] = []
        self.operators: list[tuple[Any, list[Any], Any, list[Any]]] = []
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.free_before = [(tape, tape.expired()) for tape in earlier]
        self.later: list[Tape] = []
        self.freed: set[int] = set()
        self.name = ''
        for tape in earlier:
            tape.later.append(self)

    def expired(self) -> list[int]:
        """Storages of its own that nobody refers to."""
        if self.storages:
            return [own for own in self.own if own in self.freed]
        return [own for own in self.own if self.references[own].expired()]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in WAITS or (func in SORTS and torch.are_deterministic_algorithms_enabled()):
            raise RuntimeError(f'{func}: operation not permitted when stream is capturing')
        inputs, form = tree_flatten((args, kwargs or {}))
        noted = [self.note(value, own=False) for value in inputs]
        result = func(*args, **kwargs or {})
        self.noted.append((func, form, noted, [self.note(value, own=True) for value in tree_flatten(result)[0]]))
        return result

    def note(self, value: Any, own: bool) -> Any:
        if not isinstance(value, Tensor):
            return value
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self.references:  # the reference keeps the key from being used again
            self.references[key] = StorageWeakRef(storage)
            self.sizes[key] = storage.nbytes()
            if own:
                self.own.append(key)
        return Place(key, value.dtype, (value.storage_offset(), tuple(value.size()), tuple(value.stride())))

    def spoil(self, storages: list[int] | None = None) -> None:
        """Fills memory of its own with NaN."""
        for key in self.own if storages is None else storages:
            storage = self.storages.get(key)
            if storage is None and not self.references[key].expired():
                storage = torch.UntypedStorage._new_with_weak_ptr(self.references[key].cdata)
            if storage is not None and storage.nbytes():
                torch.empty(0, dtype=torch.uint8).set_(storage).fill_(255)

    def load(self) -> None:
        """Gives scratch memory to what was freed since, and resolves the operators' tensors."""
        self.freed = set(self.expired())
        for key, reference in self.references.items():
            storage = None if reference.expired() else torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                assert key in self.freed, 'a recording reads memory of somebody else that was freed'
                storage = torch.UntypedStorage(self.sizes[key])
            self.storages[key] = storage
        for func, form, noted, results in self.noted:
            read = {place.storage for place in noted if isinstance(place, Place)}
            written = [
                place.on(self.storages) if isinstance(place, Place) and place.storage not in read else None
                for place in results
            ]  # a result in the memory of an argument is a view of it, or was written in place
            if func not in LEFT and (func._schema.is_mutable or any(place is not None for place in written)):
                inputs = [place.on(self.storages) if isinstance(place, Place) else place for place in noted]
                self.operators.append((func, inputs, form, written))
        self.noted.clear()

    def replay(self) -> None:
        if not self.storages:
            self.load()
        for tape, freed in self.free_before:
            tape.spoil(freed)
        for tape in (self, *self.later):
            tape.spoil()
        with torch.no_grad(), torch.autocast('cpu', enabled=False):
            for func, inputs, form, written in self.operators:
                args, kwargs = tree_unflatten(inputs, form)
                for place, value in zip(written, tree_flatten(func(*args, **kwargs))[0], strict=True):
                    if place is not None:
                        place.copy_(value)


class TapeRecorder:
    """Records operators on a CPU.

    Args:
        free: Share of the memory that is free.
        fail_at: The recordings that fail, counted from 1.
    """

    def __init__(self, free: float = 1.0, fail_at: int | None = None) -> None:
        self.free, self.fail_at, self.recorded, self.replays = free, fail_at, 0, 0
        self.pools: list[list[Tape]] = []
        self.shared: list[Tape] = []

    def serves(self, device: torch.device) -> bool:
        return device.type == 'cpu'

    def free_share(self) -> float:
        return self.free

    def warm_up(self, work: Callable[[], Any]) -> None:
        for _ in range(WARM_UPS):
            work()

    def pool(self, with_backward: bool) -> list[Tape]:
        if not with_backward:
            return self.shared
        self.pools.append([])
        return self.pools[-1]

    def record(self, work: Callable[[], Any], pool: list[Tape]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        with Tape(pool) as tape:
            result = work()
            if self.recorded == self.fail_at:
                raise RuntimeError('out of memory, as it were\nsecond line')
        pool.append(tape)
        tape.name = work.__name__
        tape.spoil()

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return result, replay
