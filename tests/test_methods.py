"""SPOS, FairNAS and the linear head against slow re-implementations, and the interface of every method."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pinas_zoo.methods import METHODS, SPOS, FairNAS, LinearHead, Method, SupervisedMethod, restrict_gradient
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.space import PAPER_CANDIDATES, Arch, Candidate, SearchSpace

SMALL = SearchSpace('small', depths=(1, 2), planes=(16, 32), strides=(1, 2), stem_widths=(8, 8, 16), input_size=16)
#: The first position cannot be skipped: it has three candidates, the others four.
SKIPPING = SearchSpace(
    'skipping', (2, 1), (16, 16), (1, 1), (8, 8, 16), candidates=(*PAPER_CANDIDATES[:3], Candidate(skip=True))
)
CLASSES = 5


def make(method: type[SupervisedMethod], space: SearchSpace = SMALL, **settings: Any) -> SupervisedMethod:
    torch.manual_seed(0)
    net = SuperNet(space, zero_init_last=False)
    return method(net, CLASSES, **dict(seed=3) | settings).double().train()


def batch(step: int = 0, images: int = 6) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(step)
    image = torch.from_numpy(rng.standard_normal((images, 3, 16, 16)))
    return {
        'image': image,
        'label': torch.from_numpy(rng.integers(0, CLASSES, images)),
        'name': ['x'] * images,
        'index': torch.arange(images) + images * step,
    }


def train(method: SupervisedMethod, steps: int, optimiser: torch.optim.Optimizer | None = None) -> None:
    """What every loop does."""
    optimiser = optimiser or torch.optim.SGD(method.param_groups()['weights'], 0.05, 0.9, weight_decay=1e-2)
    for step in range(steps):
        optimiser.zero_grad()
        for part in range(method.parts(step)):
            method.loss(batch(step), step, part)['loss'].backward()
        optimiser.step()


def gradients(method: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def on_path(name: str, arch: Arch) -> bool:
    """Whether a parameter of a supernet is on a path, from its name alone."""
    parts = name.split('.')
    return 'candidates' not in parts or int(parts[4]) == arch[int(parts[2])]


# ---- the interface ------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['PiNAS', *METHODS])
def test_every_method_meets_the_interface(name: str) -> None:
    torch.manual_seed(0)
    net = SuperNet(SMALL)
    method = PiNAS(net, dim=8, queue_length=16) if name == 'PiNAS' else METHODS[name](net, num_classes=CLASSES)
    assert isinstance(method, Method)
    facts = {
        'views': torch.randn(4, 4, 3, 16, 16),
        'image': torch.randn(4, 3, 16, 16),
        'label': torch.arange(4),
        'index': torch.arange(4),
    }
    assert method.parts(0) >= 1
    for part in range(method.parts(0)):
        terms = method.loss(facts, 0, part)
        assert [key for key in terms if 'loss' in key] == ['loss'] and terms['loss'].ndim == 0
        assert all(not value.requires_grad for key, value in terms.items() if key != 'loss')
        terms['loss'].backward()
    groups = method.param_groups()
    assert 'weights' in groups
    optimisers = [torch.optim.SGD(parameters, lr=0.1) for parameters in groups.values()]
    trained = [p for o in optimisers for group in o.param_groups for p in group['params']]
    assert len(trained) == len({id(p) for p in trained}) and all(p.requires_grad for p in trained)
    inside = {id(p) for p in method.parameters()}
    assert all(id(p) in inside for p in trained)
    score = method.score(method.paths(0)[0])
    assert score is None or isinstance(score, float)


def test_an_object_without_the_members_is_no_method() -> None:
    assert not isinstance(torch.nn.Linear(2, 2), Method)


def test_a_base_without_paths_says_so() -> None:
    with pytest.raises(NotImplementedError, match='SupervisedMethod does not define its paths'):
        make(SupervisedMethod).loss(batch(), 0)


@pytest.mark.parametrize('setting', [dict(label_smoothing=1.5), dict(label_smoothing=-0.1), dict(seed=-1)])
def test_settings_out_of_range(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='allowed: num_classes >= 1'):
        make(SPOS, **setting)


def test_weight_decay_spares_vectors() -> None:
    decayed, spared = make(SPOS).param_groups()['weights']
    assert 'weight_decay' not in decayed and spared['weight_decay'] == 0
    assert all(p.ndim > 1 for p in decayed['params']) and all(p.ndim == 1 for p in spared['params'])
    method = make(SPOS)
    groups = method.param_groups()['weights']
    assert sum(len(group['params']) for group in groups) == len(list(method.parameters()))


def test_reaching_only() -> None:
    a, b = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([[3.0]]))
    c = torch.nn.Parameter(torch.tensor(5.0))
    loss = (a**2).sum() * b.squeeze() * c
    surrogate = restrict_gradient(loss, [b, c])
    assert surrogate.item() == loss.item() == 75.0
    (2 * surrogate).backward()
    assert a.grad is None and b.grad.item() == 2 * 25 and c.grad.item() == 2 * 15


# ---- a path's loss ------------------------------------------------------------------------------


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_loss_of_a_path_is_that_of_the_extracted_network(smoothing: float) -> None:
    method, facts = make(SPOS, label_smoothing=smoothing), batch()
    for step in range(3):
        (arch,) = method.paths(step)
        alone = method.supernet.extract(arch, num_classes=CLASSES)
        alone.fc.load_state_dict(method.head.state_dict())
        log_p = alone.train()(facts['image']).log_softmax(dim=1)
        one_hot = F.one_hot(facts['label'], CLASSES).double()
        target = one_hot * (1 - smoothing) + smoothing / CLASSES
        expected = -(target * log_p).sum(dim=1).mean()
        terms = method.loss(facts, step)
        torch.testing.assert_close(terms['loss'], expected, rtol=1e-12, atol=0)
        hits = (log_p.argmax(dim=1) == facts['label']).double().mean() * 100
        assert terms['top1'].item() == pytest.approx(hits.item(), rel=1e-6)


# ---- SPOS ---------------------------------------------------------------------------------------


def test_spos_leaves_idle_parameters_alone() -> None:
    """Neither momentum nor weight decay moves parameters off the path, even if they were trained before."""
    method = make(SPOS)
    optimiser = torch.optim.SGD(method.param_groups()['weights'], lr=0.05, momentum=0.9, weight_decay=0.1)
    train(method, 6, optimiser)
    busy, idle = set(), set()
    for step in range(6, 10):
        before = {name: p.detach().clone() for name, p in method.named_parameters()}
        momenta = {p: dict(state) for p, state in optimiser.state.items()}
        optimiser.zero_grad()
        method.loss(batch(step), step)['loss'].backward()
        optimiser.step()
        (arch,) = method.paths(step)
        for name, parameter in method.named_parameters():
            if on_path(name, arch):
                # BN takes the bias before it out again; what is left of its gradient is rounding.
                assert name.endswith('fc1.bias') or not torch.equal(parameter, before[name]), name
                busy.add(name)
            else:
                assert parameter.grad is None and torch.equal(parameter, before[name]), name
                if parameter in momenta:
                    idle.add(name)
                    old, new = momenta[parameter]['momentum_buffer'], optimiser.state[parameter]['momentum_buffer']
                    assert torch.equal(old, new), name
    assert busy & idle  # the same parameters were seen both ways


def test_spos_draws_uniformly() -> None:
    method = make(SPOS)
    count = np.zeros((SMALL.num_positions, 4))
    for step in range(2000):
        (arch,) = method.paths(step)
        count[range(SMALL.num_positions), arch] += 1
    # Binomial: 500 expected, standard deviation 19.4; the seed is fixed.
    assert np.abs(count - 500).max() < 4 * 19.4


@pytest.mark.parametrize('name', ['SPOS', 'FairNAS'])
def test_seeds(name: str) -> None:
    runs = [make(METHODS[name], seed=seed) for seed in (3, 3, 4)]
    for method in runs:
        train(method, 3)
    states = [method.state_dict() for method in runs]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert any(not torch.equal(tensor, states[2][key]) for key, tensor in states[0].items())


# ---- FairNAS ------------------------------------------------------------------------------------


def test_fairnas_gradient_is_the_mean_of_its_paths() -> None:
    method, facts = make(FairNAS), batch()
    paths = method.paths(7)
    assert method.parts(7) == len(paths) == 4
    alone = []
    for arch in paths:
        twin = copy.deepcopy(method)
        logits = twin.head(twin.supernet(facts['image'], arch).mean((2, 3)))
        F.cross_entropy(logits, facts['label'], label_smoothing=0.1).backward()
        alone.append(gradients(twin))
        assert all(on_path(name, arch) for name in alone[-1])
    logged = []
    for part in range(4):
        terms = method.loss(facts, 7, part)
        terms['loss'].backward()
        logged.append(terms['cross_entropy'].item() / terms['loss'].item())
    np.testing.assert_allclose(logged, 4, rtol=1e-12)
    ours = gradients(method)
    assert ours.keys() == {name for name, _ in method.named_parameters()}  # every candidate has trained
    for name, gradient in ours.items():
        expected = sum(g[name] for g in alone if name in g) / 4
        # A fc1 bias before BN has a zero gradient; its rounding is of the order 1e-17.
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14, msg=name)


def test_every_candidate_once_a_step() -> None:
    method = make(FairNAS)
    seen = set()
    for step in range(50):
        paths = method.paths(step)
        for position in range(SMALL.num_positions):
            assert sorted(path[position] for path in paths) == [0, 1, 2, 3]
        assert paths == method.paths(step)
        seen.add(paths)
    assert len(seen) == 50


def test_positions_with_fewer_candidates() -> None:
    """All candidates occur in every step, and each equally often in the long run."""
    method = make(FairNAS, SKIPPING)
    assert SKIPPING.choices(0) == (0, 1, 2) and method.parts(0) == 4
    count = np.zeros(3)
    for step in range(600):
        paths = [SKIPPING.parse(path) for path in method.paths(step)]
        assert all(sorted(path[position] for path in paths) == [0, 1, 2, 3] for position in (1,))
        first = np.bincount([path[0] for path in paths], minlength=3)
        assert sorted(first) == [1, 1, 2]
        count += first
    # 800 expected; the fourth draw is uniform among three: standard deviation 11.5.
    assert np.abs(count - 800).max() < 4 * 11.5


def test_fairnas_parts_count_on_when_gradients_accumulate() -> None:
    method, facts = make(FairNAS), batch()
    for part in range(4):
        first, again = (method.loss(facts, 2, part + micro * 4)['loss'] for micro in range(2))
        assert torch.equal(first, again)
    losses = [method.loss(facts, 2, part)['loss'].item() for part in range(4)]
    assert len(set(losses)) == 4


# ---- the linear head ----------------------------------------------------------------------------


def test_linear_head_moves_nothing_else() -> None:
    method = make(LinearHead)
    before = copy.deepcopy(method.state_dict())
    train(method, 4)
    moved = {name for name, tensor in method.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {'head.weight', 'head.bias'}
    features = method.supernet(batch()['image'], method.paths(0)[0])
    assert not features.requires_grad


# ---- through the runner -------------------------------------------------------------------------

CONFIGS = {'SPOS': 'spos_pinas-nano-supernet_b128-lin_fmnist', 'FairNAS': 'fairnas_pinas-nano-supernet_b128-lin_fmnist'}
TEXT = """
_base_ = {base!r}
model = dict(space=dict(_delete_=True, **{space!r}), method=dict(num_classes=10))
train_dataloader = dict(
    batch_size=8,
    dataset=dict(dataset=dict(size=16, source=dict(_delete_=True, kind='digits', split='train', size=16, limit=64))),
)
train_cfg = dict(max_iters=6)
param_scheduler = dict(end=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


@pytest.fixture
def small_config(tmp_path: Path) -> Any:
    import engine_utils

    def write(name: str) -> Path:
        base = engine_utils.ROOT / f'configs/pretrain/{CONFIGS[name]}.py'
        path = tmp_path / f'{name}.py'
        path.write_text(TEXT.format(base=str(base), space=SMALL.to_dict()))
        return path

    return write


@pytest.mark.mm
@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_training_through_the_runner_resumes_exactly(name: str, small_config: Any, tmp_path: Path) -> None:
    import engine_utils

    config = small_config(name)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    result = engine_utils.run_train(config, whole)
    assert result.returncode == 0, result.stdout[-3000:]
    engine_utils.run_killed(config, killed, [(3, 'step'), (4, 'saved')])
    assert engine_utils.differences(whole, killed) == []
    logged = engine_utils.logged(whole)
    assert logged == engine_utils.logged(killed)
    paths = 1 if name == 'SPOS' else 4
    assert all(len(logged[step, 'paths']) == paths for step in range(1, 7))
    assert (6, 'loss') in logged and (6, 'top1') in logged and ((6, 'cross_entropy') in logged) == (name == 'FairNAS')


@pytest.mark.mm
def test_a_step_of_the_runner_is_a_step_of_plain_torch() -> None:
    from mmengine.logging import MessageHub

    from pinas_zoo.mm.pretrain import MethodOptimWrapperConstructor, SupernetPretraining

    settings = dict(type='pinas_zoo.FairNAS', num_classes=CLASSES, seed=3)
    model = SupernetPretraining(SMALL, settings, zero_init_last=False).double().train()
    assert model.method.supernet.blocks[0][0].bn3.weight.min() == 1
    twin = copy.deepcopy(model.method)
    optimiser = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-2)
    wrapper = MethodOptimWrapperConstructor(dict(optimizer=optimiser))(model)
    assert [group['weight_decay'] for group in wrapper.optimizer.param_groups] == [1e-2, 0]
    wrapper.initialize_count_status(model, 0, 3)
    hub = MessageHub.get_instance('test_methods')
    for step in range(3):
        hub.update_info('iter', step)
        model.train_step(batch(step), wrapper)
    train(twin, 3)
    assert [model.space.format(arch) for arch in twin.paths(2)] == model.last_paths
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.method.state_dict()[name], tensor, rtol=1e-10, atol=1e-12, msg=name)
