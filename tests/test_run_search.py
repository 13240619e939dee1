"""tools/search.py: kills lose and repeat nothing, any number of ranks, limits, what it writes; and the derivation."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

pytest.importorskip('mmengine')
pytestmark = pytest.mark.mm

import engine_utils  # noqa: E402
from mmengine.config import Config  # noqa: E402

from pinas_zoo.data.fixed_batches import FixedBatches  # noqa: E402
from pinas_zoo.files import read_lines  # noqa: E402
from pinas_zoo.mm import search as run_search  # noqa: E402
from pinas_zoo.mm.classify import LinearStage  # noqa: E402
from pinas_zoo.mm.derive import derive_best  # noqa: E402
from pinas_zoo.mm.engine.options import Options  # noqa: E402
from pinas_zoo.models.cost import CostTable  # noqa: E402
from pinas_zoo.models.latency import measure_table  # noqa: E402
from pinas_zoo.models.supernet import SuperNet  # noqa: E402
from pinas_zoo.search.evaluate import PrefixTree  # noqa: E402
from pinas_zoo.search.jobs import JobEvaluator  # noqa: E402
from pinas_zoo.search.log import SearchLog  # noqa: E402
from pinas_zoo.space import SearchSpace  # noqa: E402
from pinas_zoo.weights.load import read_weights  # noqa: E402

SPACE = SearchSpace('small', (1, 2), (16, 32), (1, 2), (8, 8, 16), stem_pool=False, input_size=16)
BUDGET, BLOCK = 28, 8
TREE = dict(name='tree', initial=16, heights=(16, 40, 60, 80), min_samples=4, estimators=4, depth=2, max_draws=512)


def arm(evaluation: int, record: int) -> None:
    """Kill this process in its n-th evaluation of paths, or in the middle of writing a record of the log."""
    done, evaluate, put = [0], PrefixTree.evaluate, SearchLog._put

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def killing_evaluate(self: PrefixTree, *args: Any) -> Any:
        done[0] += 1
        scores = evaluate(self, *args)
        return die() if done[0] == evaluation else scores

    def killing_put(self: SearchLog, data: bytes) -> None:
        if len(self) == record and data.strip():
            put(self, data[: len(data) // 2])
            die()
        put(self, data)

    PrefixTree.evaluate, SearchLog._put = killing_evaluate, killing_put


@pytest.fixture(scope='module')
def search_case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config on a folder of 3 x 16 images, and the checkpoint of a linear stage."""
    root = tmp_path_factory.mktemp('search')
    rng = np.random.default_rng(0)
    for index in range(48):
        folder = root / 'images' / f'class{index % 3}'
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 80 + 60 * (index % 3), (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{index}.png')
    torch.manual_seed(0)
    stage = LinearStage(SPACE, 3, seed=0)
    torch.nn.init.normal_(stage.head.weight)
    with torch.no_grad():
        for name, parameter in stage.supernet.named_parameters():
            if name.endswith('bn3.weight'):  # zero at the start: all candidates would be one
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    torch.save({'state_dict': stage.state_dict()}, root / 'linear.pth')
    view = dict(source=dict(kind='folder', root=str(root / 'images'), seed=0), size=16)
    settings = dict(
        space=SPACE.to_dict(), num_classes=3, budget=BUDGET, random_paths=16, size=16, searcher=TREE,
        calibration=dict(view=view, batch_size=8, batches=2), evaluation=dict(view=view, batch_size=24),
    )  # fmt: skip
    config = root / 'config.py'
    config.write_text(''.join(f'{key} = {value!r}\n' for key, value in settings.items()))
    return config, root / 'linear.pth'


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    threads = torch.get_num_threads()
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'PINAS_THREADS', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
        monkeypatch.setenv(name, '1')
    yield
    torch.set_num_threads(threads)


def search(case: tuple[Path, Path], work_dir: Path, **changes: Any) -> Any:
    """A search in this process."""
    return run_search.search(case[0], str(case[1]), Options(str(work_dir), cfg_options=changes, launcher='none'))


@pytest.fixture(scope='module')
def reference(search_case: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted search."""
    work_dir, threads = tmp_path_factory.mktemp('reference'), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PINAS_THREADS', '1')
        patch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
        search(search_case, work_dir)
    torch.set_num_threads(threads)
    return work_dir


def records(work_dir: Path) -> list[dict]:
    """The log's lines without times."""
    lines = (work_dir / 'archs.jsonl').read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != 'seconds'} for line in lines]


def in_child(case: tuple[Path, Path], work_dir: Path, *kill: int, processes: int = 1) -> Any:
    """tools/search.py in separate processes; with a kill, see `arm`."""
    script = [__file__, *map(str, kill)] if kill else [str(engine_utils.ROOT / 'tools/search.py')]
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    arguments = [str(case[0]), '--checkpoint', str(case[1]), '--work-dir', str(work_dir)]
    return engine_utils.run_tool(*(launcher if processes > 1 else ()), *script, *arguments)


