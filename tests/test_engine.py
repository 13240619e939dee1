"""The engine: stateless data, exact resuming, plain checkpoints, config rewriting, two processes."""

import dataclasses
import io
import json
import os
import pickle
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch

pytest.importorskip('mmengine')
pytestmark = pytest.mark.mm

sys.path.insert(0, str(Path(__file__).parent))
import engine_toy  # noqa: E402
import engine_utils  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import HistoryBuffer, MessageHub  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from pinas_zoo.mm.engine import checkpoint_content as state  # noqa: E402
from pinas_zoo.mm.engine import launch, machine, rewrite  # noqa: E402
from pinas_zoo.mm.engine.batch_samplers import SkippingBatchSampler  # noqa: E402
from pinas_zoo.mm.engine.batches import StatelessSampler  # noqa: E402
from pinas_zoo.mm.engine.checkpoint_content import find_checkpoint  # noqa: E402
from pinas_zoo.mm.engine.checkpoint_hook import ExactCheckpointHook, ResumeMismatchError  # noqa: E402
from pinas_zoo.mm.engine.hooks import batch_names  # noqa: E402
from pinas_zoo.mm.engine.loop import ExactIterLoop, SeededDataset  # noqa: E402
from pinas_zoo.mm.preflight.bad_input import NamedDataset  # noqa: E402
from pinas_zoo.mm.preflight.findings import BadInputError  # noqa: E402
from pinas_zoo.mm.pretrain import BFloat16OptimWrapper  # noqa: E402
from pinas_zoo.registry import OPTIM_WRAPPERS  # noqa: E402


def toy_settings(**changes: Any) -> dict:
    """A config of 12 iterations with validation, best checkpoint and rotation."""
    collate = {'type': 'default_collate'}
    settings = {
        'custom_imports': {'imports': ['engine_toy'], 'allow_failed_imports': False},
        'default_scope': 'pinas_zoo',
        'model': {'type': 'ToyModel', 'norm_cfg': {'type': 'SyncBN'}},
        'train_dataloader': {
            'batch_size': 3,
            'num_workers': 0,
            'dataset': {'type': 'ToyDataset', 'length': 20, 'holes': True},
            'collate_fn': collate,
        },
        'val_dataloader': {
            'batch_size': 4,
            'num_workers': 0,
            'dataset': {'type': 'ToyDataset', 'length': 8},
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': collate,
        },
        'val_evaluator': {'type': 'ToyMetric'},
        'val_cfg': {},
        'train_cfg': {'by_epoch': False, 'max_iters': 12, 'val_interval': 4},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}},
        'param_scheduler': [
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 3},
            {'type': 'MultiStepLR', 'milestones': [6, 10], 'by_epoch': False},
        ],
        'custom_hooks': [{'type': 'RankDumpHook'}],
        'default_hooks': {
            'logger': {'type': 'LoggerHook', 'interval': 1},
            'checkpoint': {
                'type': 'CheckpointHook',
                'by_epoch': False,
                'interval': 3,
                'max_keep_ckpts': 2,
                'save_best': 'acc',
            },
        },
    }
    return {**settings, **changes}


def epoch_settings() -> dict:
    """The same by epochs of 5 iterations, with accumulation over 2 of them and an average model."""
    settings = toy_settings(
        train_cfg={'by_epoch': True, 'max_epochs': 2, 'val_interval': 1},
        optim_wrapper={
            'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9},
            'accumulative_counts': 2,
        },
        param_scheduler=[{'type': 'CosineAnnealingLR', 'T_max': 2, 'by_epoch': True}],
        custom_hooks=[{'type': 'EMAHook', 'begin_epoch': 1}, {'type': 'RankDumpHook'}],
    )
    settings['train_dataloader']['batch_size'] = 4
    settings['train_dataloader']['sampler'] = {'type': 'DefaultSampler', 'shuffle': True}
    settings['default_hooks']['checkpoint'] = {'type': 'CheckpointHook', 'interval': 1}
    return settings


