"""The study's trainer: its cost, that it repeats, that measuring changes nothing, that it continues after a stop."""

import copy
import dataclasses
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pinas_zoo.files import append_lines, read_lines
from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.ranking import study
from pinas_zoo.ranking.contestants import (
    CONTESTANTS,
    GROUPS,
    build_method,
    training_units,
)
from pinas_zoo.ranking.recipe import SupernetRecipe
from pinas_zoo.ranking.study import Job, is_result_of, missing_jobs, train_contestant
from pinas_zoo.ranking.task import PairTask, compose, normalise
from pinas_zoo.ranking.train import (
    cosine,
    halved_batches,
    labelled_batches,
    linear,
    optimise,
    score_paths,
    stairs,
    train_linear_head,
    view_batches,
)
from pinas_zoo.space import SearchSpace

SPACE = SearchSpace('small', (1, 1), (16, 32), (1, 2), (8, 8, 16), stem_pool=False, expansion=1, input_size=12)
TASK = PairTask(item=8, patch=2, train=256, heldout=64, test=64)
RECIPE = SupernetRecipe(
    units=16,
    batch=16,
    warmup=2,
    bfloat16=False,
    dim=8,
    queue_length=64,
    linear_steps=6,
    calibration_batches=2,
    held_out=64,
    probes=3,
    checkpoints=1,
    checkpoint_linear_steps=2,
    checkpoint_paths=2,
)
ARCHS = tuple(SPACE.all_archs())[:6]


def job(contestant: str = 'spos', seed: int = 0, **changes: Any) -> Job:
    return Job(contestant, seed, SPACE, TASK, dataclasses.replace(RECIPE, **changes), ARCHS)


def method_of(contestant: str, recipe: SupernetRecipe = RECIPE) -> Any:
    torch.manual_seed(0)
    net = SuperNet(SPACE, in_chans=TASK.in_chans)
    return build_method(CONTESTANTS[contestant], recipe, net, TASK.num_classes, seed=0)


# ---- recipe and cost ----------------------------------------------------------------------------


def test_equal_cost() -> None:
    """Steps, and what a step costs, from the definition: forward and backward 1, forward 1/3, linear step 1/3."""
    recipe = dataclasses.replace(RECIPE, units=240, linear_steps=72)
    per_step = dict(
        pinas=8 / 3, no_cross_path=8 / 3, no_teacher=8 / 3, no_negatives=8 / 3, moco=4 / 3, spos=1, fairnas=4
    )
    assert set(per_step) == set(GROUPS[''])
    for name, cost in per_step.items():
        assert method_of(name, recipe).units(0) == pytest.approx(cost)
        left = 240 - (0 if name in ('spos', 'fairnas') else 24)
        assert training_units(CONTESTANTS[name], recipe) == pytest.approx(left)
    tenth = [name for name, contestant in CONTESTANTS.items() if contestant.share != 1]
    assert tenth == ['bnnas_tenth', 'bnnas_p_tenth']
    assert training_units(CONTESTANTS['bnnas_tenth'], recipe) == pytest.approx(24)


def test_training_ends_where_the_path_units_do() -> None:
    """Also where steps differ in cost: a warm-up of the sparse supernet costs 4 units per step, then it costs 8."""
    for name, steps in (('spos', 16), ('fairnas', 4), ('bnnas', 24), ('sparse', 2), ('entrannas', None)):
        contestant = CONTESTANTS[name]
        method = method_of(name)
        if name == 'sparse':
            method.warmup_steps = 1
        make = halved_batches if contestant.arch_optimiser else labelled_batches
        training = optimise(method, make(TASK, 16, 0), 16, 0.1, linear, arch_optimiser=contestant.arch_optimiser)
        costs = [method.units(step) for step in range(len(training.losses) + 1)]
        assert training.units == pytest.approx(sum(costs[:-1])) and training.units <= 16 < sum(costs), name
        assert steps is None or len(training.losses) == steps, name


