"""Supernet pre-training through the real runner: kills, two processes, accumulation, parts, AMP, switches."""

import copy
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip('mmengine')
pytestmark = pytest.mark.mm

import engine_utils  # noqa: E402
from mmengine.dist import get_rank  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.logging import MessageHub  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402

from pinas_zoo.mm.engine import launch  # noqa: E402
from pinas_zoo.mm.engine.checkpoint_hook import NonFiniteError, unwrap  # noqa: E402
from pinas_zoo.mm.engine.hooks import path_names  # noqa: E402
from pinas_zoo.mm.pretrain import MethodOptimWrapperConstructor, SupernetPretraining  # noqa: E402
from pinas_zoo.registry import HOOKS, MODELS  # noqa: E402
from pinas_zoo.space import SearchSpace  # noqa: E402

CONFIG = engine_utils.ROOT / 'configs/quickstart/pinas-nano-supernet_b128-coslr_fmnist.py'
SPACE = SearchSpace('small', (1, 2), (16, 32), (1, 2), (8, 8, 16), stem_pool=False, input_size=16)
BATCH, QUEUE, ITERATIONS = 8, 64, 12
EXPERIMENTS = itertools.count()

TEXT = """
_base_ = {base!r}
custom_imports = dict(imports=['test_pretrain'], allow_failed_imports=False)
model = dict(space=dict(_delete_=True, **{space!r}), method=dict(dim=16, queue_length={queue}, momentum=0.9))
train_dataloader = dict(
    batch_size={batch}, num_workers={workers},
    dataset=dict(dataset=dict(size=16, source=dict(_delete_=True, kind='folder', root={images!r}))),
)
train_cfg = dict(max_iters={iterations})
param_scheduler = dict(T_max={iterations})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3))
custom_hooks = [
    dict(type='pinas_zoo.NonFiniteGuardHook'), dict(type='pinas_zoo.PathLogHook'), dict(type='pinas_zoo.TraceHook')
]
"""


def colours(batch: dict) -> torch.Tensor:
    return batch['views'].mean((0, 1, 3, 4))


def learning_rates(runner: Any) -> list[float]:
    return [float(lr) for lr in runner.message_hub.get_scalar('train/lr').data[0]]


@HOOKS.register_module()
class TraceHook(Hook):
    """Keeps the model, its batches and paths; every rank writes its state at the end."""

    priority = 'VERY_LOW'
    last: 'TraceHook'

    def before_train(self, runner: Any) -> None:
        type(self).last = self
        self.start = copy.deepcopy(unwrap(runner.model))
        self.states, self.batches, self.paths = [], [], []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        model = unwrap(runner.model)
        self.states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        self.batches.append(data_batch)
        self.paths.append(path_names(model))

    def after_train(self, runner: Any) -> None:
        content = {'state': self.states[-1] if self.states else {}, 'paths': self.paths}
        content['optimizer'] = runner.optim_wrapper.state_dict()
        content['colours'] = [colours(batch) for batch in self.batches]
        content['lr'] = learning_rates(runner)
        torch.save(content, Path(runner.work_dir, f'rank{get_rank()}.pth'))


