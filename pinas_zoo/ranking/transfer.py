"""The transfer truth: networks trained alone on the ranking task, then fine-tuned on the dense task.

A line of the table is one training: a path of the reporting half with one seed. Lines are appended as trainings end, so
that an interrupted table continues with what is missing. The seeds differ from those of the source truth:
its networks and those that are transferred share nothing but the architecture.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pinas_zoo import __version__
from pinas_zoo.files import append_lines, read_lines, write_atomic
from pinas_zoo.models.network import PiNASNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.ranking.dense import DenseNet, DenseTask, compose_dense, mean_iou
from pinas_zoo.ranking.recipe import short_hash
from pinas_zoo.ranking.standalone import TEST_BATCH, Batches, Recipe, clock_of, fit, score_net, train_net
from pinas_zoo.ranking.task import index_batches, normalise
from pinas_zoo.ranking.truth import HALVES, Study, Truth, TruthRow
from pinas_zoo.space import Arch

__all__ = ['DESIGNS', 'FINE_TUNING', 'TransferStudy', 'extend_transfer', 'fine_tune', 'read_transfer']

#: Fine-tuning on the dense task: fewer steps than in the training alone.
FINE_TUNING = Recipe(steps=400, warmup=20, shift=0)


@dataclass(frozen=True)
class TransferStudy:
    """Everything that the table depends on, besides code and torch.

    Args:
        source: The study whose paths and training are used.
        task: The dense task.
        recipe: The fine-tuning.
        frozen: Train the classifier of the locations alone, on the features as they are (BN re-estimated).
        seeds: Seeds of the trainings.
    """

    source: Study = field(default_factory=Study)
    task: DenseTask = field(default_factory=DenseTask)
    recipe: Recipe = FINE_TUNING
    frozen: bool = False
    seeds: tuple[int, ...] = (2, 3)

    @property
    def id(self) -> str:
        """Short hash of the source's training and of the dense task; seeds may be added."""
        return short_hash(self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What one training depends on, as plain values."""
        source = self.source
        return {
            'task': asdict(self.task),
            'recipe': asdict(self.recipe),
            'source_task': asdict(source.task),
            'source_recipe': asdict(source.recipe),
            'space': source.space.to_dict(),
            'frozen': self.frozen,
        }


#: The designs of the dense target, in the order in which they were tried.
DESIGNS = {
    'overlap': TransferStudy(),
    'frozen': TransferStudy(frozen=True),
}


def fine_tune(study: TransferStudy, net: PiNASNet, seed: int, device: torch.device) -> dict[str, float]:
    """Fine-tunes a trained network on the dense task and tests it.

    Returns:
        'miou' and 'accuracy' of the patches in percent, and their mean cross-entropy, 'loss'.
    """
    task, recipe = study.task, study.recipe
    canvases, draw = compose_dense(task, 'train'), torch.Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = DenseNet(net)
    dense.net.requires_grad_(not study.frozen)
    dense = to_memory_format(dense.to(device), torch.channels_last).train()

    def batches() -> Batches:
        for chosen in index_batches(len(canvases.images), recipe.batch, draw):
            images, labels = canvases.images[chosen], canvases.labels[chosen]
            if torch.rand((), generator=draw) < 0.5:
                images, labels = images.flip(-1), labels.flip(-1)
            yield normalise(images.to(device), task.patch), labels.to(device)

    def plain() -> Iterator[Tensor]:
        for chosen in index_batches(len(canvases.images), recipe.batch, draw):
            yield normalise(canvases.images[chosen].to(device), task.patch)

    fit(dense, recipe, batches(), plain(), device)
    return _test(dense.eval(), study, device)


@torch.no_grad()
def _test(dense: DenseNet, study: TransferStudy, device: torch.device) -> dict[str, float]:
    canvases = compose_dense(study.task, 'test')
    with study.recipe.autocast(device):
        parts = [dense(normalise(x.to(device), study.task.patch)) for x in canvases.images.split(TEST_BATCH)]
    logits = torch.cat(parts).double().cpu()
    predicted = logits.argmax(dim=1)
    accuracy = float((predicted == canvases.labels).double().mean()) * 100
    loss = float(F.cross_entropy(logits, canvases.labels))
    return {'miou': mean_iou(predicted, canvases.labels), 'accuracy': accuracy, 'loss': loss}


# ---- the table -------------------------------------------------------------------------------------------------------


Job = tuple[int, Arch, int]


def train_line(job: Job, study: TransferStudy, sources: Path | None = None, device: str = 'cpu') -> dict[str, Any]:
    """One line of the table: the training alone, then the fine-tuning.

    Args:
        job: Number of the path, the path, and the seed.
        study: What it depends on.
        sources: Folder that keeps the networks trained alone, so that another design need not train them again.
        device: Device of the trainings.
    """
    number, arch, seed = job
    where, source = torch.device(device), study.source
    clock = clock_of(where)
    begin = clock()
    net = _source_net(source, arch, seed, sources, where)
    top1, loss = score_net(net, source.recipe, source.task, where)
    trained = clock()
    found = fine_tune(study, net, seed, where)
    return {
        'design': study.id,
        'path': number,
        'arch': source.space.format(arch),
        'seed': seed,
        **{name: round(value, 6) for name, value in found.items()},
        'source_top1': round(top1, 4),
        'source_loss': round(loss, 6),
        'seconds': [round(trained - begin, 2), round(clock() - trained, 2)],
        'code': __version__,
        'torch': torch.__version__.split('+')[0],
        **({} if device == 'cpu' else {'device': torch.cuda.get_device_name(device)}),
    }


def _source_net(source: Study, arch: Arch, seed: int, folder: Path | None, device: torch.device) -> PiNASNet:
    """The network of a path after its training alone: read from the folder, or trained and written there."""
    key = short_hash({'recipe': asdict(source.recipe), 'task': asdict(source.task), 'space': source.space.to_dict()})
    file = None if folder is None else folder / f'{source.space.format(arch)}-{seed}-{key}.pt'
    if file is not None and file.is_file():
        task = source.task
        net = PiNASNet(arch, source.space, num_classes=task.num_classes, in_chans=task.in_chans)
        net.load_state_dict(torch.load(file, map_location='cpu', weights_only=True))
        return to_memory_format(net.to(device), torch.channels_last)
    net = train_net(source.space, source.task, source.recipe, arch, seed, device)
    if file is not None:
        write_atomic(file, lambda temporary: torch.save(net.state_dict(), temporary))
    return net


def extend_transfer(
    file: str | Path,
    study: TransferStudy,
    truth: Truth,
    paths: int,
    workers: int = 1,
    sources: str | Path | None = None,
    device: str = 'cpu',
    progress: Callable[[int, int, dict[str, Any]], None] = lambda done, total, line: None,
) -> None:
    """Trains what the table still lacks, each training in one thread.

    Args:
        file: The table; created if it is missing.
        study: What a training depends on; lines of other designs stay.
        truth: The source truth; the first paths of its reporting half are transferred.
        paths: Number of paths.
        workers: Number of training processes.
        sources: See `train_line`.
        device: Device of the trainings.
        progress: Called after each line with the lines done now, the lines to do now, and the line.

    Raises:
        ValueError: workers is below 1, or the source truth has fewer paths.
    """
    rows = truth.half(HALVES[1])
    if workers < 1 or not 1 <= paths <= len(rows):
        raise ValueError(f'allowed: workers >= 1, paths in 1..{len(rows)}; got {workers=}, {paths=}')
    done = {(line['path'], line['seed']) for line in read_lines(file) if line['design'] == study.id}
    jobs = [(row.path, row.arch, seed) for row in rows[:paths] for seed in study.seeds]
    jobs = [job for job in jobs if (job[0], job[2]) not in done]
    train = partial(train_line, study=study, sources=None if sources is None else Path(sources), device=device)
    # Spawned processes: forking a process whose torch has threads may hang.
    with multiprocessing.get_context('spawn').Pool(workers, torch.set_num_threads, (1,)) as pool:
        for count, line in enumerate(pool.imap_unordered(train, jobs), start=1):
            append_lines(file, [line])
            progress(count, len(jobs), line)


def read_transfer(file: str | Path, study: TransferStudy, truth: Truth, quantity: str = 'miou') -> Truth:
    """The transfer truth as a truth table, for `report.compute`: mean IoU (or accuracy) takes the place of top-1.

    Paths for which a seed is missing are left out.

    Raises:
        ValueError: A line names another architecture than the source truth does.
    """
    found = {(line['path'], line['seed']): line for line in read_lines(file) if line['design'] == study.id}
    rows = []
    for row in truth.half(HALVES[1]):
        lines = [found.get((row.path, seed)) for seed in study.seeds]
        if any(line is None for line in lines):
            continue
        present = [line for line in lines if line is not None]
        if any(line['arch'] != study.source.space.format(row.arch) for line in present):
            raise ValueError(f'{file} and the source truth disagree on path {row.path}: {present[0]["arch"]}')
        rows.append(_as_row(row, present, quantity))
    return Truth(truth.header, dataclasses.replace(study.source, seeds=len(study.seeds)), tuple(rows))


def _as_row(row: TruthRow, lines: Sequence[dict[str, Any]], quantity: str) -> TruthRow:
    values = {key: tuple(line[key] for line in lines) for key in (quantity, 'loss')}
    seconds = tuple(sum(line['seconds']) for line in lines)
    return dataclasses.replace(row, top1=values[quantity], loss=values['loss'], seconds=seconds)