def test_a_recipe_is_known_by_its_values() -> None:
    assert SupernetRecipe().id == SupernetRecipe(units=6000).id != SupernetRecipe(units=6001).id
    changed = SupernetRecipe().changed({'units': '120', 'linear_steps': '9', 'bfloat16': 'False', 'temperature': '0.5'})
    assert (changed.units, changed.linear_steps, changed.bfloat16, changed.temperature) == (120.0, 9, False, 0.5)


@pytest.mark.parametrize(
    'values, message',
    [
        ({'unit': '1'}, r"no field \['unit'\]"),
        ({'batch': '0'}, 'at least 1'),
        ({'batch': 'x'}, 'invalid literal'),
        ({'units': '10', 'linear_steps': '30'}, 'use up all'),
    ],
)
def test_bad_recipes(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupernetRecipe().changed(values)


def test_contestants_are_what_they_are_called() -> None:
    for name in ('pinas', 'no_cross_path', 'no_teacher', 'no_negatives', 'moco'):
        method = method_of(name)
        assert isinstance(method, PiNAS)
        facts = (method.cross_path, method.teacher is not None, method.queue is not None, not method.single_path)
        assert facts.count(False) == (name != 'pinas')
        assert (method.temperature, method.momentum) == (RECIPE.temperature, RECIPE.teacher_momentum)


# ---- batches ------------------------------------------------------------------------------------


def test_batches_follow_from_the_seed() -> None:
    for make in (lambda s: labelled_batches(TASK, 16, s), lambda s: view_batches(TASK, RECIPE, 4, s)):
        runs = [list(islice(make(seed), 3)) for seed in (0, 0, 1)]
        key = next(iter(runs[0][0]))
        assert all(torch.equal(a[key], b[key]) for a, b in zip(runs[0], runs[1], strict=True))
        assert not torch.equal(runs[0][0][key], runs[2][0][key])


def test_views() -> None:
    batch = next(view_batches(TASK, RECIPE, 4, 0))
    assert set(batch) == {'views'}  # no label comes near an unsupervised method
    views = batch['views']
    assert views.shape == (16, 4, 4, 4, 8)
    assert not torch.equal(views[:, 0], views[:, 1])
    still = dataclasses.replace(RECIPE, crop_area=1.0, jitter=0, flip=0)
    batch = next(view_batches(TASK, still, 2, 0))
    images = normalise(compose(TASK, 'train').images, 2)
    for views in batch['views']:  # a whole crop of another aspect is not the image; the pixels' range stays
        assert images.min() - 1e-5 <= views.min() and views.max() <= images.max() + 1e-5


@pytest.mark.parametrize('rate, values', [(cosine, [1, 0.5, 0]), (linear, [1, 0.5, 0]), (stairs, [1, 1, 0.01])])
def test_rates(rate: Any, values: list[float]) -> None:
    assert [rate(done) for done in (0, 0.5, 1)] == pytest.approx(values, abs=1e-12)
    assert stairs(0.6) == pytest.approx(0.1) and stairs(0.79) == pytest.approx(0.1)


# ---- the loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize('contestant', ['spos', 'fairnas', 'pinas'])
def test_the_loop_is_plain_sgd(contestant: str) -> None:
    method = method_of(contestant)
    twin = copy.deepcopy(method)
    make = labelled_batches if contestant != 'pinas' else None
    batches = list(islice(make(TASK, 16, 0) if make else view_batches(TASK, RECIPE, 4, 0), 5))
    units = 5 * method.units(0)
    losses = optimise(method, iter(batches), units, 0.1, linear, weight_decay=0.01, warmup=2).losses
    groups = twin.param_groups()['weights']
    optimiser = torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.01)
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group['lr'] = 0.1 * (1 - step / 5) * (0.5 if step == 0 else 1)
        optimiser.zero_grad()
        total = sum(twin.loss(batch, step, part)['loss'] for part in range(twin.parts(step)))
        total.backward()
        optimiser.step()
        assert losses[step] == pytest.approx(total.item(), rel=1e-4)
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_the_loop_refuses_what_it_cannot_train() -> None:
    method = method_of('spos')
    method.param_groups = lambda: {'weights': [], 'arch': []}
    with pytest.raises(ValueError, match="has \\['arch', 'weights'\\]"):
        optimise(method, iter(()), 1, 0.1, linear)


