"""One class list per training, and what a classification, pre-training or search run says about its images first."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmengine')
from downstream import ROOT
from mmengine.config import Config

from pinas_zoo.data import BrokenRateError, FolderSource, images, open_source
from pinas_zoo.mm.engine.class_list import pin_classes
from pinas_zoo.mm.engine.from_data import FROM_DATA
from pinas_zoo.mm.engine.launch import check_data, prepare_training, train
from pinas_zoo.mm.engine.options import Options
from pinas_zoo.mm.preflight.bad_input import BadInputError, last_line
from pinas_zoo.weights.load import read_checkpoint

pytestmark = pytest.mark.mm
COLOURS = {'blue': (30, 30, 220), 'green': (30, 200, 30), 'red': (220, 30, 30)}


def colours(root: Path, train: int = 6, val: int = 3) -> Path:
    """Three classes that differ only in colour."""
    rng = np.random.default_rng(0)
    for split, count in (('train', train), ('val', val)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f'{number}.png')
    return root


def config(root: Path, base: str = 'imagenet/pinas-a_8xb32-coslr-270e_in1k.py', **model: object) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / base)
    cfg.model = dict(type=cfg.model.type, model=dict(model_name='pinas_nano', arch='30-32-20-03'), **model)
    for split in ('train', 'val'):
        view = dict(type='pinas_zoo.SupervisedView', size=16, source=dict(kind='folder', root=str(root / split)))
        if split == 'train':
            view = dict(type='pinas_zoo.SeededDataset', dataset=view)
        cfg[f'{split}_dataloader'].update(dataset=view, batch_size=6, num_workers=0, persistent_workers=False)
    cfg.test_dataloader = cfg.val_dataloader
    cfg.val_evaluator = cfg.test_evaluator = dict(type='pinas_zoo.TopAccuracy', topk=(1,))
    cfg.train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_iters=2, val_interval=2)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-3))
    cfg.param_scheduler = dict(type='CosineAnnealingLR', T_max=2, by_epoch=True, convert_to_iter_based=True)
    cfg.custom_hooks = []
    cfg.default_hooks.checkpoint = dict(type='pinas_zoo.ExactCheckpointHook', by_epoch=False, interval=2)
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    return cfg


def problems(cfg: Config, tmp_path: Path) -> tuple[list[str], list[str]]:
    """Errors and notes of a training's first look."""
    notes: list[str] = []
    cfg.dump(tmp_path / 'looked_at.py')
    try:
        prepare_training(tmp_path / 'looked_at.py', Options(work_dir=str(tmp_path / 'none')), notes)
    except BadInputError as error:
        return str(error).splitlines(), notes
    return [], [note for note in notes if note.startswith('preflight')]


# ---- the class list --------------------------------------------------------------------------------------------------


def test_a_training_keeps_its_classes_through_every_stage(tmp_path: Path) -> None:
    """A validation or test folder without one class, or without its folder, numbers the others as the training did."""
    from pinas_cli.main import main as pinas
    from pinas_zoo.mm.engine.testing import test
    from pinas_zoo.mm.inference.predictors import open_predictor
    from pinas_zoo.weights.publish import publish

    root = colours(tmp_path / 'data')
    shutil.rmtree(root / 'val/green')
    cfg = config(root, num_classes=FROM_DATA)
    cfg.dump(tmp_path / 'config.py')
    runner = train(tmp_path / 'config.py', Options(work_dir=str(tmp_path / 'run')))
    view = runner.val_dataloader.dataset
    assert view.source.classes == tuple(COLOURS) and set(view.source.labels) == {0, 2}
    checkpoint = (tmp_path / 'run/last_checkpoint').read_text()
    assert list(read_checkpoint(checkpoint).classes) == list(COLOURS)

    lost = {'train_dataloader.dataset.dataset.source.root': str(tmp_path / 'none')}
    again = test(tmp_path / 'config.py', checkpoint, Options(work_dir=str(tmp_path / 'test'), cfg_options=lost))
    trained = json.loads((next((tmp_path / 'run').glob('*/vis_data/scalars.json'))).read_text().splitlines()[-1])
    assert again['accuracy/loss'] == pytest.approx(trained['accuracy/loss'])

    predictor = open_predictor(str(tmp_path / 'config.py'), checkpoint, 'cpu')
    assert list(predictor.classes) == list(COLOURS)
    publish(checkpoint, tmp_path / 'published')
    described = json.loads((tmp_path / 'published/config.json').read_text())
    assert described['label_names'] == list(COLOURS)
    published = tmp_path / 'published/model.safetensors'
    assert list(open_predictor('pinas_nano', published, 'cpu').classes) == list(COLOURS)

    exported, extra = tmp_path / 'net.pt2', {'classes.json': ''}
    assert pinas(['export', 'pinas_nano', str(exported), '--checkpoint', str(published)]) == 0
    torch.export.load(exported, extra_files=extra)
    assert json.loads(extra['classes.json']) == list(COLOURS)

    (root / 'val/red').rename(root / 'val/crimson')
    with pytest.raises(BadInputError, match=r'\(crimson\) that are not among the 3 classes \(blue, green, red\)'):
        test(tmp_path / 'config.py', checkpoint, Options(work_dir=str(tmp_path / 'test')))
    (root / 'train/red').rename(root / 'train/crimson')
    with pytest.raises(BadInputError, match=r'\(crimson\) that are not among the 3 classes'):
        train(tmp_path / 'config.py', Options(work_dir=str(tmp_path / 'run'), resume='auto'))


