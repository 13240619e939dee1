"""Captured blocks in cases that they do not fit: what runs eagerly then, with which line in the log."""

import copy

import pytest
import torch
from tape import TapeRecorder
from test_contrast import SMALL, assert_same_state, small_method, views
from test_graphs import graphed_method, train
from torch import nn

from pinas_zoo.models import graphs
from pinas_zoo.models.captured import CapturedBlock
from pinas_zoo.models.supernet import SuperNet


@pytest.mark.parametrize('recorder', [TapeRecorder(free=0.01), TapeRecorder(fail_at=1), TapeRecorder(fail_at=6)])
def test_without_memory_or_with_a_failing_capture_the_rest_runs_eagerly(recorder):
    lines, eager = [], small_method()
    graphed = graphed_method(lines, recorder)
    assert train(eager, 4) == train(graphed, 4)
    assert_same_state(eager, graphed)
    assert graphed.student.graphs.eager and any('run without' in line for line in lines)


def test_sync_bn_runs_eagerly():
    lines: list[str] = []
    net = nn.SyncBatchNorm.convert_sync_batchnorm(SuperNet(SMALL)).train()
    runner = graphs.BlockGraphs(net, None, TapeRecorder(), lines.append)
    assert not runner.accepts(torch.zeros(2, 3, 16, 16), (0, 1, 2)) and 'SyncBN' in lines[0]


def test_a_block_that_waits_for_its_backward_pass_runs_eagerly():
    eager, graphed = small_method(), graphed_method()
    for method in (eager, graphed):
        losses = [method.loss({'views': views(step)}, 0)['loss'] for step in range(2)]  # two forwards, same paths
        torch.stack(losses).sum().backward()
    assert graphed.student.graphs.eager == SMALL.num_positions * 2
    for (name, p), q in zip(eager.named_parameters(), graphed.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=1e-12, atol=1e-14), name


def test_a_second_backward_pass_is_refused():
    method = graphed_method()
    loss = method.loss({'views': views(0)}, 0)['loss']
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='set cuda_graphs=False'):
        loss.backward()


def test_a_dropped_forward_pass_does_not_keep_its_blocks_waiting():
    method = graphed_method()
    method.loss({'views': views(0)}, 0)
    train(method, 1)
    assert not method.student.graphs.eager


def test_moved_weights_and_frozen_ones_run_eagerly():
    eager, graphed = small_method(), graphed_method()
    train(eager, 3), train(graphed, 3)
    for method in (eager, graphed):
        for p in method.student.backbone.blocks[1].parameters():
            p.data = p.data.clone()
        for p in method.student.backbone.blocks[2].parameters():
            p.requires_grad_(False)
    assert train(eager, 2, start=3) == train(graphed, 2, start=3)
    assert_same_state(eager, graphed)
    assert graphed.student.graphs.eager == 2 * 2 * 2  # two positions, two paths, two steps


def test_resumed_from_a_state_dict_captured_anew():
    whole, first = graphed_method(), graphed_method()
    whole_losses, _ = train(whole, 3), train(first, 3)
    second = graphed_method(seed=5)
    second.load_state_dict(first.state_dict())
    assert train(second, 1, start=3) == train(whole, 1, start=3) != whole_losses[-1:]


def test_a_copy_of_the_network_has_no_graphs():
    method = graphed_method()
    train(method, 1)
    twin = copy.deepcopy(method)
    assert twin.student.graphs is None and method.student.graphs is not None
    train(twin, 1)


@pytest.mark.parametrize('keys', [6, 20, 27])
def test_the_queue_takes_keys_with_deterministic_algorithms(keys, monkeypatch):
    """For which CUDA's index_copy_ sorts its indices and, in some releases, waits; a capture would fail."""
    plain, deterministic = small_method(), small_method()
    for step in range(4):
        keys_ND = nn.functional.normalize(views(step, 27)[:keys].flatten(1)[:, :8], dim=1)
        plain.enqueue(keys_ND)
        with monkeypatch.context() as patched:
            patched.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
            patched.setattr(torch.Tensor, 'index_copy_', None)
            deterministic.enqueue(keys_ND)
    assert_same_state(plain, deterministic)


def test_a_training_with_deterministic_algorithms_is_captured(monkeypatch):
    lines, eager = [], small_method()
    losses = train(eager, 3)
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    graphed = graphed_method(lines)
    assert train(graphed, 3) == losses and graphed.captured.replayed == 3, lines
    assert_same_state(eager, graphed)


def test_gradients_that_autograd_returns_in_one_tensor_get_memory_of_their_own():
    """Two parameters that a custom block adds up; what changes one gradient in place must not change the other."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.zeros(1, 3, 16, 16, dtype=torch.float64)) for _ in range(2))

        def forward(self, x):
            return x * (self.a + self.b)

    block = CapturedBlock(Sum(), views(0)[:, 0], TapeRecorder(), dict(device_type='cpu', enabled=False))
    first, second = block.gradients
    block.run_forward(views(0)[:, 0])
    block.run_backward(torch.ones_like(block.output))
    assert torch.equal(first, second) and first.abs().sum() > 0
    first.zero_()
    assert second.abs().sum() > 0


def test_frozen_blocks_run_eagerly_and_the_others_are_captured():
    lines, eager = [], small_method()
    graphed = graphed_method(lines)
    for method in (eager, graphed):
        backbone = method.student.backbone
        for module in (*backbone.stem_modules(), backbone.blocks[0]):
            module.requires_grad_(False)
    assert train(eager, 4) == train(graphed, 4)
    assert_same_state(eager, graphed)
    student = graphed.student.graphs
    assert student.eager == 4 * 2 and student.direct_runs == 4 * 2 * 2 and not student.full, lines


def test_why_blocks_run_eagerly_is_told_once():
    lines = []
    method = graphed_method(lines)
    train(method, 4)
    method.load_state_dict({k: v.clone() for k, v in method.state_dict().items()}, assign=True)
    train(method, 3)
    assert sum('parameters or buffers were replaced' in line for line in lines) == 2  # student and teacher
    method = graphed_method(lines := [])
    train(method, 1)
    method.student.graphs.recorder.serves = lambda device: False  # as for a GPU that is not the current one
    train(method, 2)
    assert method.student.graphs.direct_runs == 2 * SMALL.num_positions
    assert sum('is not the current GPU' in line for line in lines) == 2
