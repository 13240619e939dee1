"""Parts that show that the GPU computes correct results."""

import importlib.util
import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.recorder import CudaRecorder
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.space import PINAS_TINY
from pinas_zoo.speed.gpu.session import LeftOutError, Session
from pinas_zoo.speed.step import PAPER, QUICK, Sizes, Trainer
from pinas_zoo.weights.released.remap import supernet_from_released

__all__ = ['amp', 'graphs', 'host_syncs', 'parity']

#: Steps that are compared in `graphs`.
STEPS = 8


# ---- the released steps ----------------------------------------------------------------------------------------------


def parity(session: Session) -> None:
    """Four released steps against their golden values: float64, then 32 bits (where only the first step counts)."""
    place = session.root() / 'tests' / 'golden.py'
    spec = importlib.util.spec_from_file_location('golden', place)
    assert spec is not None and spec.loader is not None
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    known = golden.arrays('pinas_steps.npz')
    graphs, failed = CudaRecorder().serves(session.device), []
    cases: list[tuple[str, torch.dtype, bool, bool, str]] = [
        ('float64', torch.float64, False, False, 'eager'),
        ('float64 channels_last', torch.float64, True, False, 'eager'),
        ('float64 graphs', torch.float64, False, False, 'direct'),
        ('float64 graphs, hooks', torch.float64, False, False, 'autograd'),
        ('float32', torch.float32, False, False, 'eager'),
        ('TF32', torch.float32, False, True, 'eager'),
    ]
    for name, dtype, channels_last, tf32, way in cases:
        if (way != 'eager' and not graphs) or (tf32 and not session.cuda):
            continue
        torch.backends.cudnn.allow_tf32 = tf32
        losses, queue, method = _released_steps(session, golden, known, dtype, channels_last, way)
        apart = np.abs(losses / known['losses'] - 1)
        close = apart.max() < 1e-8 if dtype is torch.float64 else apart[0] < (1e-2 if tf32 else 1e-5)
        passed = bool(close) and _took(method, way)
        session.record(name, losses=[float(a) for a in apart], queue=queue, passed=passed, **_runs(method))
        failed += [] if passed else [name]
    torch.backends.cudnn.allow_tf32 = True
    _check(failed)


def _check(failed: list[str]) -> None:
    if failed:
        raise AssertionError(f'failed: {"; ".join(failed)}')


def _runs(method: PiNAS) -> dict[str, int]:
    """How many blocks ran in which way, and how often the loss was replayed; empty without graphs."""
    student, loss = method.student.graphs, method.captured
    if student is None or loss is None:
        return {}
    return dict(
        direct=student.direct_runs, autograd=student.autograd_runs, ran_eagerly=student.eager, loss=loss.replayed
    )


def _took(method: PiNAS, way: str) -> bool:
    """Whether every block of the student took this way ('mixed': both), and the loss came from its graph."""
    found = _runs(method)
    if way == 'eager' or not found:
        return way == 'eager' and not found
    taken = {kind for kind in ('direct', 'autograd', 'ran_eagerly') if found[kind]}
    return taken == ({'direct', 'autograd'} if way == 'mixed' else {way}) and found['loss'] > 0


def _hook(method: PiNAS) -> None:
    """Hooks that change nothing, for which all gradients go through autograd."""
    for parameter in method.student.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: None)


def _released_steps(
    session: Session, golden: Any, known: dict[str, np.ndarray], dtype: torch.dtype, channels_last: bool, way: str
) -> tuple[np.ndarray, float, PiNAS]:
    """Losses of the four steps, the distance of the queue from the golden one, and the method."""
    names = golden.keys('supernet_tiny_keys.json')
    method = PiNAS(SuperNet(PINAS_TINY), dim=32, queue_length=64, momentum=0.99, temperature=0.2)
    method.student.backbone.load_state_dict(supernet_from_released(golden.filled(names['backbone'])))
    neck = golden.filled(names['neck'])
    layers, kinds = ((2, 0), (4, 2)), ('weight', 'bias')
    method.student.projector.load_state_dict(
        {f'{ours}.{kind}': neck[f'mlp.{theirs}.{kind}'] for (ours, theirs), kind in itertools.product(layers, kinds)}
    )
    assert method.teacher is not None
    method.teacher.load_state_dict(method.student.state_dict())
    queue = torch.from_numpy(np.random.RandomState(11).standard_normal((32, 64)).astype(np.float32))
    assert method.queue is not None
    method.queue.copy_(F.normalize(queue, dim=0))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    method = to_memory_format(method.to(session.device, dtype), layout).train()
    if way != 'eager':
        method.use_graphs(CudaRecorder(), session.say)
    if way == 'autograd':
        _hook(method)
    paths = known['paths'].transpose(0, 2, 1)
    method.paths = lambda step: tuple(tuple(map(int, path)) for path in paths[step])  # type: ignore[method-assign]
    optimiser = torch.optim.SGD(method.param_groups()['weights'], lr=0.003, momentum=0.9, weight_decay=1e-4)
    losses = []
    for step in range(4):
        views = np.random.RandomState(100 + step).standard_normal((8, 4, 3, 64, 64)).astype(np.float32)
        loss = method.loss({'views': torch.from_numpy(views).to(session.device, dtype)}, step)['loss']
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    wanted = torch.from_numpy(known['queue']).double()
    assert method.queue is not None
    apart = (method.queue[:, :40].double().cpu() - wanted).norm() / wanted.norm()
    return np.array(losses), float(apart), method


# ---- graphs, waits and mixed precision -------------------------------------------------------------------------------


def _sizes(session: Session) -> Sizes:
    return QUICK if session.tiny else PAPER


