"""What the tests of the peers share: batches with held-out images, a loop of two optimisers, two processes, runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_utils
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from test_methods import SMALL, TEXT, batch


def pair(step: int = 0, images: int = 6) -> dict[str, Any]:
    """A batch that contains a held-out one."""
    return batch(step, images) | {'held_out': batch(step + 1000, images)}


def optimisers(method: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """SGD for the weights, Adam for the architecture where there is one."""
    groups = method.param_groups()
    weights = torch.optim.SGD(groups['weights'], 0.05, 0.9, weight_decay=1e-2)
    return [weights, torch.optim.Adam(groups['arch'], 0.05, (0.5, 0.999))] if 'arch' in groups else [weights]


def train_both(
    method: torch.nn.Module,
    steps: range,
    movers: list[torch.optim.Optimizer] | None = None,
    batches: Callable[[int], dict[str, Any]] = pair,
    call: Callable[..., dict[str, torch.Tensor]] | None = None,
) -> list[dict[str, float]]:
    """What every loop does; returns the terms of every part."""
    movers, call, terms = movers or optimisers(method), call or method.loss, []
    for step in steps:
        for mover in movers:
            mover.zero_grad()
        for part in range(method.parts(step)):
            found = call(batches(step), step, part)
            found['loss'].backward()
            terms.append({name: value.item() for name, value in found.items()})
        for mover in movers:
            mover.step()
    return terms


class Called(torch.nn.Module):
    """What a data-parallel wrapper needs: the loss as a forward."""

    def __init__(self, method: torch.nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, *args: Any) -> dict[str, torch.Tensor]:
        return self.method.loss(*args)


def wrapped(method: torch.nn.Module) -> Callable[..., dict[str, torch.Tensor]]:
    """The loss of a method under the data-parallel wrapper; gradients are averaged by the last part of a step."""
    parallel = torch.nn.parallel.DistributedDataParallel(
        Called(method), broadcast_buffers=False, find_unused_parameters=True
    )

    def call(batch: dict[str, Any], step: int, part: int) -> dict[str, torch.Tensor]:
        parallel.require_backward_grad_sync = part == method.parts(step) - 1
        return parallel(batch, step, part)

    return call


def run_two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Runs a function of the rank in two gloo processes and returns the results of both."""
    run_on_ranks(_rank, str(folder / 'rendezvous'), str(folder), work)
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(2)]


def _rank(rank: int, meeting: str, folder: str, work: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=2)
    torch.save(work(rank), f'{folder}/{rank}.pt')
    dist.destroy_process_group()


def resumes_exactly(name: str, folder: Path, *options: str, processes: int = 1) -> dict[tuple[int, str], Any]:
    """Trains a small form of configs/pretrain/NAME for 6 steps, once whole and once killed at 3 and, alone, at 4.

    Returns:
        What was logged, which is equal in both, as the last checkpoints are.
    """
    config, whole, killed = folder / f'{name}.py', folder / 'whole', folder / 'killed'
    base = engine_utils.ROOT / f'configs/pretrain/{name}.py'
    text = TEXT.format(base=str(base), space=SMALL.to_dict())
    if 'arch=dict(' in base.read_text():  # one schedule for each of two optimisers
        text = text.replace('param_scheduler = dict(end=6)', 'param_scheduler = dict(weights=dict(end=6))')
    config.write_text(text)
    arguments = ('--cfg-options', *options) if options else ()
    result = engine_utils.run_train(config, whole, *arguments, processes=processes)
    assert result.returncode == 0, result.stdout[-3000:]
    kills = [(3, 'step')] if processes > 1 else [(3, 'step'), (4, 'saved')]
    engine_utils.run_killed(config, killed, kills, *arguments, processes=processes)
    assert engine_utils.differences(whole, killed) == []
    logged = engine_utils.logged(whole)
    assert logged == engine_utils.logged(killed)
    return logged