def test_a_search_numbers_classes_as_the_linear_stage_did(tmp_path: Path) -> None:
    root = colours(tmp_path)
    shutil.rmtree(root / 'val/blue')
    parts = {key: dict(view=dict(source=dict(kind='folder', root=str(root / split)), size=16), batch_size=3)
             for key, split in (('calibration', 'train'), ('evaluation', 'val'))}  # fmt: skip
    for known in (None, tuple(COLOURS)):
        cfg = Config(dict(num_classes=3, **parts))
        pin_classes(cfg, known)
        assert list(cfg.evaluation.view.source.classes) == list(COLOURS)
        notes: list[str] = []
        check_data(cfg, ('calibration', 'evaluation'), notes)
        assert any('evaluation.view: no image of class (blue)' in note for note in notes)
    cfg.evaluation.batches = 9
    with pytest.raises(BadInputError, match=r'evaluation\.view: 9 batches of 3 were requested, 6 images give 2'):
        check_data(cfg, ('evaluation',), [])


def test_classes_by_name(tmp_path: Path) -> None:
    root = colours(tmp_path)
    cfg = config(root, num_classes=3)
    cfg.train_dataloader.dataset.dataset.source.classes = ['red', 'green', 'blue']
    pin_classes(cfg)
    assert cfg.val_dataloader.dataset.source.classes == ['red', 'green', 'blue']
    with pytest.raises(
        BadInputError, match=r'\(red, green, blue\) are not the classes that the checkpoint was trained'
    ):
        pin_classes(cfg, ('blue', 'green', 'red'))


# ---- the first look --------------------------------------------------------------------------------------------------


def test_nothing_is_said_about_good_data(tmp_path: Path) -> None:
    assert problems(config(colours(tmp_path), num_classes=3), tmp_path) == ([], [])


def test_several_problems_at_once(tmp_path: Path) -> None:
    root = colours(tmp_path)
    shutil.copy(root / 'train/red/0.png', root / 'train/cover.png')
    shutil.rmtree(root / 'val')
    (root / 'val').mkdir()
    (root / 'val/notes.txt').touch()
    errors, _ = problems(config(root, num_classes=3), tmp_path)
    assert errors[0] == '2 problems with the data:'
    assert errors[1].endswith('has no images; left out: 1 .txt files')
    assert '1 of 19 images are outside the class folders and have no class' in errors[2] and 'cover.png' in errors[2]


@pytest.mark.parametrize('count', [2, 1000])
def test_another_number_of_classes(count: int, tmp_path: Path) -> None:
    errors, _ = problems(config(colours(tmp_path), num_classes=count), tmp_path)
    (error,) = errors
    assert error.startswith(f'model.num_classes is {count}, the folder has 3 classes (blue, green, red)')
    assert ('classes=(...) of its source names them all' in error) == (count > 3)


