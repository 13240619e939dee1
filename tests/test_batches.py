"""Batches on their way to the model: finished by the preprocessor, read ahead, cores counted once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

pytest.importorskip('mmengine')
pytestmark = pytest.mark.mm

from mmengine.config import Config  # noqa: E402

from pinas_zoo.data import (  # noqa: E402
    BatchedViews,
    DigitsSource,
    FolderSource,
    FourViews,
    HalvedView,
    SupervisedView,
    collate_views,
)
from pinas_zoo.data.fixed_batches import FixedBatches  # noqa: E402
from pinas_zoo.mm.classify import Classifier, TopAccuracy  # noqa: E402
from pinas_zoo.mm.engine import machine  # noqa: E402
from pinas_zoo.mm.engine.batches import BatchPreprocessor, Prefetched, read_ahead  # noqa: E402
from pinas_zoo.mm.engine.machine import finish_on_device  # noqa: E402


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (root / name).mkdir()
        for index in range(4):
            pixels = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((110, 90)).save(root / name / f'{index}.jpg')
    return root


def samples(dataset: Any) -> list[dict]:
    out = []
    for index in range(4):
        torch.manual_seed(index)
        out.append(dataset[index])
    return out


@pytest.mark.parametrize(
    'settings',
    [dict(), dict(train=True), dict(train=True, augment='randaugment'), dict(train=True, shift=3)],
    ids=['evaluation', 'crops', 'randaugment', 'shift'],
)
def test_labelled_images_are_finished_alike(folder: Path, settings: dict) -> None:
    size = 90 if 'shift' in settings else 32
    views = [SupervisedView(FolderSource(folder), size, finish=finish, **settings) for finish in (True, False)]
    done, raw = (default_collate(samples(view)) for view in views)
    assert raw['image'].dtype == torch.uint8 and raw['statistics'].shape == (4, 2, 3)
    found = BatchPreprocessor()(raw)
    torch.testing.assert_close(found['image'], done['image'], atol=1e-6, rtol=0)
    assert found.keys() == done.keys() and found['label'].equal(done['label'])
    assert BatchPreprocessor()(done)['image'].equal(done['image'])


def test_grey_statistics_and_halves() -> None:
    spec = dict(kind='digits', split='train')
    done, raw = (default_collate(samples(HalvedView(spec, size=28, finish=finish))) for finish in (True, False))
    found = BatchPreprocessor()(raw)
    assert found['image'].equal(done['image']) and found['held_out']['image'].equal(done['held_out']['image'])
    assert 'statistics' not in found['held_out'] and found['image'].shape == (4, 3, 28, 28)


def test_views_are_finished_in_the_wanted_form(folder: Path) -> None:
    for make in (
        lambda f: FourViews(FolderSource(folder), 32, finish=f),
        lambda f: BatchedViews(DigitsSource('train'), finish=f),
    ):
        done, raw = (collate_views(samples(make(finish))) for finish in (True, False))
        assert BatchPreprocessor()(raw)['views'].equal(done['views'])
        assert BatchPreprocessor(dtype='bfloat16')(raw)['views'].equal(done['views'].bfloat16())
    last = BatchPreprocessor(channels_last=True)(
        collate_views(samples(FourViews(FolderSource(folder), 32, finish=False)))
    )
    assert last['views'][:, 2].is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match='allowed: float32, bfloat16, float16'):
        BatchPreprocessor(dtype='float64')


def test_batches_survive_pinning(folder: Path) -> None:
    """What pin_memory does to an unfinished batch, without a GPU: its tensors are found, the rest is unchanged."""
    from torch.utils.data._utils.pin_memory import pin_memory

    raw = collate_views(samples(FourViews(FolderSource(folder), 32, finish=False)))
    seen: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, 'pin_memory', lambda self, device=None: seen.append(tuple(self.shape)) or self)
        pinned = pin_memory(dict(raw))
    assert (4, 4, 3, 32, 32) in seen and tuple(pinned['spec']) == raw['spec']
    assert BatchPreprocessor()(pinned)['views'].equal(BatchPreprocessor()(raw)['views'])


# ---- reading ahead ---------------------------------------------------------------------------------------------------


def test_reading_ahead_keeps_the_order_and_the_errors() -> None:
    asked: list[int] = []

    def numbers() -> Iterator[dict]:
        for index in range(3):
            asked.append(index)
            yield {'value': index}
        raise OSError('broken')

    ahead = Prefetched(numbers(), lambda batch: {'value': batch['value'] * 10}, torch.device('cpu'))
    assert next(ahead) == {'value': 0} and asked == [0, 1]
    assert next(ahead) == {'value': 10} and asked == [0, 1, 2]
    assert next(ahead) == {'value': 20}  # the error belongs to the batch that is asked for next
    with pytest.raises(OSError, match='broken'):
        next(ahead)
    assert list(Prefetched(iter([1, 2, 3]), lambda x: x, torch.device('cpu'))) == [1, 2, 3]


def test_a_cpu_reads_nothing_ahead() -> None:
    net = Classifier(dict(model_name='resnet10t'), num_classes=2)
    assert isinstance(net.data_preprocessor, BatchPreprocessor)
    batches = iter([1])
    assert read_ahead(batches, net) is batches
    assert read_ahead(batches, torch.nn.Linear(1, 1)) is batches


# ---- the images of a search ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'form', [dict(in_memory=True), dict(), dict(keep_gib=2.5 * 3 * 3 * 32 * 32 / 2**30), dict(keep_gib=0)]
)
def test_a_search_decodes_its_images_once(folder: Path, form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """All batches kept, two of three, none: the same batches, and each image is read only as often as necessary."""
    view = dict(source=dict(kind='folder', root=str(folder)), size=32)
    batches, reads = FixedBatches(view, 3, labelled=True, **form), []
    load = FolderSource.load
    monkeypatch.setattr(FolderSource, 'load', lambda self, index: reads.append(index) or load(self, index))
    broken_off = iter(batches)
    next(broken_off)
    broken_off.close()
    passes = [list(batches) for _ in range(3)]
    kept = len(batches.kept)
    assert kept == {0: 0, None: 3}.get(form.get('keep_gib'), 2)
    assert len(reads) == 3 + 8 + 2 * 8 - (3 if kept else 0) - 2 * (8 if kept == 3 else 3 * kept)
    expected = default_collate([SupervisedView(**view)[i] for i in range(8)])
    for found in passes:
        assert torch.cat([images for images, _ in found]).equal(expected['image'])
        assert torch.cat([labels for _, labels in found]).equal(expected['label']) and len(found) == 3
    assert all(b['image'].dtype == torch.uint8 for b in batches.kept)


# ---- what is rewritten for a card ------------------------------------------------------------------------------------


def test_configs_are_finished_on_the_device() -> None:
    notes: list[str] = []
    cfg = Config.fromfile('configs/pretrain/pinas-supernet_8xb24-coslr-100e_in1k.py')
    finish_on_device(cfg, notes)
    assert cfg.train_dataloader.dataset.dataset.finish is False and cfg.train_dataloader.pin_memory and len(notes) == 1
    view = dict(type='pinas_zoo.SupervisedView', finish=True)
    cfg = Config(
        dict(val_dataloader=dict(dataset=dict(type='pinas_zoo.SeededDataset', dataset=view), pin_memory=False))
    )
    finish_on_device(cfg, notes)
    assert cfg.val_dataloader.dataset.dataset.finish is True and cfg.val_dataloader.pin_memory is False
    for other in (dict(model=dict(data_preprocessor=dict(type='Mine')), val_dataloader=dict(dataset=dict(view))),
                  dict(val_dataloader=dict(dataset=dict(type='CocoDataset')))):  # fmt: skip
        other['val_dataloader']['dataset'].pop('finish', None)
        cfg = Config(other)
        finish_on_device(cfg, notes)
        assert 'finish' not in cfg.val_dataloader.dataset and 'pin_memory' not in cfg.val_dataloader


def test_cores_are_divided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(10)), raising=False)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '5')
    monkeypatch.delenv('SLURM_CPUS_PER_TASK', raising=False)
    assert [machine.own_cores(name) for name in ('none', 'pytorch', 'slurm')] == [10, 2, 2]
    monkeypatch.setenv('SLURM_CPUS_PER_TASK', '10')  # srun has bound the task to its ten cores
    assert [machine.own_cores(name) for name in ('none', 'pytorch', 'slurm')] == [10, 2, 10]
    monkeypatch.setenv('SLURM_CPUS_PER_TASK', '4')  # or has not
    assert machine.own_cores('slurm') == 4


def test_accuracies_of_a_batch_are_those_of_its_images() -> None:
    scores = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).round()  # with ties
    scores[3, 2] = torch.nan
    labels = torch.arange(20) % 6
    metric = TopAccuracy(topk=(1, 3))
    metric.process(None, [{'scores': s, 'label': y} for s, y in zip(scores, labels, strict=True)])
    for (rank, loss), row, label in zip(metric.results, scores, labels.tolist(), strict=True):
        ahead = sum(
            not value <= row[label] or (value == row[label] and index < label)
            for index, value in enumerate(row.tolist())
        )
        assert rank == ahead
        assert loss == pytest.approx(float(-row.log_softmax(0)[label]), nan_ok=True)