@MODELS.register_module()
class TwoParts(nn.Module):
    """Only the documented interface: part 0 trains `first` and `shared`, part 1 `second` and `shared`."""

    supernet = None  # nothing of it is trained here

    def __init__(self, supernet: nn.Module | None = None, seed: int = 0) -> None:
        super().__init__()
        self.first, self.second, self.shared = (nn.Parameter(torch.ones(3)) for _ in range(3))
        self.calls: list[tuple[int, int]] = []

    def paths(self, step: int) -> tuple:
        return ()

    def units(self, step: int) -> float:
        return 2.0

    def log_scalars(self, step: int) -> dict:
        return {}

    def parts(self, step: int) -> int:
        return 2

    def loss(self, batch: dict, step: int, part: int = 0) -> dict:
        self.calls.append((step, part))
        return {'loss': self.term(colours(batch), part)}

    def term(self, colours: torch.Tensor, part: int) -> torch.Tensor:
        own = (self.first, self.second)[part % 2]
        return ((own * self.shared * colours) ** 2).sum() * (part + 1)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return {'weights': list(self.parameters())}

    def score(self, arch: tuple[int, ...]) -> None:
        return None


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Writes the shrunk quickstart config, on a folder of 40 images."""
    root = tmp_path_factory.mktemp('pretrain')
    rng = np.random.default_rng(0)
    for index in range(40):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f'{index:02}.png')

    def write(name: str = 'small', workers: int = 0, iterations: int = ITERATIONS) -> Path:
        path = root / f'{name}.py'
        values = dict(base=str(CONFIG), space=SPACE.to_dict(), queue=QUEUE, batch=BATCH, images=str(root))
        path.write_text(TEXT.format(workers=workers, iterations=iterations, **values))
        return path

    return write


@pytest.fixture
def train(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains in this process; returns the runner."""
    threads = torch.get_num_threads()
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'PINAS_THREADS', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
        monkeypatch.setenv(name, '1')
    # Both take longer than the training: yapf over the config's text, and a look at compilers.
    monkeypatch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, True))
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)

    def run(iterations: int = 2, amp: bool = False, **changes: Any) -> Any:
        # mmengine names its logs and its message hub by the second.
        changes['experiment_name'] = f'pretrain{next(EXPERIMENTS)}'
        changes = {key.replace('__', '.'): value for key, value in changes.items()}
        options = launch.Options(str(tmp_path / 'run'), cfg_options=changes, amp=amp, launcher='none')
        return launch.train(config(iterations=iterations), options)

    yield run
    torch.set_num_threads(threads)


# ---- exact resuming -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def reference(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run without data workers."""
    work_dir = tmp_path_factory.mktemp('reference')
    result = engine_utils.run_train(config(), work_dir)
    assert result.returncode == 0, result.stdout[-3000:]
    return work_dir


def random_kills(seed: int, count: int) -> list[tuple[int, str]]:
    chooser = random.Random(seed)
    at = sorted(chooser.sample(range(2, ITERATIONS + 1), count))
    return [(iteration, chooser.choice(('step', 'write', 'saved'))) for iteration in at]


@pytest.mark.slow
def test_a_run_logs_and_saves_everything(reference: Path) -> None:
    content, logged = engine_utils.last_checkpoint(reference), engine_utils.logged(reference)
    state = content['state_dict']
    assert state['method.queue_ptr'].item() == BATCH * ITERATIONS % QUEUE
    moved = [k for k, v in state.items() if k.startswith('method.student.') and v.is_floating_point()]
    assert any(not torch.equal(state[k], state[k.replace('student', 'teacher')]) for k in moved)
    assert content['optimizer']['state'] and content['meta']['iter'] == ITERATIONS
    assert json.loads(content['meta']['space'])['depths'] and 'arch' not in content['meta']
    for name in ('loss', 'top1', 'feature_std', 'teacher_distance', 'lr', 'paths'):
        assert (ITERATIONS, name) in logged, name
    assert len({str(logged[step, 'paths']) for step in range(1, ITERATIONS + 1)}) == ITERATIONS


@pytest.mark.slow
@pytest.mark.parametrize('workers, kills', [(0, 3), (2, 2)])
def test_kills_change_nothing(workers: int, kills: int, config: Any, reference: Path, tmp_path: Path) -> None:
    path = config(f'workers{workers}', workers) if workers else config()
    engine_utils.run_killed(path, tmp_path, random_kills(seed=workers, count=kills))
    # Weights, queue, teacher, optimiser, random states, logs; only the text of the config names the workers.
    differences = engine_utils.differences(reference, tmp_path)
    assert [name for name in differences if not (workers and '.cfg: ' in name)] == []
    assert engine_utils.logged(reference) == engine_utils.logged(tmp_path)
    ends = [torch.load(folder / 'rank0.pth', weights_only=True) for folder in (reference, tmp_path)]
    assert all(torch.equal(ends[1]['state'][name], tensor) for name, tensor in ends[0]['state'].items())


# ---- two processes ------------------------------------------------------------------------------


