"""The ground truth of the ranking study: images, draw of the paths, table."""

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
import torch

from pinas_zoo.data import open_source
from pinas_zoo.models.cost import count
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.ranking import truth as truth_module
from pinas_zoo.ranking.spaces import RANK_SPACE
from pinas_zoo.ranking.standalone import Recipe, Result, train_path
from pinas_zoo.ranking.task import PARTS, PairTask, augment, compose, index_batches, normalise, pair_class, to_patches
from pinas_zoo.ranking.truth import HALVES, Study, draw_paths, extend, read_truth, verify
from pinas_zoo.search.log import SearchLog
from pinas_zoo.space import Candidate, SearchSpace

TASK = PairTask(item=8, patch=2, train=96, heldout=32, test=60)
RECIPE = Recipe(steps=4, batch=16, warmup=2, calibration=2)
SPACE = SearchSpace(
    'tiny',
    depths=(3,),
    planes=(4,),
    strides=(1,),
    stem_widths=(4, 4, 8),
    stem_pool=False,
    candidates=(Candidate(), Candidate(skip=True), Candidate(kernel=1)),
    expansion=2,
    min_attention_width=4,
    input_size=12,
)
STUDY = Study(SPACE, TASK, RECIPE)


@pytest.fixture
def fake_training(monkeypatch):
    """Immediate results from arch and seed; the list contains what was trained."""
    trained = []

    def fake(space, task, recipe, arch, seed, device):
        trained.append((arch, seed))
        return Result(top1=10 * sum(arch) + seed, loss=3.0 - sum(arch), seconds=1.0)

    monkeypatch.setattr(truth_module, 'train_path', fake)
    return trained


# ---- the task --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('part', PARTS)
def test_parts_are_the_same_again_and_of_the_right_form(part):
    pairs = compose(TASK, part)
    compose.cache_clear()
    again = compose(TASK, part)
    assert torch.equal(pairs.images, again.images) and torch.equal(pairs.labels, again.labels)
    assert pairs.images.shape == (getattr(TASK, part), 1, 8, 16) and pairs.images.dtype == torch.uint8
    assert int(pairs.labels.min()) >= 0 and int(pairs.labels.max()) < TASK.num_classes


def test_another_seed_makes_other_pairs():
    other = PairTask(item=8, patch=2, train=96, heldout=32, test=60, seed=1)
    assert not torch.equal(compose(TASK, 'train').labels, compose(other, 'train').labels)


def test_training_and_heldout_items_are_disjoint():
    spec = {'kind': 'fashion-mnist', 'split': 'train', 'holdout': 1 / 6, 'seed': TASK.seed}
    parts = [set(open_source(spec | {'part': part}).indices.tolist()) for part in ('train', 'holdout')]
    assert not parts[0] & parts[1] and len(parts[0]) > len(parts[1]) > 0


def test_pair_class_numbers_the_unordered_pairs():
    first, second = torch.cartesian_prod(torch.arange(10), torch.arange(10)).unbind(1)
    classes = pair_class(first, second)
    assert torch.equal(classes, pair_class(second, first))
    assert sorted(set(classes.tolist())) == list(range(55))


def test_two_items_lie_side_by_side():
    pairs = compose(TASK, 'train')
    spec = {'kind': 'fashion-mnist', 'split': 'train', 'part': 'train', 'holdout': 1 / 6, 'seed': TASK.seed}
    pixels, classes = open_source(spec).tensors()
    items = torch.nn.functional.interpolate(pixels[:, :1].float(), size=(8, 8), mode='bilinear', antialias=True)
    items = items.round().to(torch.uint8).flatten(1)
    for image, label in zip(pairs.images[:5], pairs.labels[:5], strict=True):
        halves = [(items == half.flatten()).all(dim=1) for half in image.split(8, dim=-1)]
        assert all(half.any() for half in halves)
        assert pair_class(*(classes[half][0] for half in halves)) == label


