"""Every config of the project parses, names its parts, and builds its model."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.mm

ROOT = Path(__file__).parents[1]
#: tests/test_downstream_configs.py has the others.
ELSEWHERE = ('_base_', 'coco', 'ade20k', 'cityscapes')
CONFIGS = sorted(p.relative_to(ROOT) for p in ROOT.glob('configs/*/*.py') if p.parent.name not in ELSEWHERE)
LISTS = [path for path in CONFIGS if 'shortlist_' in path.name]
TRAINED = [path for path in CONFIGS if '-tree' not in path.name and path not in LISTS]
SEARCHES = [path for path in CONFIGS if '-tree' in path.name]


def read(path: Path):
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    import pinas_zoo.registry  # noqa: F401
    from pinas_zoo.mm.engine.from_data import fill_from_data

    cfg = Config.fromfile(ROOT / path)
    fill_from_data(cfg, names=[str(number) for number in range(10)])  # where a config leaves them to its data
    init_default_scope(cfg.get('default_scope', 'pinas_zoo'))
    return cfg


def test_there_are_configs_of_both_kinds():
    assert len(TRAINED) >= 8 and len(SEARCHES) >= 2 and len(LISTS) >= 2


@pytest.mark.parametrize('path', TRAINED, ids=str)
def test_training_config_builds(path):
    from mmengine.registry import DATASETS, MODELS

    from pinas_zoo.mm.engine.machine import replace_sync_bn

    cfg = read(path)
    replace_sync_bn(cfg, [])
    if cfg.model.get('supernet'):
        assert cfg.model.supernet.startswith('work_dirs/')
        cfg.model.supernet = None  # the stage before would have written it
    method = cfg.model.get('method')
    if method:
        method.seed = 0
        if 'queue_length' in method:
            method.queue_length = 64
    model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) > 1e4
    with DATASETS.switch_scope_and_registry(None) as registry:
        data = cfg.train_dataloader.dataset
        assert all(registry.get(node.type) is not None for node in (data, data.get('dataset', data)))
    assert cfg.auto_scale_lr.base_batch_size > 0
    hook = cfg.default_hooks.checkpoint
    assert hook.type == 'pinas_zoo.ExactCheckpointHook' and hook.interval > 0
    length = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    ends = [s.get('end') or s.get('T_max') or max(s.get('milestones', [0])) for s in schedulers]
    assert max(ends) <= length, f'{path}: the schedule ends at {max(ends)}, the training at {length}'


@pytest.mark.parametrize('path', TRAINED, ids=str)
def test_what_runs_is_named(path):
    """Our configs need no rewriting: they name what makes a run exact; those of mmdet and mmseg are rewritten."""
    cfg = read(path)
    if cfg.default_scope != 'pinas_zoo':
        assert cfg.train_cfg.get('type') is None
        return
    loader, kinds = cfg.train_dataloader, {hook.type for hook in cfg.custom_hooks}
    assert cfg.train_cfg.type == 'pinas_zoo.ExactIterLoop' and 'by_epoch' not in cfg.train_cfg
    assert loader.dataset.type == 'pinas_zoo.SeededDataset' and loader.sampler.type == 'pinas_zoo.StatelessSampler'
    assert {'pinas_zoo.NonFiniteGuardHook', 'pinas_zoo.PathLogHook'} <= kinds
    assert not cfg.log_processor.by_epoch and not cfg.default_hooks.logger.log_metric_by_epoch
    loaders = [loader, *filter(None, [cfg.get('val_dataloader')])]
    assert all(each.get('worker_init_fn') for each in loaders if each.num_workers)
    assert not any('persistent_workers' in each for each in loaders)


@pytest.mark.parametrize('path', SEARCHES, ids=str)
def test_search_config_builds(path):
    from pinas_zoo.search.racing import RaceSettings, group_of
    from pinas_zoo.search.strategies import build_searcher, random_records
    from pinas_zoo.space import get_space

    cfg = read(path)
    searcher = build_searcher(**cfg.searcher, space=get_space(cfg.space), seed=0)
    assert len(searcher.ask()) == 8 and cfg.budget > 0
    calibration, evaluation = cfg.calibration.view.source, cfg.evaluation.view.source
    assert dict(calibration) != dict(evaluation), 'paths are scored on the images of the re-estimation'
    if cfg.get('race'):
        race, initial = RaceSettings(**cfg.race), random_records(searcher.header(''))
        assert group_of(0, initial, searcher.block, race.group) == (0, initial)
        # Fewer images for a path that leaves at once than the released calibration alone has.
        assert cfg.calibration.batches * cfg.calibration.batch_size + race.images[0] < 49 * 128


@pytest.mark.parametrize('path', LISTS, ids=str)
def test_shortlist_config_names_a_training_of_one_network(path):
    from pinas_zoo.mm.search import searcher_of
    from pinas_zoo.search.shortlist import draw_random
    from pinas_zoo.search.strategies import random_records

    cfg = read(path)
    training = read(Path(cfg.training).relative_to(ROOT))
    assert training.model.type == 'pinas_zoo.Classifier' and cfg.top > 0 and cfg.random > 1
    assert dict(training.val_dataloader.dataset.source) != dict(training.test_dataloader.dataset.source)
    assert cfg.metric in ('accuracy/top1',)
    searcher, _ = searcher_of(read(Path(cfg.search).relative_to(ROOT)), seed=0)
    initial = random_records(searcher.header(''))
    archs = searcher.ask(initial)
    drawn = {archs[place] for place in draw_random(initial, cfg.random)}  # known before the search has run
    assert len(archs) == initial and len(drawn) == cfg.random
    assert cfg.get('processes', 1) * cfg.get('workers', 1) in (2, 8)  # two cores, eight GPUs


def test_the_paper_recipe():
    cfg = read(Path('configs/pretrain/pinas-supernet_8xb24-coslr-100e_in1k.py'))
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 192
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (0.03, 0.9, 1e-4)
    method = cfg.model.method
    assert (method.queue_length, method.momentum, method.temperature, method.dim) == (49152, 0.999, 0.2, 128)
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler.T_max == 100


def test_quickstart_data_fit_the_digits(monkeypatch, tmp_path):
    """If Fashion-MNIST is neither installed nor available, the same configs run on digits; parts remain disjoint."""
    from pinas_zoo.data import fashion_mnist, open_source
    from pinas_zoo.data.fixed_batches import FixedBatches

    monkeypatch.setattr(fashion_mnist, 'DEBIAN_FOLDER', tmp_path)
    monkeypatch.setenv('PINAS_CACHE_DIR', str(tmp_path))
    monkeypatch.setenv('PINAS_OFFLINE', '1')
    trained = set()
    for name in ('pinas-nano-supernet_b128-coslr', 'pinas-nano-linear_b256', 'pinas-nano_b128-coslr'):
        cfg = read(Path(f'configs/quickstart/{name}_fmnist.py'))
        source = open_source(cfg.train_dataloader.dataset.dataset.source)
        assert source.description['data'] == 'digits' and len(source) >= cfg.train_dataloader.batch_size
        trained |= {source.name(i) for i in range(len(source))}
    cfg = read(Path('configs/quickstart/pinas-nano-tree_128_fmnist.py'))
    assert len(list(FixedBatches(**cfg.calibration))) == cfg.calibration.batches
    evaluation = FixedBatches(**cfg.evaluation, labelled=True)
    assert len(list(evaluation)) >= 1
    held_out = evaluation.dataset.source
    assert not trained & {held_out.name(i) for i in range(len(held_out))}