def train_on_two(config: Path, work_dir: Path, *options: str) -> list[dict]:
    """The final state of both ranks of `tools/dist_train.sh CONFIG 2`."""
    words = [str(engine_utils.ROOT / 'tools/dist_train.sh'), str(config), '2', '--work-dir', str(work_dir), *options]
    result = engine_utils.run_tool(*words, program=['bash'])
    assert result.returncode == 0, result.stdout[-3000:]
    return [torch.load(work_dir / f'rank{rank}.pth', weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_hold_the_same(config: Any, tmp_path: Path) -> None:
    options = ('--cfg-options', 'randomness.diff_rank_seed=True')  # the hardest case: nothing is equal by chance
    first, second = train_on_two(config('two', iterations=3), tmp_path, *options)
    assert first['paths'] == second['paths'] and len(first['paths']) == 3
    assert first['state']['method.queue_ptr'].item() == 2 * 3 * BATCH  # less than the queue
    buffers = ('running_mean', 'running_var')  # of the rank's own data
    unequal = {name for name, tensor in first['state'].items() if not torch.equal(tensor, second['state'][name])}
    assert {name for name in unequal if not name.endswith(buffers)} == set()
    assert any('student' in name for name in unequal) and any('teacher' in name for name in unequal)
    momenta = [rank['optimizer']['state'] for rank in (first, second)]
    assert momenta[0].keys() == momenta[1].keys() != set()
    for key, entry in momenta[0].items():
        assert torch.equal(entry['momentum_buffer'], momenta[1][key]['momentum_buffer'])
    saved = engine_utils.last_checkpoint(tmp_path)['state_dict']
    assert all(torch.equal(saved[name], tensor) for name, tensor in first['state'].items())


@pytest.mark.slow
def test_two_processes_sum_parts_and_accumulate(config: Any, tmp_path: Path) -> None:
    """Parameters that only one part uses get the mean of the ranks' gradients too."""
    options = ['model.method._delete_=True', 'model.method.type=pinas_zoo.TwoParts']
    options += ['optim_wrapper.accumulative_counts=2']
    ranks = train_on_two(config('parts', iterations=4), tmp_path, '--cfg-options', *options)
    method = TwoParts()
    optimiser = torch.optim.SGD(method.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4)
    for iteration in range(4):
        micro = iteration % 2
        terms = [method.term(rank['colours'][iteration], 2 * micro + part) for rank in ranks for part in range(2)]
        (sum(terms) / len(ranks) / 2).backward()
        if micro:
            optimiser.param_groups[0]['lr'] = ranks[0]['lr'][iteration]
            optimiser.step()
            optimiser.zero_grad()
    for name, parameter in method.named_parameters():
        values = [rank['state'][f'method.{name}'] for rank in ranks]
        assert torch.equal(*values) and not torch.equal(values[0], torch.ones(3)), name
        torch.testing.assert_close(values[0], parameter.detach(), rtol=1e-6, atol=0)


# ---- what a step is -----------------------------------------------------------------------------


def by_hand(trace: TraceHook, accumulate: int, lrs: list[float]) -> dict[str, torch.Tensor]:
    """Repeats the traced run in plain torch: parts are counted within a step, losses are averaged."""
    method = trace.start.method.train()
    optimiser = torch.optim.SGD(method.student.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4, foreach=True)
    for iteration, batch in enumerate(trace.batches):
        step, micro = divmod(iteration, accumulate)
        loss = method.loss({'views': batch['views']}, step, part=micro)['loss']
        (loss / accumulate).backward()
        if micro == accumulate - 1:
            optimiser.param_groups[0]['lr'] = lrs[iteration]
            optimiser.step()
            optimiser.zero_grad()
    return {f'method.{name}': tensor for name, tensor in method.state_dict().items()}


@pytest.mark.parametrize('accumulate', [1, 2])
def test_accumulation(accumulate: int, train: Any) -> None:
    kernel = dict(optim_wrapper__optimizer__fused=False, optim_wrapper__optimizer__foreach=True)
    runner = train(4, optim_wrapper__accumulative_counts=accumulate, **kernel)
    trace = TraceHook.last
    states = [trace.start.state_dict(), *trace.states]

    def moved(part: str) -> list[bool]:
        weights = [{k: v for k, v in s.items() if part in k and k.endswith(('weight', 'bias'))} for s in states]
        return [any(not torch.equal(one[k], other[k]) for k in one) for one, other in itertools.pairwise(weights)]

    steps = [[True, True, True, True], [False, True, False, True]][accumulate - 1]
    assert moved('student') == steps
    # The teacher follows in a step's first micro-step, before the student moves: nothing to follow in the first one.
    assert moved('teacher')[2:] == [[True, True], [True, False]][accumulate - 1]
    assert [int(s['method.queue_ptr']) for s in states] == [BATCH * n for n in range(5)]
    assert all(trace.paths[n] == trace.paths[n - n % accumulate] for n in range(4))
    assert trace.paths[0] != trace.paths[2]
    expected = by_hand(trace, accumulate, learning_rates(runner))
    assert all(torch.equal(trace.states[-1][name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize('accumulate', [1, 2])
def test_parts_sum_their_gradients(accumulate: int) -> None:
    """`train_step` itself, with mmengine's optimiser wrapper."""
    model = SupernetPretraining(SPACE, dict(type='pinas_zoo.TwoParts'))
    settings = dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=accumulate)
    wrapper = MethodOptimWrapperConstructor(settings)(model)
    assert type(wrapper) is OptimWrapper
    steps, original = [], wrapper.optimizer.step
    wrapper.optimizer.step = lambda *args, **kwargs: (steps.append(1), original(*args, **kwargs))
    wrapper.initialize_count_status(model, 0, 4)
    hub = MessageHub.get_instance(f'parts{next(EXPERIMENTS)}')
    twin = copy.deepcopy(model.method)
    optimiser = torch.optim.SGD(twin.parameters(), lr=0.1)
    for iteration in range(4):
        batch = {'views': torch.randn(2, 4, 3, 16, 16)}
        hub.update_info('iter', iteration)
        logs = model.train_step(batch, wrapper)
        step, micro = divmod(iteration, accumulate)
        losses = [twin.loss(batch, step, micro * 2 + part)['loss'] for part in range(2)]
        assert torch.allclose(logs['loss'], sum(losses) / 2)
        (sum(losses) / accumulate).backward()
        if micro == accumulate - 1:
            optimiser.step()
            optimiser.zero_grad()
    assert model.method.calls == twin.calls and len(steps) == 4 // accumulate
    for ours, theirs in zip(model.method.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        assert not torch.equal(ours, torch.ones(3))


def test_a_method_with_parts_runs(train: Any) -> None:
    """A method needs no members beyond the four documented ones."""
    method = {'model.method': {'_delete_': True, 'type': 'pinas_zoo.TwoParts'}}
    runner = train(2, **method)
    assert runner.model.method.calls == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_amp_on_a_cpu(train: Any) -> None:
    runner = train(3, amp=True)
    assert type(runner.optim_wrapper).__name__ == 'BFloat16OptimWrapper'
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert all(v.dtype in (torch.float32, torch.int64) for v in runner.model.state_dict().values())


def test_non_finite_loss_stops(train: Any, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(6, optim_wrapper__optimizer__lr=1e30, default_hooks__checkpoint__interval=1)
    message = str(caught.value)
    (report,) = tmp_path.glob('run/non_finite.json')
    facts = json.loads(report.read_text())
    assert f'iteration {facts["iteration"]} ' in message and facts['iteration'] > 1
    assert len(facts['paths']) == 2 and all(SPACE.format(path) in message for path in facts['paths'])
    assert len(facts['files']) == BATCH and all(Path(name).is_file() and name in message for name in facts['files'])
    content = engine_utils.last_checkpoint(tmp_path / 'run')
    assert content['meta']['iter'] == facts['iteration'] - 1
    assert all(torch.isfinite(v).all() for k, v in content['state_dict'].items() if k.endswith(('weight', 'bias')))


@pytest.mark.parametrize(
    'switch, value', [('cross_path', False), ('mean_teacher', False), ('negatives', False), ('single_path', True)]
)
def test_switches_train(switch: str, value: bool, train: Any) -> None:
    views = {'train_dataloader.dataset.dataset.views': 2} if switch == 'single_path' else {}
    runner = train(2, **{f'model.method.{switch}': value}, **views)
    method, logged = runner.model.method, runner.message_hub
    losses = logged.get_scalar('train/loss').data[0]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert logged.get_scalar('train/feature_std').current() > 0
    assert (method.teacher is None) == (switch == 'mean_teacher') and (method.queue is None) == (switch == 'negatives')
    assert {len(paths) for paths in TraceHook.last.paths} == {1 if switch == 'single_path' else 2}
    weights = TraceHook.last.start.method.student.state_dict()
    assert any(not torch.equal(v, weights[k]) for k, v in method.student.state_dict().items() if 'weight' in k)


def test_only_losses() -> None:
    model = SupernetPretraining(SPACE, dict(type='pinas_zoo.PiNAS', dim=8, queue_length=16, seed=5))
    assert model.method.seed == 5
    with pytest.raises(ValueError, match="mode='loss' only, got 'predict'"):
        model(torch.zeros(2, 4, 3, 16, 16), mode='predict')
