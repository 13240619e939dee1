"""Captured blocks against eager ones, with a recorder for the CPU that has the semantics of CUDA graphs."""

import copy
from dataclasses import replace

import pytest
import torch
import torch._dynamo.utils
import torch.distributed as dist
from peer_toys import train_both
from ranks import run_on_ranks
from tape import TapeRecorder
from test_contrast import SMALL, LossModule, assert_same_state, sgd, small_method, views
from test_methods import make
from torch.nn.parallel import DistributedDataParallel

from pinas_zoo.methods import METHODS
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models import graphs
from pinas_zoo.models.captured import CapturedBlock
from pinas_zoo.models.compiling import compile_blocks
from pinas_zoo.models.supernet import SuperNet


class RunsAgain(TapeRecorder):
    """Replays by calling the work again: torch.compile does not run under the mode that notes operators."""

    def record(self, work, pool):
        result = work()
        statics = result if isinstance(result, tuple) else (result,)

        def replay() -> None:
            with torch.enable_grad():
                fresh = work()
            for static, value in zip(statics, fresh if isinstance(fresh, tuple) else (fresh,), strict=True):
                static.detach().copy_(value.detach())

        return result, replay


def graphed_method(lines: list[str] | None = None, recorder=None, **switches):
    method = small_method(**switches)
    method.use_graphs(recorder or TapeRecorder(), (lines if lines is not None else []).append)
    return method


def train(method, steps: int, images: int = 6, accumulate: int = 1, start: int = 0) -> list:
    optimiser, seen = sgd(method), []
    for step in range(start, start + steps):
        for part in range(accumulate):
            losses = method.loss({'views': views(step * accumulate + part, images)}, step, part)
            losses['loss'].backward()
        gradients = {name for name, p in method.named_parameters() if p.grad is not None}
        optimiser.step()
        optimiser.zero_grad()
        seen.append(({name: value.item() for name, value in losses.items()}, gradients))
    return seen


@pytest.mark.parametrize(
    'switches',
    [{}, dict(mean_teacher=False), dict(single_path=True), dict(negatives=False)],
    ids=['paper', 'no teacher', 'one path', 'no negatives'],
)
@pytest.mark.parametrize('accumulate', [1, 3])
def test_steps_equal_eager_ones_bit_for_bit(switches, accumulate):
    eager, graphed = small_method(**switches), graphed_method(**switches)
    assert train(eager, 6, accumulate=accumulate) == train(graphed, 6, accumulate=accumulate)
    assert_same_state(eager, graphed)
    student = graphed.student.graphs
    assert student.replayed and not student.eager
    assert (graphed.captured.first is not None) == (
        graphed.queue is not None
    )  # without a queue the loss is not captured
    assert set(graphed.state_dict()) == set(eager.state_dict())


def test_compiled_blocks_train_as_eager_ones():
    """With the backend that traces but generates no code, which needs a compiler. Blocks of equal shapes share it."""
    space = replace(SMALL, depths=(3,), planes=(16,), strides=(1,), candidates=SMALL.candidates[1:3])
    eager, compiled = (PiNAS(SuperNet(space), dim=16, queue_length=24, seed=0).double().train() for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    compiled.use_graphs(RunsAgain(), [].append)
    counts = torch._dynamo.utils.counters['stats']
    before = counts['unique_graphs']
    assert compile_blocks(compiled, backend='aot_eager') == 2 * 3 * 2
    for (wanted, gradients), (seen, own_gradients) in zip(train(eager, 4), train(compiled, 4), strict=True):
        assert own_gradients == gradients
        assert seen['loss'] == pytest.approx(wanted['loss'], rel=1e-5)
    # Two candidates, in the first position (with a shortcut) and in the others; of the student, of the teacher, and of
    # the teacher as this recorder replays it, with gradients switched on.
    assert counts['unique_graphs'] - before == 2 * 2 * 3
    assert compiled.student.graphs.replayed and not compiled.student.graphs.eager
    assert set(compiled.state_dict()) == set(eager.state_dict())


def test_a_capture_leaves_weights_statistics_and_gradients_alone():
    method = graphed_method()
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    segment = method.student.graphs.segment(0, 1)
    CapturedBlock(segment, views(0)[:, 0], TapeRecorder(), dict(device_type='cpu', enabled=False))
    assert all(torch.equal(value, before[name]) for name, value in method.student.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_blocks_are_captured_once_and_counted():
    lines, recorder = [], TapeRecorder()
    method = graphed_method(lines, recorder)
    train(method, 12)
    recorded = recorder.recorded
    places = sum(len(SMALL.choices(p)) for p in range(SMALL.num_positions))
    assert recorded == 3 * places + 1  # forward and backward of the student, forward of the teacher; the loss
    train(method, 3, start=12)
    assert recorder.recorded == recorded
    assert sum(f'all {places} blocks captured' in line for line in lines) == 2


def test_another_shape_or_precision_runs_eagerly_and_is_told_once():
    lines, eager = [], small_method()
    graphed = graphed_method(lines)
    for images in (6, 4, 4, 6):  # an incomplete batch in between
        assert train(eager, 2, images) == train(graphed, 2, images)
    assert_same_state(eager, graphed)
    assert len([line for line in lines if 'runs without' in line]) == 2  # of the student and of the teacher
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert not graphed.student.graphs.accepts(views(0)[:, 0], graphed.paths(0)[0])
    assert not graphed.student.graphs.accepts(views(0)[:, 0], ((0, 1), 2, 3))  # a mixture
    graphed.eval()
    assert not graphed.student.graphs.accepts(views(0)[:, 0], graphed.paths(0)[0])


def test_captured_under_autocast():
    results = []
    for method in (small_method().float(), graphed_method().float()):
        losses = []
        optimiser = sgd(method)
        for step in range(3):
            # With its cache the eager step adds up the gradients of shared weights in half precision.
            with torch.autocast('cpu', dtype=torch.bfloat16, cache_enabled=False):
                loss = method.loss({'views': views(step).float()}, step)['loss']
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        results.append(losses)
    assert results[0] == results[1]


@pytest.mark.parametrize('distributed', [False, True])
def test_gradients_are_set_directly_unless_parameters_have_hooks(distributed, monkeypatch):
    monkeypatch.setattr(graphs, 'is_distributed', lambda: distributed)  # DDP's hooks are not visible in Python
    graphed = graphed_method()
    train(graphed, 1)
    graphed.loss({'views': views(1)}, 1)['loss'].backward()
    block = graphed.student.graphs.graphs[1, graphed.paths(1)[0][1], True]
    own = {id(p) for p in block.segment.block.parameters()}  # the shortcut belongs to the other path as well
    pairs = zip(block.parameters, block.gradients, strict=True)
    assert own and {p.grad is static for p, static in pairs if id(p) in own} == {not distributed}

    seen, methods = [], (small_method(), graphed_method())
    for method in methods:
        first, last = next(method.student.backbone.parameters()), method.student.projector[-1]
        first.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.sum().item()))
        last.bias.register_hook(lambda gradient: 2 * gradient)
        train(method, 2)
    assert len(seen) == 4 and seen[:2] == seen[2:]
    assert_same_state(*methods)