def test_patches_are_channels():
    images = torch.randint(255, (2, 1, 8, 16), dtype=torch.uint8)
    patches = normalise(images, 4)
    assert patches.shape == (2, 16, 2, 4) == (2, PairTask(item=8).in_chans, *PairTask(item=8).input_size)
    assert torch.equal(patches[1, :, 1, 2].view(4, 4), normalise(images, 1)[1, 0, 4:8, 8:12])
    views = torch.rand(2, 3, 1, 8, 16)
    assert torch.equal(to_patches(views, 2)[1, 2], to_patches(views[1, 2][None], 2)[0])


def test_augmentation_moves_pixels_and_keeps_what_stays_inside():
    images = torch.zeros(8, 1, 12, 12, dtype=torch.uint8)
    images[:, :, 4:8, 4:8] = torch.randint(1, 255, (8, 1, 4, 4), dtype=torch.uint8)
    moved = augment(images, torch.Generator().manual_seed(0), shift=2)
    assert moved.shape == images.shape and not torch.equal(moved, images)
    assert torch.equal(moved.flatten(1).long().sum(1), images.flatten(1).long().sum(1))
    assert torch.equal(
        augment(images, torch.Generator().manual_seed(0), shift=0).flip(-1).sort(-1)[0], images.flip(-1).sort(-1)[0]
    )


def test_normalised_canvases_have_about_unit_scale():
    pixels = normalise(compose(PairTask(), 'test').images, 1)
    assert abs(float(pixels.mean())) < 0.1 and abs(float(pixels.std()) - 1) < 0.1


def test_index_batches_show_every_image_before_one_comes_again():
    batches = list(islice(index_batches(10, 4, torch.Generator().manual_seed(0)), 5))
    assert [len(b) for b in batches] == [4] * 5
    order = torch.cat(batches)
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))


@pytest.mark.parametrize('wrong', [dict(item=21), dict(item=0), dict(patch=0), dict(test=0)])
def test_wrong_tasks_are_refused(wrong):
    with pytest.raises(ValueError, match='item|test'):
        PairTask(**wrong)


def test_unknown_part_is_refused():
    with pytest.raises(ValueError, match="'valid', allowed: train"):
        compose(TASK, 'valid')


# ---- the draw --------------------------------------------------------------------------------------------------------


def test_isomorphic_paths_are_drawn_once():
    archs = draw_paths(STUDY, 15)  # two kinds of block: 1 + 2 + 4 + 8 networks of 0 to 3 blocks
    assert len({SPACE.canonical(arch) for arch in archs}) == 15
    with pytest.raises(ValueError, match='15 distinct networks'):
        draw_paths(STUDY, 16)


def test_every_network_has_the_same_chance():
    first = [draw_paths(Study(SPACE, TASK, RECIPE, draw=seed), 1)[0] for seed in range(1500)]
    counts = [first.count(arch) for arch in set(first)]
    assert len(counts) == 15
    assert sum((c - 100) ** 2 / 100 for c in counts) < 36.1  # chi-square, 14 degrees of freedom, 0.1 %


def test_longer_draw_begins_with_the_shorter_one():
    assert draw_paths(Study(), 40)[:10] == draw_paths(Study(), 10)


def test_ranking_space_has_what_the_study_needs():
    assert all(len(RANK_SPACE.choices(p)) >= 2 for p in range(RANK_SPACE.num_positions))
    assert len(draw_paths(Study(), 300)) == 300


# ---- one training ----------------------------------------------------------------------------------------------------


def test_training_is_the_same_again_and_differs_by_seed():
    first, again, other = (train_path(SPACE, TASK, RECIPE, (0, 2, 1), seed) for seed in (0, 0, 1))
    assert (first.top1, first.loss) == (again.top1, again.loss)
    assert first.loss != other.loss
    assert 0 <= first.top1 <= 100 and np.isfinite(first.loss) and first.seconds > 0


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    train_path(SPACE, TASK, RECIPE, (0, 1, 1), 0)
    assert torch.equal(state, torch.get_rng_state())


def test_training_learns():
    task = dataclasses.replace(TASK, train=3000, test=500)
    long = train_path(SPACE, task, Recipe(steps=500, batch=32, warmup=5, calibration=4), (0, 0, 0), 0)
    assert long.loss < np.log(55) - 0.2  # what guessing evenly costs