def write(settings: dict, folder: Path, workers: int = 0) -> Path:
    """Dump a config."""
    settings['train_dataloader']['num_workers'] = workers
    path = folder / 'toy.py'
    Config(settings).dump(path)
    return path


# ---- data -----------------------------------------------------------------------------------


def loader(workers: int, start: int = 0, persistent: bool = False) -> Any:
    init_default_scope('pinas_zoo')
    dataset = {'type': 'ToyDataset', 'length': 11, 'holes': True}
    cfg = {
        'batch_size': 3,
        'num_workers': workers,
        'persistent_workers': persistent,
        'dataset': {'type': 'pinas_zoo.SeededDataset', 'dataset': dataset, 'seed': 5},
        'sampler': {'type': 'pinas_zoo.StatelessSampler', 'seed': 5},
        'collate_fn': {'type': 'default_collate'},
    }
    built = Runner.build_dataloader(cfg)
    built.batch_sampler.sampler.start = 3 * start
    return built


def take(batches: Any, count: int) -> list[dict]:
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def assert_same_batches(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one['name'] == other['name']
        assert torch.equal(one['image'], other['image'])


@pytest.mark.parametrize('persistent', [False, True])
def test_workers_give_the_same_batches(persistent: bool) -> None:
    expected = take(loader(0), 9)
    built = loader(2, persistent=persistent)
    assert_same_batches(expected, take(built, 9))
    built.batch_sampler.sampler.start = 9
    assert_same_batches(expected[3:], take(built, 6))  # the same workers, started anew


def test_data_start_anywhere_and_leave_the_random_states() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = state.random_state()
    expected = take(loader(0), 8)
    state.set_random_state(before)
    torch.randn(3)  # a sample does not depend on the state of the process
    assert_same_batches(expected[5:], take(loader(0, start=5), 3))
    state.set_random_state(before)
    SeededDataset(engine_toy.ToyDataset(), seed=0)[(1, 7)]
    after = state.random_state()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_samples_depend_on_seed_and_draw() -> None:
    images = [
        SeededDataset(engine_toy.ToyDataset(), seed=seed)[(1, draw)]['image']
        for seed, draw in ((0, 7), (0, 7), (0, 8), (1, 7))
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2]) and not torch.equal(images[0], images[3])


