"""Configs that take class names and counts from their data."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('mmengine')
from downstream_runs import short_config
from mmengine.config import Config

from pinas_zoo.data import DigitsSource
from pinas_zoo.data.scenes.prepare import SceneSettings, prepare_scenes
from pinas_zoo.mm.engine.from_data import FROM_DATA, fill_from_data, is_open
from pinas_zoo.mm.preflight.bad_input import BadInputError

pytestmark = pytest.mark.mm
NAMES = ('north', 'east', 'south', 'west')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of four classes: neither Fashion-MNIST's names nor their number."""
    parts = [DigitsSource('train', 400), DigitsSource('test')]
    for source in parts:
        source.labels, source.classes = source.labels % 4, NAMES
    root = tmp_path_factory.mktemp('data') / 'scenes'
    prepare_scenes(root, SceneSettings(128, 8, 4, 0, ('coco', 'ade20k')), *parts)
    return root


def config(dataset: dict, **more: object) -> Config:
    model = dict(head=[dict(num_classes=FROM_DATA), dict(num_classes=7)])
    return Config(dict(model=model, train_dataloader=dict(dataset=dataset), **more))


def coco(root: Path, classes: object = FROM_DATA) -> dict:
    file = 'coco/annotations/instances_train2017.json'
    return dict(type='CocoDataset', data_root=str(root), ann_file=file, metainfo=dict(classes=classes))


# ---- where the names are ---------------------------------------------------------------------------------------------


def test_a_coco_file_says_them(scenes: Path) -> None:
    cfg = config(dict(type='RepeatDataset', dataset=coco(scenes)), val_dataloader=dict(dataset=coco(scenes / 'none')))
    assert is_open(cfg) and is_open(cfg.model)
    fill_from_data(cfg)
    assert not is_open(cfg)
    assert cfg.train_dataloader.dataset.dataset.metainfo.classes == list(NAMES)
    assert cfg.val_dataloader.dataset.metainfo.classes == list(NAMES)  # one list per training
    assert [head.num_classes for head in cfg.model.head] == [4, 7]


def test_a_list_beside_label_maps_says_them(scenes: Path) -> None:
    dataset = dict(type='BaseSegDataset', data_root=str(scenes / 'ade20k'), metainfo=dict(classes=FROM_DATA))
    cfg = config(dataset)
    fill_from_data(cfg)
    assert cfg.train_dataloader.dataset.metainfo.classes == [*NAMES, 'wall', 'floor']
    assert cfg.model.head[0].num_classes == 6


def test_a_source_says_them() -> None:
    source = dict(kind='digits', split='train')
    cfg = config(dict(type='SupervisedView', source=source))
    fill_from_data(cfg)
    assert cfg.model.head[0].num_classes == 10
    search = Config(dict(num_classes=FROM_DATA, calibration=dict(view=dict(source=source)), budget=3))
    fill_from_data(search)
    assert search.num_classes == 10


def test_names_in_the_config_count(scenes: Path) -> None:
    cfg = config(coco(scenes, ('south', 'north')))
    fill_from_data(cfg)
    assert cfg.model.head[0].num_classes == 2 and cfg.train_dataloader.dataset.metainfo.classes == ('south', 'north')


def test_the_names_of_a_checkpoint_count(scenes: Path) -> None:
    cfg = config(coco(scenes / 'none'))
    fill_from_data(cfg, names=('a', 'b', 'c'))
    assert cfg.model.head[0].num_classes == 3 and cfg.train_dataloader.dataset.metainfo.classes == ['a', 'b', 'c']


def test_configs_without_it_are_left_alone(scenes: Path) -> None:
    cfg = Config(dict(model=dict(num_classes=3), train_dataloader=dict(dataset=coco(scenes / 'none', ('x',)))))
    before = cfg.to_dict()
    fill_from_data(cfg)
    assert cfg.to_dict() == before