@pytest.mark.parametrize(
    ('classes', 'text'),
    [
        (('red', 'red', 'blue'), "names 'red' more than once"),
        ('red', "is the text 'red': write a tuple, ('red',)"),
        ((0, 1, 2), "contains 0: class names are texts, such as '0'"),
    ],
)
def test_a_class_list_names_each_class_once(classes: object, text: str, tmp_path: Path) -> None:
    cfg = config(colours(tmp_path), num_classes=3)
    cfg.train_dataloader.dataset.dataset.source.classes = classes
    (error,), _ = problems(cfg, tmp_path)
    assert error == f'train_dataloader.dataset.dataset.source.classes {text}'


def test_folders_in_composed_and_decomposed_unicode_are_one_class(tmp_path: Path) -> None:
    """macOS unpacks names in another form than Linux writes them."""
    root = colours(tmp_path)
    for split, form in (('train', 'NFC'), ('val', 'NFD')):
        (root / split / 'red').rename(root / split / unicodedata.normalize(form, 'rosé'))
    assert problems(config(root, num_classes=3), tmp_path) == ([], [])
    source = FolderSource(root / 'val', ['blue', 'green', unicodedata.normalize('NFC', 'rosé')])
    assert set(source.labels.tolist()) == {0, 1, 2}


def test_too_many_broken_pictures_end_a_training_with_a_line(tmp_path: Path) -> None:
    root = colours(tmp_path)
    for path in (root / 'val/red').iterdir():
        path.write_text('<!DOCTYPE html>')
    cfg = config(root, num_classes=3)
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises(BadInputError, match=r'^2 of \d+ reads failed .* First: .*val/red/0\.png'):
        train(tmp_path / 'config.py', Options(work_dir=str(tmp_path / 'run')))
    wrapped = 'Caught BrokenRateError in DataLoader worker process 0.\nOriginal Traceback\nx.BrokenRateError: 2 of 9'
    assert last_line(BrokenRateError(wrapped)) == '2 of 9'


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    root = colours(tmp_path)
    cfg = config(root, num_classes=3)
    cfg.val_dataloader.dataset.source.root = str(root / 'val/red')
    errors, _ = problems(cfg, tmp_path)
    assert 'val_dataloader.dataset: none of the 3 images has a label' in errors[0]


def test_what_is_legal_and_surprising(tmp_path: Path) -> None:
    root = colours(tmp_path, train=1)
    (root / 'train/red/0.png').rename(root / 'train/blue/1.png')
    (root / 'train/blue/broken.png').write_bytes(b'no image')
    cfg = config(root, num_classes=3)
    cfg.train_dataloader.dataset.dataset.source.classes = tuple(COLOURS)
    cfg.val_evaluator.topk = (1, 5)
    errors, notes = problems(cfg, tmp_path)
    assert not errors
    for text in (
        'no image of class (red)',
        'only one image of class (green)',
        '1 of 4 checked images do not decode: cannot read image',
        'val_evaluator.topk [5]: of 3 classes that is always 100 %',
    ):
        assert sum(text in note for note in notes) == 1, text


def test_fewer_images_than_a_batch_train(tmp_path: Path) -> None:
    cfg = config(colours(tmp_path, train=2), num_classes=3)
    cfg.train_dataloader.batch_size = 8
    cfg.train_cfg = dict(type='pinas_zoo.ExactIterLoop', max_epochs=2)
    cfg.dump(tmp_path / 'config.py')
    runner = train(tmp_path / 'config.py', Options(work_dir=str(tmp_path / 'run')))
    assert runner.iter == 2 and runner.epoch == 1
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert '6 images are fewer than a batch of 8 on 1 process(es): they repeat' in log


def test_a_folder_is_walked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class list, the first look and the data sets of a training share what was opened."""
    root, walked = colours(tmp_path / 'data'), []
    monkeypatch.setattr(
        images, 'find_images', lambda folder, find=images.find_images: walked.append(folder) or find(folder)
    )
    config(root, num_classes=FROM_DATA).dump(tmp_path / 'config.py')
    train(tmp_path / 'config.py', Options(work_dir=str(tmp_path / 'run')))
    assert sorted(walked) == [root / 'train', root / 'val']
    open_source(dict(kind='folder', root=str(root / 'val')))
    assert len(walked) == 3  # nothing is kept after the run