def test_ranks_share_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for rank in range(3):
        monkeypatch.setattr('pinas_zoo.mm.engine.batches.get_dist_info', lambda rank=rank: (rank, 3))
        sampler = StatelessSampler(range(7), seed=2)
        iterator = iter(sampler)
        drawn += [next(iterator) for _ in range(7)]
    drawn.sort(key=lambda pair: pair[1])
    assert [draw for _, draw in drawn] == list(range(21))
    indices = [index for index, _ in drawn]
    epochs = [indices[i : i + 7] for i in range(0, 21, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_seeded_dataset_is_transparent() -> None:
    dataset = SeededDataset(NamedDataset(engine_toy.ToyDataset(length=6)), seed=0)
    assert dataset.metainfo['classes'] == ('dark', 'light') and len(dataset) == 6
    assert dataset.get_data_info((4, 99)) == dataset.get_data_info(4)
    dataset.length = 3  # as hooks assign `dataset.pipeline`
    assert dataset.dataset.dataset.length == 3
    assert len(pickle.loads(pickle.dumps(dataset))) == 3
    assert not hasattr(dataset, 'full_init')
    with pytest.raises(ValueError, match='seed=None'):
        StatelessSampler(dataset)


def test_a_batch_is_its_samples() -> None:
    dataset = SeededDataset(engine_toy.ToyDataset(holes=True), seed=3)
    items = [(1, 5), (3, 6), (1, 9)]
    before = state.random_state()
    batch = dataset.__getitems__(items)
    after = state.random_state()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert_same_batches(batch, [dataset[item] for item in items])
    dataset.dataset.holes = False
    assert [sample['index'] for sample in dataset.__getitems__([2, 3])] == [2, 3]  # plain indices, unseeded


def test_only_holes_is_an_error() -> None:
    dataset = SeededDataset([None, None], seed=0, max_refetch=3)
    with pytest.raises(RuntimeError, match='sample 1 and for 3 replacements'):
        dataset[(1, 0)]


def test_grouping_batch_sampler_starts_anywhere() -> None:
    batch_samplers = pytest.importorskip('mmdet.datasets.samplers', exc_type=ImportError)
    dataset = SeededDataset(NamedDataset(engine_toy.ToyDataset(length=10)), seed=0)
    cfg = {'type': batch_samplers.AspectRatioBatchSampler}
    skipping = SkippingBatchSampler(StatelessSampler(dataset, seed=3), 4, batch_sampler=cfg)
    batches = take(skipping, 12)
    skipping.start = 7
    assert take(skipping, 5) == batches[7:]
    for batch in batches:
        assert len({dataset.get_data_info(draw)['width'] < 5 for draw in batch}) == 1


# ---- checkpoints ----------------------------------------------------------------------------


def test_plain_values_load_weights_only() -> None:
    hub = MessageHub('test_plain_values')
    hub.update_scalar('train/loss', np.float64(0.25))
    hub.update_scalar('train/loss', 0.5)
    hub.update_info('best_score', np.float64(0.75))
    hub.update_info('meta', {'palette': np.arange(3), np.int64(2): (np.bool_(True), 'a')})
    hub.update_info('hook', lambda: None)
    dropped: list[str] = []
    plain = state.hub_to_plain(hub.state_dict(), 10, dropped)
    assert len(dropped) == 1 and 'message_hub.hook' in dropped[0]
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    restored = MessageHub('test_plain_values_restored')
    restored.load_state_dict(state.hub_from_plain(torch.load(file, weights_only=True), 10))
    assert type(restored.get_info('best_score')) is float
    meta = restored.get_info('meta')
    assert meta[2] == (True, 'a') and np.array_equal(meta['palette'], np.arange(3))
    buffer = restored.get_scalar('train/loss')
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.mean(2) == hub.get_scalar('train/loss').mean(2)


def test_random_states_return() -> None:
    random.gauss(0, 1), np.random.randn()  # both keep a second number
    saved = state.random_state()

    def draw() -> tuple:
        return random.gauss(0, 1), random.random(), np.random.randn(), torch.rand(2).tolist()

    first = draw()
    draw()
    state.set_random_state(saved)
    assert draw() == first


def test_torn_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'iter_3.pth'
    backend = state.AtomicBackend()
    backend.put(b'old', path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('pinas_zoo.files.os.fsync', die)
    with pytest.raises(KeyboardInterrupt):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old'


def test_deferred_removal(tmp_path: Path) -> None:
    backend = state.AtomicBackend()
    old, same = tmp_path / 'old', tmp_path / 'same'
    for path in (old, same):
        backend.put(b'', path)
    with backend.deferred(keep=lambda: [same]):
        backend.remove(old)
        backend.remove(same)
        assert old.exists()
    assert not old.exists() and same.exists()
    backend.put(b'', old)
    with pytest.raises(OSError, match='full'), backend.deferred():
        backend.remove(old)
        raise OSError('disk full')
    assert old.exists()


def test_resume_compares_conditions() -> None:
    warned: list[str] = []
    runner: Any = SimpleNamespace(
        seed=4,
        _randomness_cfg={},
        optim_wrapper=SimpleNamespace(),
        train_dataloader=SimpleNamespace(batch_sampler=SimpleNamespace(batch_size=3), dataset=range(40)),
        logger=SimpleNamespace(warning=warned.append),
    )
    hook = ExactCheckpointHook(interval=1)
    saved = hook._conditions(runner)
    hook._compare(runner, saved)
    assert warned == []
    hook._compare(runner, {**saved, 'threads': 99})
    assert 'threads 99 in the checkpoint' in warned.pop()
    hook._compare(runner, {**saved, 'samples': 41})  # files came or went
    assert 'samples 41 in the checkpoint, 40 now' in warned.pop()
    hook._compare(runner, {**saved, 'device': 'NVIDIA T', 'precision': 'AmpOptimWrapper float16'})
    line = warned.pop()
    assert 'device NVIDIA T in the checkpoint' in line and 'precision AmpOptimWrapper float16' in line
    hook._compare(runner, {key: saved[key] for key in ('world_size', 'seed', 'threads', 'batch_size', 'torch')})
    assert warned == []
    with pytest.raises(ResumeMismatchError, match='world_size 8 in the checkpoint, 1 now'):
        hook._compare(runner, {**saved, 'world_size': 8})
    ExactCheckpointHook(strict=False)._compare(runner, {**saved, 'world_size': 8})
    assert 'world_size 8' in warned.pop()


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch evil',)


def test_loading_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '')  # put back after the test
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    launch._enforce_safe_loading()
    torch.save({'meta': np.float64(3), 'palette': np.arange(3)}, 'good.pth')
    assert torch.load('good.pth')['palette'].tolist() == [0, 1, 2]
    torch.save(Evil(), 'bad.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load('bad.pth', weights_only=False)
    assert not Path('evil').exists()


def test_seed_of_a_continued_run(tmp_path: Path) -> None:
    path = str(tmp_path / 'iter_1.pth')
    torch.save({'engine': {'seed': 7}}, path)
    cfg = Config({'randomness': {'seed': 3}})
    assert launch.choose_seed(cfg, launch.Options(), path) == 7
    assert launch.choose_seed(cfg, launch.Options(), None) == 3
    assert launch.choose_seed(Config({}), launch.Options(), None) == launch.DEFAULT_SEED
    with pytest.raises(BadInputError, match="randomness.seed is 'abc', which must be an integer"):
        launch.choose_seed(Config({'randomness': {'seed': 'abc'}}), launch.Options(), None)
    with pytest.raises(BadInputError, match='--seed 8'):
        launch.choose_seed(cfg, launch.Options(seed=8), path)
    assert find_checkpoint(tmp_path, 'auto') is None
    (tmp_path / 'last_checkpoint').write_text('/moved/iter_1.pth')
    assert find_checkpoint(tmp_path, 'auto') == path
    with pytest.raises(FileNotFoundError, match='not a file'):
        find_checkpoint(tmp_path, '/nowhere.pth')


# ---- configs --------------------------------------------------------------------------------


def test_sync_bn_is_rewritten() -> None:
    norm = {'type': 'SyncBN', 'requires_grad': True}
    cfg = Config({'norm_cfg': norm, 'model': {'a': [{'norm_cfg': norm}], 'b': ({'type': 'MMSyncBN'},)}})
    notes: list[str] = []
    machine.replace_sync_bn(cfg, notes)
    assert len(notes) == 1 and '3 SyncBN' in notes[0]
    assert 'SyncBN' not in cfg.pretty_text and cfg.model.a[0].norm_cfg.requires_grad


def test_rewriting_is_told_line_by_line() -> None:
    settings = epoch_settings()
    cfg, notes = Config(settings), []
    rewrite.make_exact(cfg, seed=1, notes=notes)
    assert cfg.train_cfg == {'type': 'pinas_zoo.ExactIterLoop', 'max_epochs': 2, 'val_interval': 1}
    assert cfg.default_hooks.checkpoint == {'type': 'pinas_zoo.ExactCheckpointHook', 'by_epoch': True, 'interval': 1}
    assert cfg.param_scheduler == settings['param_scheduler'] and cfg.custom_hooks[0].begin_epoch == 1
    assert cfg.train_dataloader.sampler.type == 'pinas_zoo.StatelessSampler'
    told = [note.removeprefix('rewritten: ') for note in notes]
    assert told == [
        'train_cfg.by_epoch: True -> not set',
        'train_cfg.type: not set -> pinas_zoo.ExactIterLoop',
        'train_dataloader.dataset is wrapped in pinas_zoo.SeededDataset',
        'train_dataloader.sampler.type: DefaultSampler -> pinas_zoo.StatelessSampler',
        'train_dataloader.sampler.seed: not set -> 1',
        'default_hooks.logger.log_metric_by_epoch: not set -> False',
        'default_hooks.checkpoint.type: CheckpointHook -> pinas_zoo.ExactCheckpointHook',
        'default_hooks.checkpoint.by_epoch: not set -> True',
        "default_hooks.runtime_info: not set -> {'type': 'pinas_zoo.LateInfoHook'}",
        "log_processor: not set -> {'type': 'LogProcessor', 'by_epoch': False}",
        "custom_hooks + {'type': 'pinas_zoo.NonFiniteGuardHook'}",
        "custom_hooks + {'type': 'pinas_zoo.PathLogHook'}",
    ]
    text = cfg.pretty_text
    rewrite.make_exact(cfg, seed=1, notes=(again := []))
    assert cfg.pretty_text == text and again == []


def test_the_loop_counts_epochs() -> None:
    cfg = Config(toy_settings())
    cfg.train_dataloader.dataset = {'type': 'pinas_zoo.SeededDataset', 'dataset': cfg.train_dataloader.dataset}
    cfg.train_dataloader.sampler = {'type': 'pinas_zoo.StatelessSampler'}
    logged: list[str] = []
    runner: Any = SimpleNamespace(
        build_dataloader=lambda loader, **_: Runner.build_dataloader(loader, seed=1),
        seed=1,
        _randomness_cfg={},
        visualizer=SimpleNamespace(),
        logger=SimpleNamespace(info=logged.append),
    )
    init_default_scope('pinas_zoo')
    settings = {'runner': runner, 'dataloader': cfg.train_dataloader}
    loop = ExactIterLoop(**settings, max_epochs=2, val_begin=2, dynamic_intervals=[(2, 3)])
    assert (loop.max_iters, loop.max_epochs, loop.epoch_length) == (14, 2, 7) and '14 in total' in logged[0]
    assert (loop.val_begin, loop.val_interval) == (14, 7)
    assert (loop.dynamic_milestones, loop.dynamic_intervals) == ([0, 8], [7, 21])
    loop = ExactIterLoop(**settings, max_iters=9)
    assert (loop.max_iters, loop.max_epochs, loop.epoch_length, loop.val_interval) == (9, 1, None, 1000)
    with pytest.raises(ValueError, match='either max_iters or max_epochs, got max_iters=None, max_epochs=None'):
        ExactIterLoop(**settings)
    settings['dataloader'] = dict(cfg.train_dataloader, dataset=cfg.train_dataloader.dataset.dataset)
    with pytest.raises(ValueError, match='ToyDataset, whose samples are not seeded'):
        ExactIterLoop(**settings, max_iters=9)


def test_what_the_user_set_is_kept() -> None:
    settings = toy_settings()
    settings['train_dataloader'].update(
        batch_sampler={'type': 'mmdet.AspectRatioBatchSampler', 'drop_last': True},
        sampler={'type': 'InfiniteSampler', 'shuffle': False},
        persistent_workers=True,
    )
    cfg = Config(settings)
    rewrite.make_exact(cfg, seed=0, notes=[])
    data = cfg.train_dataloader
    assert data.batch_sampler.batch_sampler.type == 'mmdet.AspectRatioBatchSampler'
    assert data.batch_sampler.drop_last and not data.sampler.shuffle
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 2
    machine.fit_workers(cfg)
    assert 'persistent_workers' not in data
    cfg.default_hooks.checkpoint = None
    rewrite.make_exact(cfg, seed=0, notes=[])
    assert cfg.default_hooks.checkpoint is None


def test_amp_by_device() -> None:
    mixed = {'type': 'AmpOptimWrapper', 'loss_scale': 'dynamic', 'optimizer': {'type': 'SGD'}}
    ours = {**mixed, 'type': 'pinas_zoo.AmpOptimWrapper'}
    cfg = Config({'optim_wrapper': mixed})
    machine.fit_machine(cfg, on_cpu=False, notes=[])
    assert cfg.optim_wrapper == mixed
    machine.fit_machine(cfg, on_cpu=True, notes=[])
    assert cfg.optim_wrapper == ours
    cfg = Config({'optim_wrapper': {'optimizer': {'type': 'SGD'}}})
    machine.use_amp(cfg)
    assert cfg.optim_wrapper == ours
    with pytest.raises(ValueError, match='--amp got the optimiser wrapper ApexOptimWrapper'):
        machine.use_amp(Config({'optim_wrapper': {**mixed, 'type': 'ApexOptimWrapper'}}))
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    built = OPTIM_WRAPPERS.build({**ours, 'optimizer': optimiser})
    assert type(built) is BFloat16OptimWrapper or not torch.cuda.is_bf16_supported(including_emulation=False)
    foreign = Config({'default_scope': 'mmdet', 'optim_wrapper': {'optimizer': {'type': 'SGD'}}})
    machine.use_amp(foreign)
    assert foreign.optim_wrapper == {**ours, 'dtype': 'float16'}


def test_names_of_a_batch() -> None:
    assert batch_names({'name': ['a', 'b']}) == ['a', 'b']
    samples = [SimpleNamespace(img_path='x.jpg'), SimpleNamespace()]
    assert batch_names({'inputs': [], 'data_samples': samples}) == ['x.jpg']
    assert batch_names([1]) == []


# ---- whole runs -----------------------------------------------------------------------------


def random_kills(seed: int, count: int = 5, iterations: int = 12) -> list[tuple[int, str]]:
    """Random iterations in ascending order, each with a moment (of engine_kill.py)."""
    chooser = random.Random(seed)
    at = sorted(chooser.sample(range(2, iterations + 1), count))
    return [(k, chooser.choice(('step', 'write', 'saved'))) for k in at]


def assert_equal_runs(reference: Path, other: Path) -> None:
    assert engine_utils.differences(reference, other) == []
    assert engine_utils.logged(reference) == engine_utils.logged(other)
    names = [sorted(path.name for path in folder.glob('*.pth')) for folder in (reference, other)]
    assert names[0] == names[1]


@pytest.fixture(scope='module')
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run without workers."""
    work_dir = tmp_path_factory.mktemp('reference')
    result = engine_utils.run_train(write(toy_settings(), work_dir), work_dir / 'run')
    assert result.returncode == 0, result.stdout[-3000:]
    return work_dir / 'run'


@pytest.mark.slow
def test_a_run(reference: Path) -> None:
    content = engine_utils.last_checkpoint(reference)  # weights-only
    assert content['meta']['iter'] == 12 and content['engine']['seed'] == launch.DEFAULT_SEED
    assert type(content['message_hub']['runtime_info']['best_score']) is float
    values = engine_utils.logged(reference)
    assert {(12, 'loss'), (12, 'feature_std'), (12, 'paths'), (8, 'acc')} <= set(values)
    log = next(reference.glob('*/*.log')).read_text()
    assert 'images_per_second' in log and 'eta' in log
    assert 'rewritten: train_cfg.type: not set -> pinas_zoo.ExactIterLoop' in log


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_five_kills_change_nothing(workers: int, reference: Path, tmp_path: Path) -> None:
    config = write(toy_settings(), tmp_path, workers)
    if workers:
        result = engine_utils.run_train(config, tmp_path / 'reference')
        assert result.returncode == 0, result.stdout[-3000:]
        # Weights and losses do not depend on the number of workers; the config's text does.
        only_text = engine_utils.differences(reference, tmp_path / 'reference')
        assert all('.cfg: ' in name for name in only_text), only_text
        assert engine_utils.logged(reference) == engine_utils.logged(tmp_path / 'reference')
        reference = tmp_path / 'reference'
    engine_utils.run_killed(config, tmp_path / 'run', random_kills(seed=workers))
    assert_equal_runs(reference, tmp_path / 'run')


@pytest.mark.slow
def test_kills_between_the_steps_of_a_save(reference: Path, tmp_path: Path) -> None:
    config = write(toy_settings(), tmp_path)
    kills = [(4, 'valid'), (5, 'point'), (8, 'rotate'), (12, 'valid')]
    engine_utils.run_killed(config, tmp_path / 'run', kills)
    assert_equal_runs(reference, tmp_path / 'run')


@pytest.mark.slow
def test_epochs_accumulation_ema_and_amp(tmp_path: Path) -> None:
    config = write(epoch_settings(), tmp_path)
    result = engine_utils.run_train(config, tmp_path / 'reference', '--amp', '--seed', '3')
    assert result.returncode == 0, result.stdout[-3000:]
    # Epochs end at 5 and 10, steps at 2, 4, ...: what is due at 5 is saved at 6.
    saved = {path.name for path in (tmp_path / 'reference').glob('iter_*')}
    assert saved == {'iter_6.pth', 'iter_10.pth'}
    assert torch.load(tmp_path / 'reference/rank0.pth', weights_only=True)['epochs'] == [0, 1]
    options = ('--amp', '--seed', '3')
    engine_utils.run_killed(config, tmp_path / 'run', [(7, 'step'), (10, 'saved')], *options)
    assert_equal_runs(tmp_path / 'reference', tmp_path / 'run')


@pytest.mark.slow
def test_non_finite_loss_stops(tmp_path: Path) -> None:
    settings = toy_settings()
    settings['train_dataloader']['dataset'] = {'type': 'ToyDataset', 'length': 20, 'poison': 5}
    config = write(settings, tmp_path)
    work_dir = tmp_path / 'run'
    result = engine_utils.run_train(
        config, work_dir, '--cfg-options', 'default_hooks.checkpoint.interval=1', '--seed', '1'
    )
    assert result.returncode != 0 and 'non-finite loss at iteration' in result.stdout
    report = json.loads((work_dir / 'non_finite.json').read_text())
    assert 'toy/5.png' in report['files'] and report['paths'] == ['331-0']
    content = engine_utils.last_checkpoint(work_dir)
    assert content['meta']['iter'] == report['iteration'] - 1
    assert all(torch.isfinite(tensor).all() for tensor in content['state_dict'].values())


@pytest.mark.slow
def test_test_tool_writes_metrics(reference: Path, tmp_path: Path) -> None:
    settings = toy_settings()
    for key in ('dataloader', 'evaluator', 'cfg'):
        settings[f'test_{key}'] = settings[f'val_{key}']
    config = write(settings, tmp_path)
    tool = [str(engine_utils.ROOT / 'tools/test.py'), str(config), str(reference / 'iter_12.pth')]
    result = engine_utils.run_tool(*tool, '--work-dir', str(tmp_path), '--out', f'{tmp_path}/o.pkl')
    assert result.returncode == 0, result.stdout[-3000:]
    metrics = json.loads((tmp_path / 'test_metrics.json').read_text())['metrics']
    assert metrics == {'acc': engine_utils.logged(reference)[(12, 'acc')]}
    assert os.path.getsize(tmp_path / 'o.pkl') > 0


def test_resume_after_the_config_changed(tmp_path: Path) -> None:
    """The changes are named; --resume-with-config gives the schedule of a run that had them from the beginning."""
    from pinas_zoo.mm.engine.launch import train
    from pinas_zoo.mm.engine.options import Options

    settings = toy_settings()
    settings['train_cfg']['max_iters'] = 6
    settings['default_hooks']['checkpoint'] = dict(type='pinas_zoo.ExactCheckpointHook', interval=3)
    config = write(settings, tmp_path)
    run = Options(work_dir=str(tmp_path / 'run'), launcher='none')
    train(config, dataclasses.replace(run, cfg_options={'train_cfg.max_iters': 3}))
    kind = settings['optim_wrapper']['optimizer']
    changed = {'optim_wrapper.optimizer.lr': kind['lr'] * 3, 'optim_wrapper.optimizer.weight_decay': 0.25}
    options = dataclasses.replace(run, resume='auto', cfg_options=changed)
    with pytest.raises(BadInputError) as caught:
        train(config, options)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith('--resume: the config changed since ') and lines[0].endswith('has the old values:')
    assert f'optim_wrapper.optimizer.lr: {kind["lr"]} -> {kind["lr"] * 3}' in lines
    assert lines[-1] == '--resume-with-config uses the new ones; or undo the changes'
    continued = train(config, dataclasses.replace(options, resume_with_config=True))
    anew = train(config, dataclasses.replace(run, work_dir=str(tmp_path / 'anew'), cfg_options=changed))
    groups = [runner.optim_wrapper.optimizer.param_groups for runner in (continued, anew)]
    assert continued.iter == 6 and [g['lr'] for g in groups[0]] == [g['lr'] for g in groups[1]]
    assert {g['weight_decay'] for g in groups[0]} == {0.25}
    states = [s.state_dict() for s in continued.param_schedulers], [s.state_dict() for s in anew.param_schedulers]
    assert states[0] == states[1]
    with pytest.raises(BadInputError, match='the state of one optimiser does not fit another'):
        other = {'optim_wrapper.optimizer._delete_': True, 'optim_wrapper.optimizer.type': 'Adam'}
        train(config, dataclasses.replace(options, resume_with_config=True, cfg_options=other))


def test_a_checkpoint_of_another_model_is_not_tested(tmp_path: Path) -> None:
    from pinas_zoo.mm.engine.testing import _require_weights

    path = str(tmp_path / 'a.pth')
    torch.save({'state_dict': {'module.weight': torch.ones(3, 2), 'bias': torch.ones(3), 'more': torch.ones(1)}}, path)
    _require_weights(torch.nn.Linear(2, 3), path)
    with pytest.raises(
        BadInputError, match='a.pth: its weights are not those of .*: size mismatch for weight: copying'
    ):
        _require_weights(torch.nn.Linear(4, 3), path)
    with pytest.raises(BadInputError, match='2 are missing, such as 0.weight'):
        _require_weights(torch.nn.Sequential(torch.nn.Linear(2, 3)), path)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    from pinas_zoo.mm.engine.resume_config import require_fit

    cfg = SimpleNamespace(load_from='a.pth')
    runner: Any = SimpleNamespace(model=torch.nn.Linear(2, 3), cfg=cfg, _resume=True)
    require_fit(runner, {**torch.nn.Linear(2, 3).state_dict(), 'more': torch.ones(1)})
    with pytest.raises(BadInputError, match=r'1 of 2 weights .* such as weight: \(4, 2\) in the checkpoint'):
        require_fit(runner, {'weight': torch.ones(4, 2), 'bias': torch.ones(3)})
    with pytest.raises(BadInputError, match=r'such as bias: none in the checkpoint'):
        require_fit(runner, {'weight': torch.ones(3, 2)})
    runner._resume, runner.model = False, torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    require_fit(runner, {'module.0.weight': torch.ones(3, 2), '0.bias': torch.ones(7)})
    with pytest.raises(BadInputError, match=r'none of the weights of a.pth fits the model: they are 1.num_batches'):
        require_fit(runner, {'1.num_batches_tracked': torch.ones(()), '0.bias': torch.ones(7)})
    runner.model = timm.create_model('pinas_nano', arch='01-23-01-23')
    with pytest.raises(BadInputError, match='a.pth has architecture 30-02-00-10, but the model has 01-23-01-23'):
        require_fit(runner, {'state_dict': runner.model.state_dict(), 'meta': {'arch': '30-02-00-10'}})