def test_parameter_lists_follow_new_parameters():
    method = small_method()
    arch = method.paths(0)[0]
    assert [id(p) for p in method.student.on_path(arch)] == [
        id(p) for p in (*method.student.backbone.path(arch).parameters(), *method.student.projector.parameters())
    ]
    method.load_state_dict(copy.deepcopy(method.state_dict()), assign=True)
    assert {id(p) for p in method.student.on_path(arch)} <= {id(p) for p in method.student.parameters()}


@pytest.mark.parametrize('name', list(METHODS))
@pytest.mark.parametrize('warm_up', [True, False])
def test_the_peers_equal_their_eager_steps(name, warm_up):
    alternating = name in ('FPNAS', 'EnTranNAS', 'SparseSupernet')
    results = []
    for graphed in (False, True):
        method = make(METHODS[name], **({} if warm_up or not alternating else {'warmup_steps': 0}))
        if graphed:
            method.use_graphs(TapeRecorder(), [].append)
        terms = train_both(method, range(4))
        results.append((terms, {k: v.clone() for k, v in method.state_dict().items()}))
    (eager_terms, eager), (terms, state) = results
    for a, b in zip(eager_terms, terms, strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    for key, value in eager.items():
        assert torch.allclose(value, state[key], rtol=1e-9, atol=1e-12), key
    assert name in MIXING or method.graphs.replayed


#: Their paths add up candidates, or weigh them: these run eagerly.
MIXING = ('EnTranNAS', 'SparseSupernet')


def _ddp_rank(rank: int, port_file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{port_file}', rank=rank, world_size=2)
    states = []
    for graphed in (False, True):
        method = graphed_method() if graphed else small_method()
        parallel = DistributedDataParallel(LossModule(method), find_unused_parameters=True, broadcast_buffers=False)
        optimiser = sgd(method)
        for step in range(4):
            parallel(views(10 * step + rank), step).backward()
            optimiser.step()
            optimiser.zero_grad()
        states.append(method.state_dict())
    if rank == 0:
        torch.save({'states': states, 'replayed': method.student.graphs.replayed}, out)
    dist.destroy_process_group()


@pytest.mark.processes
def test_two_ranks_average_the_gradients_of_captured_blocks(tmp_path):
    run_on_ranks(_ddp_rank, str(tmp_path / 'port'), str(tmp_path / 'out.pt'))
    found = torch.load(tmp_path / 'out.pt')
    eager, graphed = found['states']
    assert found['replayed'] == 4 * 2 * SMALL.num_positions
    for key, value in eager.items():
        assert torch.equal(value, graphed[key]), key


def test_a_block_with_a_backward_pass_shares_memory_with_no_other():
    """Observed on a GPU: in a shared pool, scratch of one block overwrote what another saved for its backward."""
    recorder = TapeRecorder()
    train(graphed_method(recorder=recorder), 4)
    assert len(recorder.pools) > 4
    names = [[tape.name for tape in pool] for pool in recorder.pools]
    assert names.count(['work']) == 1 and names.count(['forward', 'backward']) == len(names) - 1  # one is the loss
    assert {tape.name for tape in recorder.shared} == {'forward'}