def test_learning_rate_warms_up_and_falls_to_nothing():
    rates = [RECIPE.lr_at(step) for step in range(RECIPE.steps + 1)]
    assert rates[0] == pytest.approx(RECIPE.lr / 2) and rates[1] > rates[2] > rates[3] and rates[4] == pytest.approx(0)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_table_holds_one_row_a_path(tmp_path, fake_training):
    file = tmp_path / 'truth.jsonl'
    extend(file, STUDY, 5)
    table = read_truth(file)
    assert table.study == STUDY
    assert [row.arch for row in table.rows] == draw_paths(STUDY, 5)
    for number, row in enumerate(table.rows):
        assert row.path == number and row.half == HALVES[number % 2]
        assert row.top1 == (10 * sum(row.arch), 10 * sum(row.arch) + 1) and row.loss == (3 - sum(row.arch),) * 2
        cost = count(PiNASNet(row.arch, SPACE, num_classes=55, in_chans=4), size=(4, 8), in_chans=4)
        assert (row.macs, row.params) == (cost.macs, cost.params)
    assert [row.path for row in table.half('tuning')] == [0, 2, 4]
    assert [row.path for row in table.half('reporting')] == [1, 3]
    with pytest.raises(ValueError, match="'all', allowed: tuning"):
        table.half('all')


def test_killed_table_goes_on_with_the_same_rows(tmp_path, fake_training):
    whole, killed = tmp_path / 'whole.jsonl', tmp_path / 'killed.jsonl'
    extend(whole, STUDY, 4)
    lines = whole.read_bytes().splitlines(keepends=True)
    killed.write_bytes(b''.join(lines[:4]) + lines[4][:20])  # header, three lines, an incomplete one
    assert len(read_truth(killed).rows) == 1  # a path with one of its seeds is left out
    fake_training.clear()
    extend(killed, STUDY, 4)
    assert killed.read_bytes() == whole.read_bytes()
    assert len(fake_training) == 5


def test_longer_table_keeps_the_rows_and_the_recorded_versions(tmp_path, fake_training, monkeypatch):
    file = tmp_path / 'truth.jsonl'
    extend(file, STUDY, 2)
    short = file.read_bytes()
    monkeypatch.setattr(truth_module, '__version__', '99')
    extend(file, STUDY, 3)
    assert file.read_bytes().startswith(short) and len(read_truth(file).rows) == 3


def test_another_study_is_refused(tmp_path, fake_training):
    file = tmp_path / 'truth.jsonl'
    extend(file, STUDY, 1)
    with pytest.raises(ValueError, match='recipe: recorded'):
        extend(file, Study(SPACE, TASK, Recipe(steps=5)), 2)


def test_other_logs_are_refused(tmp_path):
    with SearchLog(tmp_path / 'archs.jsonl', {'seed': 0}):
        pass
    with pytest.raises(ValueError, match='not a table of the ground truth'):
        read_truth(tmp_path / 'archs.jsonl')


@pytest.mark.processes
def test_workers_give_the_rows_of_one_process(tmp_path, forked_processes):
    for workers in (1, 2):
        extend(tmp_path / f'{workers}.jsonl', STUDY, 2, workers)
    one, two = (read_truth(tmp_path / f'{workers}.jsonl').rows for workers in (1, 2))
    assert [(r.arch, r.top1, r.loss) for r in one] == [(r.arch, r.top1, r.loss) for r in two]


def test_wrong_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match='workers must be at least 1, got 0'):
        extend(tmp_path / 'x', STUDY, 1, workers=0)
    with pytest.raises(ValueError, match='count must be at least 1, got 0'):
        draw_paths(STUDY, 0)


def test_verification_holds_for_the_recorded_and_fails_for_others(tmp_path, fake_training):
    file = tmp_path / 'truth.jsonl'
    extend(file, STUDY, 4)
    checks = list(verify(read_truth(file), 3))
    assert len({check.row.path for check in checks}) == 3 and all(check.holds for check in checks)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    spoilt = [lines[0]] + [line | {'score': line['score'] + 5} for line in lines[1:]]
    file.write_text(''.join(json.dumps(line) + '\n' for line in spoilt))
    assert not any(check.holds for check in verify(read_truth(file), 4))
    with pytest.raises(ValueError, match=r'1\.\.4'):
        next(verify(read_truth(file), 5))
