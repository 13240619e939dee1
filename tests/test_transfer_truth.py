"""The dense task by hand, and a small transfer table: lines, resume, kept sources, the truth it makes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from serial_pool import use_serial_pool

from pinas_zoo.files import read_lines
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.ranking import transfer
from pinas_zoo.ranking.dense import BACKGROUND, DenseNet, DenseTask, compose_dense, mean_iou, patch_labels, place_items
from pinas_zoo.ranking.standalone import Recipe
from pinas_zoo.ranking.task import PairTask
from pinas_zoo.ranking.transfer import TransferStudy, extend_transfer, read_transfer, train_line
from pinas_zoo.ranking.truth import Study, Truth, TruthRow
from pinas_zoo.space import SearchSpace

SPACE = SearchSpace('small', (1, 1), (16, 16), (1, 2), (8, 8, 8), 1, False, stem_kernel=1, expansion=1, input_size=4)
SOURCE = Study(
    SPACE, PairTask(item=8, patch=2, train=64, heldout=8, test=32), Recipe(steps=3, batch=8, warmup=1, calibration=2)
)
STUDY = TransferStudy(
    SOURCE, DenseTask(item=8, side=12, items=3, patch=2, train=32, test=16), Recipe(steps=4, batch=8, warmup=1)
)


def test_later_items_cover_earlier_ones() -> None:
    items = torch.stack([torch.full((2, 2), 100), torch.tensor([[200, 0], [200, 200]])]).to(torch.uint8)
    canvas, owners = place_items(
        items, torch.tensor([4, 7]), torch.tensor([[0, 1], [1, 0]]), torch.tensor([[[0, 0], [0, 1]]] * 2), 4
    )
    assert canvas[0].tolist() == [[100, 200, 0, 0], [100, 200, 200, 0], [0] * 4, [0] * 4]
    b = BACKGROUND
    assert owners[0].tolist() == [[4, 7, b, b], [4, 7, 7, b], [b] * 4, [b] * 4]
    assert owners[1].tolist() == [[7, 4, 4, b], [7, 4, 4, b], [b] * 4, [b] * 4]
    assert patch_labels(owners, 2).tolist() == [[[4, b], [b, b]], [[4, 4], [b, b]]]


def test_parts_are_fixed_and_differ() -> None:
    task = STUDY.task
    train, test = (compose_dense(task, part) for part in ('train', 'test'))
    assert train.images.shape == (32, 1, 12, 12) and train.labels.shape == (32, 6, 6)
    compose_dense.cache_clear()
    assert torch.equal(compose_dense(task, 'train').images, train.images)
    assert not torch.equal(train.images[:16], test.images)
    assert 2 < len(train.labels.unique()) <= BACKGROUND + 1
    with pytest.raises(ValueError, match='unknown part'):
        compose_dense(task, 'heldout')
    for wrong in (dict(side=11), dict(item=30), dict(items=0)):
        with pytest.raises(ValueError, match=r'must be'):
            dataclasses.replace(task, **wrong)


def test_mean_iou_by_hand() -> None:
    labels, predicted = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 1]])
    assert mean_iou(predicted, labels) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 11, (2, 5, 40))
    each = [np.sum((a == c) & (b == c)) / np.sum((a == c) | (b == c)) for c in range(11)]
    assert mean_iou(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(100 * np.mean(each))


def test_locations_keep_the_resolution_of_the_first_stage() -> None:
    net = DenseNet(PiNASNet((0, 1), SPACE, num_classes=5, in_chans=4)).eval()
    x = torch.randn(2, 4, 6, 6)
    _, (_, first, second) = net.net.forward_intermediates(x)
    wide = second.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(net(x), net.classify(torch.cat([first, wide], dim=1)))


def truth(count: int = 6) -> Truth:
    archs = [SPACE.parse(f'{a}-{b}') for a, b in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2))[:count]]
    rows = tuple(TruthRow(i, arch, (50.0, 51.0), (2.0, 2.1), 10 + i, 5, (1.0, 1.0)) for i, arch in enumerate(archs))
    return Truth({'space': SPACE.to_dict(), 'task': {}, 'data': 'x'}, SOURCE, rows)


def test_table_continues_and_becomes_a_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths 1, 3 and 5 are the reporting half; another design is in the same file."""

    use_serial_pool(monkeypatch, transfer)
    file, kept = tmp_path / 'table.jsonl', tmp_path / 'nets'
    extend_transfer(file, STUDY, truth(), 1, sources=kept)
    first = read_lines(file)
    assert [(line['path'], line['seed']) for line in first] == [(1, 2), (1, 3)]
    frozen = dataclasses.replace(STUDY, frozen=True)
    extend_transfer(file, frozen, truth(), 1, sources=kept)
    extend_transfer(file, STUDY, truth(), 2, sources=kept)
    lines = read_lines(file)
    assert lines[:2] == first and len(lines) == 6 and {line['design'] for line in lines} == {STUDY.id, frozen.id}
    for one, other in zip(lines[:2], lines[2:4], strict=True):  # the same networks, read from the folder
        assert one['source_top1'] == other['source_top1'] and one['miou'] != other['miou']
    made = read_transfer(file, STUDY, truth())
    assert [row.path for row in made.rows] == [1, 3] and made.half('tuning') == () and made.study.seeds == 2
    assert made.rows[1].top1 == tuple(line['miou'] for line in lines[4:]) and made.rows[1].macs == 13
    alone = train_line((1, SPACE.parse('0-1'), 2), STUDY)
    assert json.loads(json.dumps({**alone, 'seconds': 0})) == {**first[0], 'seconds': 0}
    with pytest.raises(ValueError, match=r'paths in 1\.\.3'):
        extend_transfer(file, STUDY, truth(), 4)
