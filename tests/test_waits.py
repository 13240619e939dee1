"""How often a training step reads a value from the device, which on a GPU waits for it: counted on the CPU."""

import traceback
from pathlib import Path

import pytest
import torch
from peer_toys import optimisers, pair
from test_contrast import small_method, views
from test_methods import make
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pinas_zoo
from pinas_zoo.methods import METHODS, LinearHead

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}
COPIES = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}


#: Not a part of a path's name: an environment may lie in a folder of the same name.
PACKAGE = str(Path(pinas_zoo.__file__).parent)


class Reads(TorchDispatchMode):
    """Records every `.item()`, `bool(tensor)`, mask index and `nonzero`: where it was called from."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def note(self) -> None:
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(PACKAGE)]
        self.places.append(f'{frames[-1].filename.split("/")[-1]}:{frames[-1].lineno}' if frames else 'elsewhere')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype is torch.bool for i in args[1])
        if func in READS or by_mask:
            self.note()
        return func(*args, **kwargs or {})


class Copies(TorchFunctionMode):
    """Records every `.tolist()`, `.cpu()` and `.numpy()` of a tensor, for which a CPU runs no operator."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in COPIES:
            self.reads.note()
        return func(*args, **kwargs or {})


def reads(step) -> list[str]:
    """Where one step reads values, after one that has initialised its states."""
    step(0)
    with Reads() as found, Copies(found):
        step(1)
    return found.places


def test_the_counter_counts():
    x = torch.ones(2)
    with Reads() as found, Copies(found):
        x.sum().item(), bool(x.any()), x[x > 0], x.tolist(), x.cpu(), x + 1
    assert len(found.places) == 5


@pytest.mark.parametrize('switches', [{}, dict(mean_teacher=False), dict(negatives=False), dict(single_path=True)])
def test_a_step_of_pinas_reads_nothing(switches):
    method = small_method(**switches)
    optimiser = torch.optim.SGD(method.param_groups()['weights'], 0.05, 0.9, foreach=True)

    def step(index: int) -> None:
        method.loss({'views': views(index)}, index)['loss'].backward()
        optimiser.step()
        optimiser.zero_grad()

    assert reads(step) == []


#: Paths that follow from what has been learned are read where they are drawn; the rest reads nothing. FP-NAS copies
#: its probabilities once per part, which are two calls.
ALLOWED = {'FPNAS': 4, 'EnTranNAS': 4, 'SparseSupernet': 1, 'AttentiveNAS': 2}


@pytest.mark.parametrize('name', [*METHODS, 'LinearHead'])
def test_a_step_of_a_peer(name):
    alternates = dict(warmup_steps=0) if name in ('FPNAS', 'EnTranNAS', 'SparseSupernet') else {}
    method = make(METHODS.get(name, LinearHead), **alternates)
    movers = optimisers(method)

    def step(index: int) -> None:
        for part in range(method.parts(index)):
            method.loss(pair(index), index, part)['loss'].backward()
        for mover in movers:
            mover.step()
            mover.zero_grad()

    found = [place for place in reads(step) if place != 'elsewhere']  # Adam counts its steps on the host
    assert len(found) <= ALLOWED.get(name, 0), found
