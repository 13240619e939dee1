"""A step creates every tensor on the device of its operands: fake tensors of another device refuse anything else.

The other device is 'meta', since autograd asks a real accelerator for its streams even if the tensors are fake.
"""

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from pinas_zoo.methods import LinearHead
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.ranking.contestants import CONTESTANTS, build_method
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.spaces import RANK_SPACE
from pinas_zoo.ranking.train import optimise, to_device
from pinas_zoo.search.evaluate import PrefixTree

OTHER = torch.device('meta')
CLASSES, IMAGES = 5, 4
#: Their next path is read from what they have learned, or their labels from the numbers of the images, which a fake
#: tensor does not know (counted in test_waits.py).
READING = ('attentivenas', 'attentivenas_worst', 'fpnas', 'pada', 'rlnas', 'sparse')


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # autocast knows no meta device
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        yield mode


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """Moves a module to the other device with fake parameters and buffers, which `Module.to` cannot do."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module._apply(lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=OTHER))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def labelled() -> dict[str, torch.Tensor]:
    return {'image': torch.randn(IMAGES, 16, 5, 10), 'label': torch.zeros(IMAGES, dtype=torch.long)}


def batch_of(contestant, method) -> dict:
    if contestant.supervised or contestant.arch_optimiser:
        return labelled() | {'held_out': labelled()}
    return {'views': torch.randn(IMAGES, 2 * len(method.paths(0)), 16, 5, 10)}


def supernet() -> SuperNet:
    return SuperNet(RANK_SPACE, in_chans=16)


def test_a_constant_of_the_cpu_is_refused(fakes):
    with pytest.raises(RuntimeError, match='device'):
        torch.ones(2, device=OTHER) + torch.ones(2)


@pytest.mark.parametrize('name', [name for name in CONTESTANTS if name not in READING])
def test_the_steps_of_a_method(name, request):
    contestant = CONTESTANTS[name]
    method = build_method(contestant, SupernetRecipe(), supernet(), CLASSES, 0)
    request.getfixturevalue('fakes')
    moved(method)
    for part in range(method.parts(1)):
        loss = method.loss(to_device(batch_of(contestant, method), OTHER), 1, part)['loss']
        assert loss.device == OTHER
        loss.backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert gradients and {g.device for g in gradients} == {OTHER}


def test_the_linear_stage(request):
    method = LinearHead(supernet(), CLASSES)
    request.getfixturevalue('fakes')
    moved(method)
    loss = method.loss(to_device(labelled(), OTHER), 0)['loss']
    loss.backward()
    assert loss.device == OTHER == method.head.weight.grad.device


def test_the_loop_moves_the_batches(fakes, monkeypatch):
    """Runs up to the first read of the losses."""
    seen = []

    class Method(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3, device=OTHER))

        def param_groups(self):
            return {'weights': [self.weight]}

        def units(self, step):
            return 1.0

        def parts(self, step):
            return 1

        def loss(self, batch, step, part):
            seen.append({batch['image'].device, batch['held_out']['image'].device})
            return {'loss': (self.weight * batch['image']).sum()}

    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, 'SGD', lambda *args, fused, **kwargs: sgd(*args, **kwargs))  # none on meta
    monkeypatch.setattr('pinas_zoo.ranking.train._read', lambda unread, losses: None)
    images = torch.ones(3)
    optimise(Method(), iter([{'image': images, 'held_out': {'image': images}}] * 3), 3, 0.1, lambda done: 1.0)
    assert seen == [{OTHER}] * 3


def test_bn_reestimation_and_evaluation(request):
    """Everything except the read of the sums at the end: a fake tensor has no values."""
    net, head = supernet(), torch.nn.Linear(RANK_SPACE.num_features, CLASSES)
    request.getfixturevalue('fakes')
    moved(net), moved(head)
    tree = PrefixTree(net, [(0, 1, 2, 3), (0, 1, 3, 3)])
    images, labels = (to_device(labelled(), OTHER)[name] for name in ('image', 'label'))
    tree.calibrate([images, images])
    with pytest.raises(DataDependentOutputException) as raised:
        tree.evaluate([(images, labels)], head)
    (line,) = [str(entry.statement) for entry in raised.traceback if entry.path.name == 'prefix_tree.py']
    assert line.strip().startswith('means = (sums / total).tolist()')