def test_what_a_search_writes(reference: Path, search_case: tuple[Path, Path]) -> None:
    header, *lines = records(reference)
    assert header['searcher'] == 'tree' and SearchSpace.from_dict(header['space']) == SPACE
    assert [line['index'] for line in lines] == list(range(BUDGET))
    assert len({line['arch'] for line in lines}) == BUDGET and len({line['loss'] for line in lines}) > BUDGET // 2
    costs = CostTable(SPACE, 16, 3)
    for line in lines:
        cost = costs.of(SPACE.parse(line['arch']))
        assert (line['macs'], line['params']) == (cost.macs, cost.params) and 0 <= line['top1'] <= 100
        assert line['score'] == -line['loss'] < 0
    best = json.loads((reference / 'best.json').read_text())
    least = min(lines, key=lambda line: line['loss'])
    assert {key: best[key] for key in ('arch', 'loss', 'top1', 'score')} == {
        key: least[key] for key in ('arch', 'loss', 'top1', 'score')
    }
    assert header['objective'] == best['objective'] == 'loss'
    assert best['evaluations'] == BUDGET and best['space'] == 'small' and best['random_paths'] == 16
    for name, key in (('random_mean', 'top1'), ('random_mean_loss', 'loss')):
        assert best[name] == pytest.approx(np.mean([line[key] for line in lines[:16]]))
    for name in ('trace.png', 'pareto.png'):
        with Image.open(reference / name) as picture:
            assert picture.format == 'PNG' and min(picture.size) > 200
    log = (reference / 'archs.jsonl').read_bytes()
    assert search(search_case, reference).arch == best['arch']  # nothing left to do
    assert (reference / 'archs.jsonl').read_bytes() == log


def test_scores_are_those_of_the_path(reference: Path, search_case: tuple[Path, Path]) -> None:
    """The log's scores against the derived network, evaluated alone."""
    out = reference / 'backbone.safetensors'
    options = Options(launcher='none')
    derive_best(search_case[0], str(search_case[1]), str(reference / 'best.json'), out, options)
    best = json.loads((reference / 'best.json').read_text())
    metadata = read_weights(out)[1]
    assert metadata['arch'] == best['arch'] and metadata['source_sha256'] == best['checkpoint_sha256']
    net, head = timm.create_model('pinas', checkpoint=str(out), num_classes=0).eval(), torch.nn.Linear(128, 3)
    state = torch.load(search_case[1], weights_only=True)['state_dict']
    head.load_state_dict({'weight': state['head.weight'], 'bias': state['head.bias']})
    evaluation = FixedBatches(**Config.fromfile(search_case[0]).evaluation, labelled=True)
    hits = loss = 0.0
    for images, labels in evaluation:
        with torch.no_grad():
            logits = head(net(images))
        hits += float((logits.argmax(1) == labels).sum())
        loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction='sum'))
    assert best['top1'] == pytest.approx(100 * hits / 48) and best['loss'] == pytest.approx(loss / 48, abs=1e-5)


@pytest.mark.slow
def test_kills_lose_and_repeat_nothing(reference: Path, search_case: tuple[Path, Path], tmp_path: Path) -> None:
    chooser, work_dir = random.Random(0), tmp_path / 'run'
    record = chooser.randrange(2, BLOCK)  # inside the first block
    for kill in ((0, record), (chooser.randrange(2, 4), -1)):
        result = in_child(search_case, work_dir, *kill)
        assert result.returncode == -signal.SIGKILL, result.stdout[-3000:]
        written = len((work_dir / 'archs.jsonl').read_bytes().splitlines()) - 1
        assert 0 < written < BUDGET and not (work_dir / 'best.json').exists()
    shutil.copytree(work_dir, tmp_path / 'two')
    results = [in_child(search_case, work_dir), in_child(search_case, tmp_path / 'two', processes=2)]
    expected = records(reference)
    for folder, result in zip((work_dir, tmp_path / 'two'), results, strict=True):
        assert result.returncode == 0, result.stdout[-3000:]
        ours = records(folder)
        # Archs in order, scores, losses and costs bit for bit, on one rank and on two (one thread each).
        assert ours == expected
        best = [json.loads((where / 'best.json').read_text()) | {'seconds': 0} for where in (folder, reference)]
        assert best[0] == best[1]
        assert (folder / 'trace.png').is_file() and (folder / 'pareto.png').is_file()
    cached = [json.loads(line)['arch'] for line in (work_dir / 'scores.jsonl').read_text().splitlines()]
    assert len(cached) == len(set(map(tuple, cached))) == BUDGET  # nothing is kept twice


