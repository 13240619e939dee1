"""Pi-NAS against the released steps, a slow re-implementation, and itself on two ranks."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from golden import arrays, filled, keys
from ranks import run_on_ranks

from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import PINAS_TINY, SearchSpace
from pinas_zoo.weights.released.remap import supernet_from_released

SMALL = SearchSpace('small', depths=(1, 2), planes=(16, 32), strides=(1, 2), stem_widths=(8, 8, 16), input_size=16)


def small_method(seed: int = 0, **switches) -> PiNAS:
    torch.manual_seed(seed)
    net = SuperNet(SMALL, zero_init_last=False)
    settings = dict(dim=8, queue_length=20, momentum=0.9, seed=3) | switches
    return PiNAS(net, **settings).double().train()


def views(step: int, images: int = 6) -> torch.Tensor:
    rng = np.random.RandomState(step)
    return torch.from_numpy(rng.standard_normal((images, 4, 3, 16, 16)))


def sgd(method: PiNAS) -> torch.optim.SGD:
    parameters = method.param_groups()['weights']
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4)


def train(method: PiNAS, steps: int, images: int = 6) -> list[float]:
    optimiser, losses = sgd(method), []
    for step in range(steps):
        loss = method.loss({'views': views(step, images)}, step)['loss']
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


# ---- the released method ------------------------------------------------------------------------


@pytest.fixture(scope='module')
def golden_run():
    """Four training steps from the golden state; also the golden arrays."""
    golden, names = arrays('pinas_steps.npz'), keys('supernet_tiny_keys.json')
    method = PiNAS(SuperNet(PINAS_TINY), dim=32, queue_length=64, momentum=0.99, temperature=0.2)
    backbone = supernet_from_released(filled(names['backbone']))
    neck = filled(names['neck'])
    projector = {
        f'{ours}.{kind}': neck[f'mlp.{theirs}.{kind}']
        for ours, theirs in ((2, 0), (4, 2))
        for kind in ('weight', 'bias')
    }
    method.student.backbone.load_state_dict(backbone)
    method.student.projector.load_state_dict(projector)
    method.teacher.load_state_dict(method.student.state_dict())
    queue = torch.from_numpy(np.random.RandomState(11).standard_normal((32, 64)).astype(np.float32))
    method.queue.copy_(F.normalize(queue, dim=0))
    method.double().train()
    paths = golden['paths'].transpose(0, 2, 1)
    method.paths = lambda step: tuple(tuple(map(int, path)) for path in paths[step])
    optimiser = torch.optim.SGD(method.param_groups()['weights'], lr=0.003, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(4):
        rng = np.random.RandomState(100 + step)
        x = rng.standard_normal((8, 4, 3, 64, 64)).astype(np.float32)
        loss = method.loss({'views': torch.from_numpy(x).double()}, step)['loss']
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return golden, method, losses


def assert_close_to_golden(ours: torch.Tensor, golden: np.ndarray, name: str) -> None:
    # 1e-8 of the tensor's largest value: four chaotic steps amplify the last bit of float64 (another
    # thread count alone moves conv1.0.weight by 2e-9), which elements near zero do not survive.
    scale = np.abs(golden).max()
    np.testing.assert_allclose(ours.detach().numpy(), golden, rtol=0, atol=1e-8 * scale, err_msg=name)


def test_four_released_steps(golden_run):
    golden, method, losses = golden_run
    np.testing.assert_allclose(losses, golden['losses'], rtol=1e-8)
    assert_close_to_golden(method.queue[:, :40], golden['queue'], 'queue')
    assert method.queue_ptr.tolist() == golden['queue_ptr'].tolist()


def test_four_released_steps_tensors(golden_run):
    golden, method, _ = golden_run
    checked = 0
    for side, encoder in (('q', method.student), ('k', method.teacher)):
        state = encoder.backbone.state_dict()
        for name in (n for n in golden if n.startswith(f'{side}.')):
            if name.endswith('neck.mlp.2.weight'):
                ours = encoder.projector[4].weight[:4]
            else:
                (renamed,) = supernet_from_released({name[2:]: torch.empty(0)})
                ours = state[renamed]
            assert_close_to_golden(ours, golden[name], name)
            checked += 1
    assert checked == 12


# ---- a slow re-statement ------------------------------------------------------------------------


def naive_train(method: PiNAS, batches: list[list[torch.Tensor]], orders=None) -> list[float]:
    """Restates loss, teacher and queue with loops and copies; one inner list of batches per step, one batch per rank.

    Uses the method's networks and paths only. `orders[step][path]` shuffles key images over the ranks.
    """
    optimiser, all_losses = sgd(method), []
    student, teacher = method.student, method.teacher
    for step, ranks in enumerate(batches):
        paths = method.paths(step)
        q, k = [], []
        for p, path in enumerate(paths):
            q.append(
                [
                    F.normalize(torch.nn.Sequential.forward(student.projector, student.backbone(v[:, 2 * p], path)))
                    for v in ranks
                ]
            )
            space = student.backbone.space
            touched = {'conv1', 'bn1', 'projector'}
            for name, parameter in student.named_parameters():
                parts = name.split('.')
                on_path = parts[0] == 'projector' or parts[1] in touched
                if parts[1] == 'blocks':
                    on_path = parts[3] == 'downsample' or int(parts[4]) == path[int(parts[2])]
                if on_path:
                    target = dict(teacher.named_parameters())[name]
                    m = method.momentum
                    target.data = target.data * m + parameter.data * (1 - m)
            assert space.num_positions == len(path)
            with torch.no_grad():
                images = torch.cat([v[:, 2 * p + 1] for v in ranks])
                order = np.arange(len(images)) if orders is None else orders[step][p]
                out = torch.empty(len(images), method.queue.shape[0], dtype=torch.float64)
                for rank_order in order.reshape(len(ranks), -1):
                    e = torch.nn.Sequential.forward(teacher.projector, teacher.backbone(images[rank_order], path))
                    out[rank_order] = F.normalize(e)
                k.append(list(out.chunk(len(ranks))))
        losses = []
        for r in range(len(ranks)):
            loss = 0
            for p in range(2):
                positive = (q[p][r] * k[1 - p][r]).sum(1, keepdim=True)
                logits = torch.cat([positive, q[p][r] @ method.queue.clone()], 1) / method.temperature
                loss = loss + F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
            losses.append(loss)
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
        for key in (torch.cat(k[0]) + torch.cat(k[1])) / 2:
            method.queue[:, int(method.queue_ptr)] = key
            method.queue_ptr[0] = (int(method.queue_ptr) + 1) % method.queue.shape[1]
        all_losses.append([loss.item() for loss in losses])
    return all_losses


def assert_same_state(a: PiNAS, b: PiNAS, skip: str = '\0') -> None:
    other = b.state_dict()
    for name, tensor in a.state_dict().items():
        if skip not in name:
            torch.testing.assert_close(tensor, other[name], rtol=1e-8, atol=1e-10, msg=name)


def test_agrees_with_naive_restatement():
    ours = small_method()
    naive = copy.deepcopy(ours)
    losses = train(ours, 5)
    expected = naive_train(naive, [[views(step)] for step in range(5)])
    np.testing.assert_allclose(losses, np.ravel(expected), rtol=1e-8)
    assert_same_state(ours, naive)


def _rank_main(rank: int, port_file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{port_file}', rank=rank, world_size=2)
    method = small_method()
    wrapped = torch.nn.parallel.DistributedDataParallel(
        LossModule(method), broadcast_buffers=False, find_unused_parameters=True
    )
    optimiser, losses = sgd(method), []
    for step in range(5):
        loss = wrapped(views(step, 12).chunk(2)[rank], step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    torch.save({'losses': losses, 'state': method.state_dict()}, f'{out}/{rank}.pt')
    dist.destroy_process_group()


class LossModule(torch.nn.Module):
    """What a data-parallel wrapper needs: the loss as a forward."""

    def __init__(self, method: PiNAS) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: torch.Tensor, step: int) -> torch.Tensor:
        return self.method.loss({'views': x}, step)['loss']


@pytest.mark.processes
def test_two_ranks_agree_with_naive_restatement(tmp_path):
    run_on_ranks(_rank_main, str(tmp_path / 'rendezvous'), str(tmp_path))
    ranks = [torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in range(2)]
    for name, tensor in ranks[0]['state'].items():
        if 'running_' not in name:  # each rank's BN has seen its own data
            assert torch.equal(tensor, ranks[1]['state'][name]), name
    naive = small_method()
    orders = [[np.random.default_rng([3, step, 0, path]).permutation(12) for path in range(2)] for step in range(5)]
    expected = naive_train(naive, [list(views(s, 12).chunk(2)) for s in range(5)], orders)
    np.testing.assert_allclose(np.transpose([r['losses'] for r in ranks]), expected, rtol=1e-8)
    for name, tensor in naive.state_dict().items():
        if 'running_' not in name and 'num_batches' not in name:
            torch.testing.assert_close(ranks[0]['state'][name], tensor, rtol=1e-8, atol=1e-10, msg=name)


# ---- order of events, switches, queue -----------------------------------------------------------


def test_query_of_one_path_meets_key_of_the_other():
    a, b = small_method(), small_method(cross_path=False)
    x = views(0)
    crossed = a.loss({'views': x}, 0)['loss']
    straight = b.loss({'views': x}, 0)['loss']
    swapped = small_method()
    swapped.embed_keys, original, stash = None, swapped.embed_keys, []
    swapped.embed_keys = lambda *args: stash.append(original(*args)) or stash[-1]
    swapped.loss({'views': x}, 0)
    q = [swapped.student(x[:, 2 * i], path) for i, path in enumerate(swapped.paths(0))]
    fresh = small_method()  # the queue before its update
    terms = {
        pairing: sum(fresh.term(q[i], stash[j])[0] for i, j in pairing)
        for pairing in (((0, 1), (1, 0)), ((0, 0), (1, 1)))
    }
    torch.testing.assert_close(crossed, terms[(0, 1), (1, 0)], rtol=1e-8, atol=0)
    torch.testing.assert_close(straight, terms[(0, 0), (1, 1)], rtol=1e-8, atol=0)
    assert not torch.isclose(crossed, straight)


def test_teacher_moves_once_for_path_modules_and_twice_for_shared_ones():
    method = small_method()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.zero_()
    before = copy.deepcopy(method.student.state_dict())
    method.loss({'views': views(0)}, 0)
    a, b = method.paths(0)
    for name, k in method.teacher.named_parameters():
        parts = name.split('.')
        if 'candidates' in parts:
            choice, position = int(parts[4]), int(parts[2])
            share = 0.1 if choice in (a[position], b[position]) else 0.0
        else:
            share = 0.19  # m (1 - m) + (1 - m): stem, shortcuts, projector
        torch.testing.assert_close(k.data, before[name] * share, rtol=1e-9, atol=1e-12, msg=name)


def test_teacher_moves_in_the_first_part_only_and_queue_takes_every_part():
    method = small_method()
    method.loss({'views': views(0)}, 0)
    teacher = [p.clone() for p in method.teacher.parameters()]
    method.loss({'views': views(1)}, 0, part=1)
    assert all(torch.equal(a, b) for a, b in zip(teacher, method.teacher.parameters(), strict=True))
    assert method.queue_ptr.item() == 12


@pytest.mark.parametrize('sizes', [(6, 6, 6, 6), (7, 3, 20), (45,), (1, 19, 1)])
def test_queue_takes_any_batch(sizes):
    method, expected, pointer = small_method(), None, 0
    expected = method.queue.clone()
    for size in sizes:
        keys_ND = F.normalize(torch.randn(size, 8, dtype=torch.float64), dim=1)
        method.enqueue(keys_ND)
        for key in keys_ND:
            expected[:, pointer] = key
            pointer = (pointer + 1) % 20
    assert torch.equal(method.queue, expected) and method.queue_ptr.item() == pointer


def test_queue_takes_the_mean_key_not_renormalised():
    method, stash = small_method(), []
    original = method.embed_keys
    method.embed_keys = lambda *args: stash.append(original(*args)) or stash[-1]
    method.loss({'views': views(0)}, 0)
    torch.testing.assert_close(method.queue[:, :6].t(), (stash[0] + stash[1]) / 2)
    assert method.queue[:, :6].norm(dim=0).max() < 1


def test_without_teacher_keys_come_from_the_student_without_gradient():
    method = small_method(mean_teacher=False)
    assert method.teacher is None and not any('teacher' in n for n in method.state_dict())
    key = method.embed_keys(views(0)[:, 0], method.paths(0)[0], (0, 0, 0))
    assert not key.requires_grad
    torch.testing.assert_close(key, method.student(views(0)[:, 0], method.paths(0)[0]).detach())
    assert np.isfinite(train(method, 2)).all() and method.teacher_distance(method.paths(0)[0]) == 0


def test_without_negatives_the_loss_is_a_distance_and_there_is_no_queue():
    method = small_method(negatives=False)
    assert method.queue is None and 'queue' not in method.state_dict()
    loss = method.loss({'views': views(0)}, 0)['loss']
    assert 0 < loss < 8
    q_ND = F.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1)
    assert method.term(q_ND, q_ND)[0].abs() < 1e-12
    torch.testing.assert_close(method.term(q_ND, -q_ND)[0], torch.tensor(4.0, dtype=torch.float64))


def test_single_path_is_moco():
    method = small_method(single_path=True)
    x = views(0)
    (path,) = method.paths(0)
    loss = small_method(single_path=True).loss({'views': x[:, :2]}, 0)['loss']
    q_ND = method.student(x[:, 0], path)
    method.update_teacher(path)
    k_ND = method.embed_keys(x[:, 1], path, (0, 0, 0))
    logits = torch.cat([(q_ND * k_ND).sum(1, keepdim=True), q_ND @ method.queue], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_paths_depend_on_seed_and_step_alone():
    a, b = small_method(0), small_method(1)
    assert [a.paths(s) for s in range(9)] == [b.paths(s) for s in reversed(range(9))][::-1]
    assert a.paths(0) != a.paths(1)
    assert all(x != y for s in range(50) for x, y in zip(*a.paths(s), strict=True))


def test_gradient_matches_cross_entropy_with_a_written_queue():
    method = small_method()
    q_ND = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=1).requires_grad_()
    k_ND = F.normalize(torch.randn(6, 8, dtype=torch.float64), dim=1)
    logits = torch.cat([(q_ND * k_ND).sum(1, keepdim=True), q_ND @ method.queue], 1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    (gradient,) = torch.autograd.grad(expected, q_ND)
    loss, top1 = method.term(q_ND, k_ND)
    method.queue.zero_()  # what a step does before its backward pass
    torch.testing.assert_close(torch.autograd.grad(loss, q_ND)[0], gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, expected)
    assert top1 == (logits.argmax(1) == 0).double().mean() * 100


def test_paper_space_counts_95_98_million_parameters():
    with torch.device('meta'):
        method = PiNAS(SuperNet(), mean_teacher=False, queue_length=1)
    assert sum(p.numel() for p in method.student.parameters()) == 95_981_012


def test_settings_out_of_range():
    with pytest.raises(ValueError, match='momentum=1.5'):
        small_method(momentum=1.5)


def test_the_projector_can_start_as_released() -> None:
    """Kaiming-normal for ReLU and biases at 0; without it the parameters are those that they always were."""
    plain, released = small_method(), small_method(released_init=True)
    for layer in (2, 4):
        weight = released.student.projector[layer].weight.detach()
        spread = (2 / weight.shape[1]) ** 0.5
        assert (
            weight.std() == pytest.approx(spread, rel=0.1) and released.student.projector[layer].bias.abs().max() == 0
        )
        assert plain.student.projector[layer].weight.detach().std() == pytest.approx(spread / 6**0.5, rel=0.1)
        assert torch.equal(released.teacher.projector[layer].weight, weight)
    torch.manual_seed(0)
    SuperNet(SMALL, zero_init_last=False)
    assert torch.equal(plain.student.projector[2].weight, torch.nn.Linear(128, 128).weight.double())