def graphs(session: Session) -> None:
    """Steps at the recipe's size, twice eagerly and from graphs in either way, with deterministic kernels."""
    if not CudaRecorder().serves(session.device):
        raise LeftOutError('needs CUDA')
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    failed = []
    try:
        for form, precision, accumulate in (('bf16', torch.bfloat16, 1), ('fp16, 2 batches a step', torch.float16, 2)):
            eager, again = (_trajectory(session, precision, accumulate, 'eager') for _ in range(2))
            twice = _equal(eager, again)
            for way in ('direct', 'autograd') if accumulate == 1 else ('mixed',):
                name = f'{form}, gradients {way}'
                captured = _trajectory(session, precision, accumulate, way)
                session.record(
                    name,
                    losses=captured['losses'],
                    eager_losses=eager['losses'],
                    eager_twice_equal=twice,
                    graphs_equal=_equal(eager, captured),
                    eager_twice_apart=_apart(eager, again),
                    graphs_apart=_apart(eager, captured),
                    same_gradients=eager['gradients'] == captured['gradients'],
                    log=captured['lines'],
                    **captured['runs'],
                )
                same = eager['gradients'] == captured['gradients'] and (not twice or _equal(eager, captured))
                failed += [] if same and captured['took'] else [name]
        session.record('a capture that waits', recovered=(recovered := _recovers(session)))
        failed += [] if recovered else ['a capture that waits']
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
    _check(failed)


def _recovers(session: Session) -> bool:
    """Whether captures and the allocator work after a capture that waited for the device, as a custom block may."""
    recorder, x = CudaRecorder(), torch.ones(1, device=session.device)
    try:
        recorder.record(x.item, recorder.pool(True))
    except RuntimeError:
        session.free()
        result, replay = recorder.record(x.exp, recorder.pool(True))
        replay()
        return bool(torch.equal(result, x.exp()))
    return False


def _trajectory(session: Session, precision: torch.dtype, accumulate: int, way: str) -> dict[str, Any]:
    session.free()
    trainer = Trainer(_sizes(session), 'contiguous', 0, session.device, precision, graphs=way != 'eager')
    if way == 'autograd':
        _hook(trainer.method)
    generator = torch.Generator(session.device).manual_seed(7)
    losses, gradients = [], []
    for step in range(STEPS):
        for part in range(accumulate):
            trainer.batch['views'].normal_(generator=generator)
            # Without the cache the eager step also adds up the gradients of shared weights in float32.
            with trainer.autocast(cache=False):
                loss = trainer.method.loss(trainer.batch, step, part)['loss']
            losses.append(loss.detach())
            trainer.scaler.scale(loss).backward()
        gradients.append([p.grad is not None for p in trainer.method.parameters()])
        trainer.move()
    return {
        'losses': torch.stack(losses).tolist(),
        'gradients': gradients,
        'state': {name: value.clone() for name, value in trainer.method.state_dict().items()},
        'runs': _runs(trainer.method),
        'took': _took(trainer.method, way),
        'lines': trainer.lines,
    }


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    same = all(torch.equal(value, b['state'][name]) for name, value in a['state'].items())
    return same and a['losses'] == b['losses']


def _apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest relative difference of a tensor of the final state."""
    pairs = [(v.float(), b['state'][k].float()) for k, v in a['state'].items() if v.is_floating_point()]
    ratios = torch.stack([(x - y).norm() / x.norm().clamp(min=1e-12) for x, y in pairs])
    return float(ratios.max())


def host_syncs(session: Session) -> None:
    """Checks that loss, backward pass and fused SGD never wait for the device."""
    failed = []
    for way in ('eager', 'direct', 'autograd') if session.cuda else ('eager',):
        graphs = way != 'eager'
        trainer = Trainer(_sizes(session), 'contiguous', 0, session.device, torch.bfloat16, graphs, pairs=1)
        if way == 'autograd':
            _hook(trainer.method)
        for step in range(3):
            trainer.ours(step)
        session.synchronise()
        found = 'none'
        if session.cuda:
            torch.cuda.set_sync_debug_mode('error')
        try:
            trainer.ours(3)
        except RuntimeError as error:
            found = str(error).splitlines()[0][:200]
        finally:
            if session.cuda:
                torch.cuda.set_sync_debug_mode('default')
        session.record(f'graphs, gradients {way}' if graphs else way, waits=found, **_runs(trainer.method))
        failed += [] if found == 'none' else [way]
    _check(failed)


def amp(session: Session) -> None:
    """Losses of the same two batches, alternating, under float32, bf16, and fp16 with its scaler."""
    sizes = QUICK if session.tiny else Sizes('pinas', 24, 128, 4096)
    cases: dict[str, tuple[torch.dtype | None, str]] = {
        'fp32': (None, 'fused'), 'bf16': (torch.bfloat16, 'fused'), 'fp16, fused': (torch.float16, 'fused'),
        'fp16, foreach': (torch.float16, 'foreach'),
    }  # fmt: skip
    batches: list[Tensor] | None = None
    for name, (precision, optimiser) in cases.items():
        if precision is torch.float16 and not session.cuda:
            continue
        trainer = Trainer(sizes, 'contiguous', 1, session.device, precision, session.cuda)
        batches = batches or [torch.randn_like(trainer.batch['views']) for _ in range(2)]
        losses = []
        for step in range(4 if session.tiny else 12):
            trainer.batch['views'] = batches[step % 2]
            losses.append(trainer.ours(step, optimiser))
        finite = torch.stack([p.isfinite().all() for p in trainer.method.parameters()]).all()
        found = torch.stack(losses).tolist()
        session.record(name, first=found[0], last=found[-1], scale=trainer.scaler.get_scale(), finite=bool(finite))