def in_fork(case: tuple[Path, Path], work_dir: Path, job: int, jobs: int, kill: int = 0) -> Any:
    """A job of a shared search, in a fork of this process; with a kill, see `arm`."""

    def run() -> None:
        if kill:
            arm(kill, -1)
        run_search.search(case[0], str(case[1]), Options(str(work_dir), launcher='none'), (job, jobs))

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    return process


def test_jobs_share_a_search(
    reference: Path, search_case: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three jobs, one of which dies; two others continue where they stopped. One log, as of a single search."""
    monkeypatch.setattr(JobEvaluator.__init__, '__defaults__', (0, 0.02, 0.1))
    first = [in_fork(search_case, tmp_path, job, 3, kill=2 if job == 2 else 0) for job in range(3)]
    first[2].join()
    assert first[2].exitcode == -signal.SIGKILL and first[0].is_alive() and first[1].is_alive()
    for process in first[:2]:  # they wait for the third
        process.kill()
        process.join()
    with pytest.raises(ValueError, match='belongs to another search; seed: recorded 0, running 1'):
        run_search.search(search_case[0], str(search_case[1]), Options(str(tmp_path), seed=1, launcher='none'), (1, 2))
    second = [in_fork(search_case, tmp_path, job, 2) for job in range(2)]
    for process in second:
        process.join()
    assert [process.exitcode for process in second] == [0, 0]
    assert records(tmp_path) == records(reference)
    best = [json.loads((folder / 'best.json').read_text()) | {'seconds': 0} for folder in (tmp_path, reference)]
    assert best[0] == best[1]
    files = sorted(tmp_path.glob('scores.job-*.jsonl'))
    scored = [tuple(record['arch']) for file in files for record in read_lines(file)]  # a kill may cut off a line
    assert len(files) == 3 and len(scored) == len(set(scored)) == BUDGET  # none lost, none evaluated twice


def test_another_checkpoint_is_refused(reference: Path, search_case: tuple[Path, Path], tmp_path: Path) -> None:
    config, checkpoint = search_case
    state = torch.load(checkpoint, weights_only=True)
    state['state_dict']['head.bias'] += 1
    torch.save(state, tmp_path / 'other.pth')
    before = (reference / 'archs.jsonl').read_bytes()
    with pytest.raises(ValueError, match='belongs to another search; checkpoint: recorded'):
        search((config, tmp_path / 'other.pth'), reference)
    with pytest.raises(ValueError, match='belongs to another search; seed: recorded 0, running 3'):
        search(search_case, reference, seed=3)
    assert (reference / 'archs.jsonl').read_bytes() == before
    del state['state_dict']['head.bias'], state['state_dict']['head.weight']
    torch.save(state, tmp_path / 'headless.pth')
    with pytest.raises(ValueError, match='has no linear head'):
        search((config, tmp_path / 'headless.pth'), tmp_path / 'run')


def test_accuracy_as_objective(reference: Path, search_case: tuple[Path, Path], tmp_path: Path) -> None:
    """As released: its log has no objective, so that logs from before there was a choice can be continued."""
    changes = {'objective': 'top1', 'budget': 16}
    best = search(search_case, tmp_path, **changes)
    header, *lines = records(tmp_path)
    assert 'objective' not in header and all(line['score'] == line['top1'] for line in lines)
    assert best.score == max(line['top1'] for line in lines)
    # The random paths are the same, and so are their numbers.
    kept = ('arch', 'top1', 'loss')
    assert [[line[k] for k in kept] for line in lines] == [[line[k] for k in kept] for line in records(reference)[1:17]]
    old = [header, *({k: v for k, v in line.items() if k != 'top1'} | {'seconds': 0.1} for line in lines[:8])]
    (tmp_path / 'archs.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in old))
    again = search(search_case, tmp_path, **changes)
    assert (again.arch, again.score) == (best.arch, best.score)
    written = json.loads((tmp_path / 'best.json').read_text())
    assert written['top1'] == best.top1 and written['random_mean'] == pytest.approx(
        np.mean([line['top1'] for line in lines])
    )
    with pytest.raises(ValueError, match='objective: recorded None, running .loss.'):
        search(search_case, tmp_path)
    with pytest.raises(ValueError, match="objective 'accuracy' is unknown, allowed: loss, top1"):
        search(search_case, tmp_path / 'other', objective='accuracy')


def test_larger_passes_change_nothing(reference: Path, search_case: tuple[Path, Path], tmp_path: Path) -> None:
    passes: list[int] = []
    evaluate = run_search.Evaluator.__call__
    with pytest.MonkeyPatch.context() as patch:
        counted = lambda self, archs: passes.append(len(archs)) or evaluate(self, archs)  # noqa: E731
        patch.setattr(run_search.Evaluator, '__call__', counted)
        search(search_case, tmp_path, paths_per_pass=20)
    assert passes[0] == 16 and sum(passes) == BUDGET  # the 16 random ones; the tree then waits for every block
    assert records(tmp_path) == records(reference)


def test_a_race_states_its_images_and_continues_exactly(search_case: tuple[Path, Path], tmp_path: Path) -> None:
    """Stopped within the random group and within a block of the tree; the log is its only state."""
    changes = {'race': dict(images=(24, 48), z=1.0, group=16, cache_gib=0.1), 'budget': 24}
    best = search(search_case, tmp_path, **changes)
    header, *lines = records(tmp_path)
    assert header['race'] == {'images': [24, 48], 'z': 1.0, 'keep': 0.5, 'group': 16}
    images = [line['images'] for line in lines]
    assert set(images) == {24, 48} and 24 in images[:16] and best.images == 48
    assert best.score == max(line['score'] for line in lines if line['images'] == 48)
    assert not (tmp_path / 'scores.jsonl').exists()  # a race's score belongs to its group
    log = (tmp_path / 'archs.jsonl').read_bytes().splitlines(keepends=True)
    for kept in (6, 20):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / 'archs.jsonl').write_bytes(b''.join(log[: 1 + kept]) + log[1 + kept][:20])
        assert search(search_case, folder, **changes).arch == best.arch
        assert records(folder) == [header, *lines]
    with pytest.raises(ValueError, match='race: recorded .*, running None'):
        search(search_case, tmp_path)


def test_latency_as_a_limit(search_case: tuple[Path, Path], tmp_path: Path) -> None:
    """Every path of the log is below the limit and has its latency; another table is another search."""
    net = SuperNet(SPACE)
    table = measure_table(net, 'here', size=(16, 16), num_classes=3, checks=0, min_seconds=1e-3)
    table.save(tmp_path / 'latency.json')
    limit = sorted(map(table.of, SPACE.all_archs()))[30]
    limits = dict(max_latency=limit, latency_table=str(tmp_path / 'latency.json'))

    def run(folder: str) -> None:
        searcher = dict(name='random', _delete_=True)  # mmengine takes `_delete_` out
        search(search_case, tmp_path / folder, limits=dict(limits), budget=12, searcher=searcher)

    run('run')
    header, *lines = records(tmp_path / 'run')
    assert len(lines) == 12 and all(line['latency'] == table.of(line['arch']) <= limit for line in lines)
    recorded = header['settings']['limits']
    assert recorded['max_latency'] == limit and recorded['of']['device'] == 'here'
    measure_table(net, 'there', size=(16, 16), num_classes=3, checks=0, min_seconds=1e-3).save(
        tmp_path / 'latency.json'
    )
    with pytest.raises(ValueError, match='belongs to another search; settings: recorded'):
        run('run')
    measure_table(SuperNet('pinas_patch'), 'x', checks=0, min_seconds=1e-4).save(tmp_path / 'latency.json')
    with pytest.raises(ValueError, match="is of the space 'pinas_patch', but the search is of 'small'"):
        run('other')


def test_limits_are_kept(search_case: tuple[Path, Path], tmp_path: Path) -> None:
    costs = CostTable(SPACE, 16, 3)
    macs = sorted(costs.of(arch).macs for arch in SPACE.all_archs())
    limit = macs[len(macs) // 4]
    changes = {'limits': dict(max_macs=limit), 'budget': 12, 'searcher': dict(name='random', _delete_=True)}
    search(search_case, tmp_path, **changes)
    lines = records(tmp_path)[1:]
    assert len(lines) == 12 and all(line['macs'] <= limit for line in lines)
    best = json.loads((tmp_path / 'best.json').read_text())
    assert best['macs'] <= limit


def test_too_many_calibration_batches_are_refused(search_case: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='7 batches of 8 were requested, 48 images give 6'):
        search(search_case, tmp_path, **{'calibration.batches': 7})


@pytest.mark.parametrize(
    ('key', 'value', 'text'),
    [
        ('calibration.batchs', 2, 'did you mean calibration.batches?'),
        ('evaluation.view.sizee', 2, 'did you mean evaluation.view.size?'),
        ('evaluation', None, 'the config has no evaluation, which must be a dict'),
        ('limits.macs', 2, "limits has no setting 'macs'; allowed: max_macs"),
        ('budget', 0, 'budget=0: must be at least 1'),
    ],
)
def test_a_search_names_settings_that_nothing_reads(
    key: str, value: object, text: str, search_case: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        search(search_case, tmp_path, **{key: value})


if __name__ == '__main__':
    arm(int(sys.argv[1]), int(sys.argv[2]))
    sys.argv[1:3] = []
    sys.path.insert(0, str(engine_utils.ROOT / 'tools'))
    import search as tool

    raise SystemExit(tool.main())
