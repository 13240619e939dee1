"""A pool of the ranking study's multiprocessing that works in this process."""

from types import ModuleType

import pytest
import torch


class SerialPool:
    """A pool without processes."""

    def __init__(self, *_: object, **__: object) -> None:
        torch.set_num_threads(1)

    def __enter__(self) -> 'SerialPool':
        return self

    def __exit__(self, *_: object) -> None:
        pass

    imap_unordered = staticmethod(map)


def use_serial_pool(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Replaces the pools that `module` makes."""
    monkeypatch.setattr(module.multiprocessing, 'get_context', lambda _: type('Context', (), {'Pool': SerialPool}))
