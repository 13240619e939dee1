"""Two ranks over gloo: what a step sends, all gradients or the active ones, and that both give the same training."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks

pytest.importorskip('mmengine')
pytestmark = [pytest.mark.mm, pytest.mark.processes]

from mmengine.logging import MessageHub  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402

from pinas_zoo.dist import average, exchange, gather  # noqa: E402
from pinas_zoo.mm.pretrain import MethodDistributedDataParallel, SupernetPretraining  # noqa: E402
from pinas_zoo.space import SearchSpace  # noqa: E402

SPACE = SearchSpace('small', (1, 2), (16, 32), (1, 2), (8, 8, 16), stem_pool=False, input_size=16)
STEPS = 4


def train(rank: int, reduce: str, accumulate: int = 1) -> dict[str, Any]:
    """Trains for a few steps on this rank's images; the state, and the bytes of each step."""
    torch.manual_seed(0)
    method = {'type': 'pinas_zoo.PiNAS', 'dim': 16, 'queue_length': 64, 'momentum': 0.9, 'seed': 0}
    model = SupernetPretraining(SPACE.to_dict(), method)
    wrapper = MethodDistributedDataParallel(
        model, reduce=reduce, broadcast_buffers=False, find_unused_parameters=reduce == 'all'
    )
    sent = [0]

    def count(state: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        state[0] += bucket.buffer().nbytes
        flat = bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(flat, async_op=True).get_future().then(lambda done: done.value()[0])

    wrapper.register_comm_hook(sent, count)
    reduce_active = wrapper.reduce_active

    def counted() -> int:
        sent[0] += (given := reduce_active())
        return given

    wrapper.reduce_active = counted  # type: ignore[method-assign]
    optim = OptimWrapper(torch.optim.SGD(model.method.parameters(), 0.05, 0.9), accumulative_counts=accumulate)
    optim.initialize_count_status(model, 0, STEPS)
    rng = torch.Generator().manual_seed(rank)
    per_step, expected = [], []
    for step in range(STEPS):
        MessageHub.get_current_instance().update_info('iter', step)
        sent[0] = 0
        wrapper.train_step({'views': torch.rand(2, 4, 3, 16, 16, generator=rng)}, optim)
        student = model.method.student
        active = {id(p): p for arch in model.method.paths(step // accumulate) for p in student.on_path(arch)}
        per_step.append(sent[0])
        expected.append(sum(p.nbytes for p in active.values()))
    total = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return {'state': model.state_dict(), 'bytes': per_step, 'active': expected, 'total': total}


def exchanged(rank: int, seed: int) -> bool:
    """Whether shuffling over the ranks equals gathering everything and taking this rank's part."""
    order = np.random.default_rng(seed).permutation(10)
    x = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(rank)).movedim(1, 2)
    return torch.equal(exchange(x, order), gather(x)[torch.from_numpy(order.reshape(2, 5)[rank])])


def on_ranks(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=rank, world_size=2, timeout=limit)
    results = {f'{mode} {n}': train(rank, mode, n) for mode in ('all', 'active') for n in (1, 2)}
    numbers = [torch.full((3,), float(rank)), torch.full((4, 5), 2.0 * rank), torch.ones(2, dtype=torch.float64)]
    results['averaged'] = {'bytes': average(numbers, bucket_bytes=50), 'means': numbers}
    results['exchanged'] = [exchanged(rank, seed) for seed in range(4)]
    wrapper = MethodDistributedDataParallel(torch.nn.Linear(2, 2), reduce='active')
    wrapper.module.bias.grad = torch.ones(2) if rank else None
    with pytest.raises(RuntimeError, match=r'different parameters \(numbers: \[0, 1\]\)'):
        wrapper.reduce_active()
    torch.save(results, folder / f'{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp('reduce')
    run_on_ranks(on_ranks, folder)
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(2)]


@pytest.mark.parametrize('accumulate', [1, 2])
def test_active_gradients_train_as_all_do(accumulate: int, ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        whole, active = found[f'all {accumulate}']['state'], found[f'active {accumulate}']['state']
        assert whole.keys() == active.keys() and all(torch.equal(whole[name], active[name]) for name in whole)
    first, second = (found[f'active {accumulate}']['state'] for found in ranks)
    own = ('running_mean', 'running_var')  # of a rank's own images
    assert all(torch.equal(first[name], second[name]) for name in first if not name.endswith(own))


def test_bytes_of_a_step(ranks: list[dict[str, Any]]) -> None:
    whole, active = ranks[0]['all 1'], ranks[0]['active 1']
    assert whole['bytes'] == [whole['total']] * STEPS  # whatever the paths are
    assert active['bytes'] == active['active'] and max(active['bytes']) < whole['total']
    # With accumulation, once per optimiser step.
    assert ranks[0]['active 2']['bytes'][::2] == [0, 0] and ranks[0]['active 2']['bytes'][1] > 0
    print(f'bytes per step: all {whole["total"]}, active {active["bytes"]}')


def test_rows_are_exchanged_as_if_gathered(ranks: list[dict[str, Any]]) -> None:
    assert [found['exchanged'] for found in ranks] == [[True] * 4] * 2


def test_means_in_buckets(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        three, table, ones = found['averaged']['means']
        assert found['averaged']['bytes'] == 12 + 80 + 16
        assert three.tolist() == [0.5] * 3 and torch.equal(table, torch.ones(4, 5)) and ones.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="allowed: 'all', 'active'"):
        MethodDistributedDataParallel(torch.nn.Linear(2, 2), reduce='some')