# ---- where they are not ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, r'one\.json: No such file or directory; classes=.from data. takes the class names from it'),
        ('{', r'one\.json: no categories with names'),
        ('{"categories": [{"id": 1}]}', r'one\.json: no categories with names'),
        ('{"categories": []}', r'one\.json: contains no class names'),
    ],
)
def test_a_bad_annotation_file(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / 'one.json').write_text(content)
    cfg = config(dict(coco(tmp_path), ann_file='one.json'))
    with pytest.raises(BadInputError, match=message):
        fill_from_data(cfg)


def test_data_sets_that_say_nothing_or_different_things(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"needs classes='from data', or names, in the metainfo of CocoDataset"):
        fill_from_data(config(coco(scenes, None)))
    with pytest.raises(BadInputError, match=r"\('a',\) and \('north', 'east', 'south', 'west'\)"):
        fill_from_data(config(dict(type='ConcatDataset', datasets=[coco(scenes, ('a',)), coco(scenes)])))
    with pytest.raises(BadInputError, match='the config has no data set'):
        fill_from_data(Config(dict(model=dict(num_classes=FROM_DATA))))
    (tmp_path / 'a.png').write_bytes(b'x')
    with pytest.raises(BadInputError, match='have no labels'):
        fill_from_data(config(dict(source=dict(kind='folder', root=str(tmp_path)))))


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['detection', 'segmentation'])
def test_the_quickstart_trains_on_any_classes(kind: str, scenes: Path, tmp_path: Path) -> None:
    """The shipped config is trained, tested and used for inference; only the training needs the data."""
    from pinas_zoo.mm.engine.launch import train
    from pinas_zoo.mm.engine.options import Options
    from pinas_zoo.mm.engine.testing import test
    from pinas_zoo.mm.inference.predictors import open_predictor

    names = [*NAMES, 'wall', 'floor'] if kind == 'segmentation' else list(NAMES)
    cfg = short_config(kind, scenes, 2)
    cfg.work_dir = str(tmp_path / 'run')
    file = tmp_path / 'config.py'
    cfg.dump(file)
    assert FROM_DATA in file.read_text()
    runner = train(file, Options())
    assert list(runner.train_dataloader.dataset.metainfo['classes']) == names
    head = runner.model.decode_head if kind == 'segmentation' else runner.model.roi_head.bbox_head
    assert head.num_classes == len(names)
    checkpoint = (tmp_path / 'run/last_checkpoint').read_text()
    (dumped,) = (tmp_path / 'run').glob('*.py')
    assert not is_open(Config.fromfile(dumped))

    missing = {'train_dataloader.dataset.data_root': str(tmp_path / 'none')}
    metrics = test(file, checkpoint, Options(work_dir=str(tmp_path / 'test'), cfg_options=missing))
    assert metrics
    predictor = open_predictor(str(file), checkpoint, 'cpu', cfg_options=missing)
    assert list(predictor.classes) == names
    predictor.run([np.zeros((128, 128, 3), np.uint8)])


def test_a_training_without_its_data(tmp_path: Path) -> None:
    from pinas_zoo.mm.engine.launch import train
    from pinas_zoo.mm.engine.options import Options

    cfg = short_config('detection', tmp_path / 'none', 2)
    file = tmp_path / 'config.py'
    cfg.dump(file)
    with pytest.raises(BadInputError, match=r'instances_train2017\.json: No such file or directory'):
        train(file, Options(work_dir=str(tmp_path / 'run')))


def test_stages_of_classification_count_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pinas_zoo.mm.engine.launch import prepare_training
    from pinas_zoo.mm.engine.options import Options

    monkeypatch.setenv('PINAS_FASHION_MNIST', 'digits')
    root = Path(__file__).parents[1] / 'configs/quickstart'
    for name in ('pinas-nano_b128-coslr_fmnist.py', 'pinas-nano-linear_b256_fmnist.py'):
        assert prepare_training(root / name, Options(work_dir=str(tmp_path)), []).model.num_classes == 10
    search = Config.fromfile(root / 'pinas-nano-tree_128_fmnist.py')
    assert is_open(search)
    fill_from_data(search)
    assert search.num_classes == 10