def test_a_budget_below_one_step() -> None:
    with pytest.raises(ValueError, match='a step costs 4 path units, but the budget is 3'):
        optimise(method_of('fairnas'), labelled_batches(TASK, 16, 0), 3, 0.1, linear)


def test_a_loss_that_is_not_finite_stops() -> None:
    with pytest.raises(FloatingPointError, match='loss of step'):
        optimise(method_of('spos'), labelled_batches(TASK, 16, 0), 30, 1e20, linear)


# ---- linear stage and scores --------------------------------------------------------------------


def test_the_linear_stage_leaves_the_supernet_alone() -> None:
    net = SuperNet(SPACE, in_chans=TASK.in_chans)
    before = copy.deepcopy(net.state_dict())
    head = train_linear_head(net, TASK, RECIPE, 5, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert head.weight.shape == (TASK.num_classes, SPACE.num_features) and head.weight.abs().max() > 0.05


def test_scores_are_those_of_stand_alone_networks() -> None:
    """Re-estimated by torch's own update_bn on the first training images, tested on the held-out ones."""
    torch.manual_seed(0)
    net, head = SuperNet(SPACE, in_chans=TASK.in_chans, zero_init_last=False), torch.nn.Linear(SPACE.num_features, 55)
    train, held = compose(TASK, 'train'), compose(TASK, 'heldout')
    for score in score_paths(net, head, TASK, RECIPE, ARCHS[:3]):
        alone = net.extract(score.arch)
        batches = [normalise(train.images[i : i + 16], 2) for i in (0, 16)]
        torch.optim.swa_utils.update_bn(batches, alone.train())
        with torch.no_grad():
            logits = head(alone.eval().forward_features(normalise(held.images, 2)).mean((2, 3)))
        assert score.images == 64 and score.top1 == pytest.approx(
            (logits.argmax(dim=1) == held.labels).double().mean().item() * 100
        )
        assert score.loss == pytest.approx(F.cross_entropy(logits, held.labels).item(), rel=1e-4)


def test_more_images_than_there_are() -> None:
    net = SuperNet(SPACE, in_chans=TASK.in_chans)
    with pytest.raises(ValueError, match='65 held-out ones were requested, the task has 256 and 64'):
        score_paths(net, torch.nn.Linear(32, 55), TASK, dataclasses.replace(RECIPE, held_out=65), ARCHS)


# ---- a contestant -------------------------------------------------------------------------------


@pytest.mark.parametrize('contestant', CONTESTANTS)
def test_a_line_of_every_contestant(contestant: str) -> None:
    row = json.loads(json.dumps(train_contestant(job(contestant)), allow_nan=False))
    assert is_result_of(job(contestant), row)
    assert set(row['scores']) == {SPACE.format(arch) for arch in ARCHS}
    assert all(0 <= top1 <= 100 and loss > 0 for top1, loss in row['scores'].values())
    assert 1 <= len(row['shifts']) <= 3 and row['shifts'][0]['update_cosine'] is None
    has_teacher = contestant in ('pinas', 'no_cross_path', 'no_negatives', 'moco')
    assert all((shift['teacher_distance'] is not None) == has_teacher for shift in row['shifts'])
    own = CONTESTANTS[contestant].method in ('BNNAS', 'FPNAS', 'SparseSupernet', 'EnTranNAS')
    assert ('derived' in row) == own
    assert ('native' in row) == (own or contestant == 'rlnas')  # whose angles derive no architecture
    if 'native' in row:
        assert set(row['native']) == set(row['scores'])
    if own:
        SPACE.parse(row['derived'])
    for point in row['on_the_way']:
        assert set(point['scores']) == {SPACE.format(arch) for arch in ARCHS[:4:2]}  # of the tuning half alone
    assert row['units']['train'] + row['units']['linear'] <= 16 + 1e-9
    assert row['peak_memory_mb'] > 0 and set(row['seconds']) == {'train', 'observe', 'linear_and_score'}


def test_measuring_on_the_way_changes_nothing() -> None:
    scores = [train_contestant(job('pinas', checkpoints=c, probes=p))['scores'] for c, p in ((1, 3), (0, 1))]
    assert scores[0] == scores[1]


def test_seeds_of_a_contestant() -> None:
    first, again, other = (train_contestant(job('moco', seed))['scores'] for seed in (0, 0, 1))
    assert first == again != other


def test_unknown_contestant() -> None:
    with pytest.raises(ValueError, match="contestants pinas, .* got 'darts', 0"):
        job('darts')


# ---- resuming -----------------------------------------------------------------------------------


def test_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / 'scores.jsonl'
    jobs = [job('spos', seed) for seed in range(3)]
    assert missing_jobs(file, jobs) == jobs
    row = train_contestant(jobs[1])
    append_lines(file, [row])
    with open(file, 'a') as incomplete:
        incomplete.write(json.dumps(row)[:100])  # a kill in the middle of a line
    assert missing_jobs(file, jobs) == [jobs[0], jobs[2]]
    append_lines(file, [train_contestant(jobs[2])])
    assert missing_jobs(file, jobs) == [jobs[0]] and len(read_lines(file)) == 2
    others = [
        dataclasses.replace(jobs[1], **change)
        for change in (
            dict(recipe=dataclasses.replace(RECIPE, units=17)),
            dict(task=dataclasses.replace(TASK, item=6)),
            dict(space=dataclasses.replace(SPACE, stem_widths=(8, 8, 8))),
            dict(archs=tuple(SPACE.all_archs())[:7]),
            dict(contestant='fairnas'),
        )
    ]
    assert missing_jobs(file, others) == others
    assert missing_jobs(file, [dataclasses.replace(jobs[1], archs=ARCHS[:2])]) == []


def test_run_appends_one_line_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool in place of processes; tests/test_ranking_report.py runs real ones."""

    class Pool:
        def __init__(self, workers: int, initializer: Any, arguments: tuple, maxtasksperchild: int) -> None:
            assert (workers, arguments, maxtasksperchild) == (2, (1,), 1)

        def __enter__(self) -> 'Pool':
            return self

        def __exit__(self, *error: object) -> None:
            pass

        imap_unordered = staticmethod(map)

    context = type('Context', (), {'Pool': Pool})
    monkeypatch.setattr(study.multiprocessing, 'get_context', lambda kind: context)
    monkeypatch.setattr(study, 'train_contestant', lambda j, device, keep: dict(contestant=j.contestant, seed=j.seed))
    file, seen = tmp_path / 'scores.jsonl', []
    study.run(file, [job(), job(seed=1)], 2, 1, 'cpu', lambda done, total, row: seen.append((done, total, row['seed'])))
    assert seen == [(1, 2, 0), (2, 2, 1)] and [row['seed'] for row in read_lines(file)] == [0, 1]
    with pytest.raises(ValueError, match='at least 1, got 0 and 1'):
        study.run(file, [job()], 0)


def test_probes_are_spread_over_the_training() -> None:
    row = train_contestant(job('spos'))
    assert [shift['step'] for shift in row['shifts']] == [0, 7, 14] and row['steps'] == 16
    assert [point['step'] for point in row['on_the_way']] == [8]
    assert np.isfinite(row['loss']).all() and len(row['loss']) == 16
