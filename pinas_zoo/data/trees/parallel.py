"""A function over many files, in several processes, with progress."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from pinas_zoo.data.trees.layout import Progress

Item = TypeVar('Item')


def in_processes(
    function: Callable[[Item], Any], items: Sequence[Item], workers: int, step: str, progress: Progress | None = None
) -> list[Any]:
    """Call a function for every item.

    Args:
        function: A module-level function, or a partial of one; errors are raised unchanged.
        items: Small objects, since they are sent to the processes.
        workers: Number of processes; 1 or less runs in this one.
        step: Name of the work, for the progress.
        progress: Called after every item.

    Returns:
        The results in the order of the items.
    """
    results: list[Any] = []
    if workers <= 1 or len(items) <= 1:
        for item in items:
            results.append(function(item))
            if progress:
                progress(step, len(results), len(items))
        return results
    pool = ProcessPoolExecutor(min(workers, len(items)))
    try:
        for result in pool.map(function, items, chunksize=max(1, min(16, len(items) // (4 * workers)))):
            results.append(result)
            if progress:
                progress(step, len(results), len(items))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error no further file is processed
    return results
