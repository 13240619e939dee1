"""Functions on several ranks, each in a process of its own that has not to import torch and the mm packages anew."""

from collections.abc import Callable
from typing import Any

import torch.multiprocessing
from fork_server import forked_spawns


def run_on_ranks(function: Callable[..., Any], *arguments: Any, count: int = 2) -> None:
    """Calls `function(rank, *arguments)` in `count` processes and waits for them; an error of one is raised.

    They are forks of a process that has computed nothing: where there is a GPU, none may follow a backward pass.
    """
    with forked_spawns():
        torch.multiprocessing.start_processes(function, arguments, count, start_method='spawn')
