"""What takes longer than a small training and is of no use to a test, done once per process or not at all."""

import copy
import functools
import os
import sys
from collections.abc import Callable
from typing import Any


@functools.cache
def _collect_env() -> dict[str, Any]:
    from mmengine.utils.dl_utils import collect_env

    return collect_env()


def _by_text(format_code: Callable[..., tuple[str, bool]]) -> Callable[..., tuple[str, bool]]:
    known: dict[str, tuple[str, bool]] = {}

    def formatted(text: str, **style: Any) -> tuple[str, bool]:
        if text not in known:
            known[text] = format_code(text, **style)
        return known[text]

    return formatted


def _no_flush(file: Any) -> None:
    """Instead of os.fsync: what a killed process has written is there without it."""


@functools.cache
def _load_file(path: str) -> Any:
    from mmengine.fileio import load

    return load(path)


def remember() -> None:
    """From now on files are not flushed to the disk, for which only a power failure would need them.

    And each process does these once, which mmengine does anew for every training.

    Compilers are asked for their versions; a config's text is formatted by yapf, for its log, its file, its checkpoints
    and the visualizer; the seventy metafiles of a package are read to find a base in it.
    """
    os.fsync = _no_flush
    names = ('config.config', 'config.utils', 'runner.runner')
    config, utils, runner = (sys.modules.get(f'mmengine.{name}') for name in names)
    if utils is not None:
        utils.load = _load_file
    if config is not None and config.FormatCode.__module__ != __name__:
        config.FormatCode = _by_text(config.FormatCode)
    if runner is not None and runner.collect_env.__module__ != __name__:
        runner.collect_env = lambda: copy.deepcopy(_collect_env())
