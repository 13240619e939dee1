"""One training step of the supernet: ours, the released form, and the floor that no form can beat.

The released form is built from the pieces in `released`, with contiguous tensors and torch's default SGD. The floor is
only the forward passes (student and teacher) and backward passes of the two paths. All use the same weights, paths and
images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD

from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.recorder import CudaRecorder
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.space import Arch
from pinas_zoo.speed.released import embed_shuffled, move_by_parameter, released_attention, released_term
from pinas_zoo.speed.timing import Contestant, Settings, Times, alternate, compare, peak_memory, row

__all__ = ['CONTESTANTS', 'PAPER', 'QUICK', 'Sizes', 'Trainer', 'measure', 'measure_memory']

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
#: torch's implementations of SGD; 'loop' is its default on a CPU.
OPTIMISERS: dict[str, dict[str, bool]] = {'loop': {}, 'foreach': dict(foreach=True), 'fused': dict(fused=True)}
OURS = 'fused'
CONTESTANTS = (
    'released, contiguous',
    'ours, contiguous',
    'ours, channels_last',
    'floor, contiguous',
    'floor, channels_last',
    'released attention, contiguous',
)
PAPER_QUEUE = 49152


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measured step."""

    space: str = 'pinas'
    images: int = 8
    side: int = 128
    queue: int = 4096


QUICK = Sizes('pinas_patch', 4, 20, 64)
#: The share of one rank in the paper's recipe.
PAPER = Sizes('pinas', 24, 224, PAPER_QUEUE)


class Trainer:
    """A method, its optimisers and a batch, and the forms of a step on them.

    Args:
        sizes: Sizes of the step.
        layout: Memory format of the networks: 'contiguous' or 'channels_last'.
        seed: Seed of weights and images.
        device: Device of all tensors.
        precision: Half type of the forward passes, float16 with a loss scaler; None for none.
        graphs: Whether blocks run from CUDA graphs.
        pairs: Number of different pairs of paths; None draws a new pair every step.
    """

    def __init__(
        self,
        sizes: Sizes,
        layout: str,
        seed: int = 0,
        device: torch.device | str = 'cpu',
        precision: torch.dtype | None = None,
        graphs: bool = False,
        pairs: int | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.device, self.precision, self.pairs = torch.device(device), precision, pairs
        self.method = PiNAS(SuperNet(sizes.space), queue_length=sizes.queue, seed=seed).train()
        to_memory_format(self.method.to(self.device), LAYOUTS[layout])
        self.lines: list[str] = []
        if graphs:
            self.method.use_graphs(CudaRecorder(), self.lines.append)
        self.draw = self.method.paths
        self.method.paths = self.paths  # type: ignore[method-assign] # the measured pairs in place of drawn ones
        self.batch = {'views': torch.randn(sizes.images, 4, 3, sizes.side, sizes.side, device=self.device)}
        assert self.method.queue is not None
        self.targets_ND = torch.randn(sizes.images, len(self.method.queue), device=self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision is torch.float16)
        parameters = self.method.param_groups()['weights']
        self.optimisers = {
            name: SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4, **how) for name, how in OPTIMISERS.items()
        }
        # A first step would copy the gradient; a zero buffer has the same effect and exists from the start.
        state: dict[Tensor, Any] = {
            parameter: {'momentum_buffer': torch.zeros_like(parameter)} for parameter in parameters
        }
        for optimiser in self.optimisers.values():
            optimiser.state.update(state)

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The pair of a round, as the method draws it; two warm-ups use all four candidates."""
        if self.pairs is not None:
            return self.draw(step % self.pairs)
        if step >= 0:
            return self.draw(step)
        space = self.method.student.backbone.space
        choices = [space.choices(position) for position in range(space.num_positions)]
        return tuple(tuple(c[(2 * step + path) % len(c)] for c in choices) for path in (0, 1))

    def clear(self) -> None:
        """Drops the gradients."""
        self.optimisers['loop'].zero_grad()

    def autocast(self, cache: bool = True) -> torch.autocast:
        """The forward passes' precision."""
        return torch.autocast(
            self.device.type, self.precision or torch.bfloat16, enabled=self.precision is not None, cache_enabled=cache
        )

    def ours(self, index: int, optimiser: str = OURS) -> Tensor:
        """The project's step."""
        with self.autocast():
            loss = self.method.loss(self.batch, index)['loss']
        return self._finish(loss, optimiser)

    def released(self, index: int) -> Tensor:
        """The costs of the released step, re-implemented."""
        with released_attention():
            return self._released(index)

    def released_attention(self, index: int) -> Tensor:
        """The floor with the released form of split attention, to see what that form costs."""
        with released_attention():
            return self.floor(index)

    def _released(self, index: int) -> Tensor:
        method, views, queries, keys = self.method, self.batch['views'], [], []
        with self.autocast():
            for path, arch in enumerate(self.paths(index)):
                queries.append(method.student(views[:, 2 * path], arch))
                move_by_parameter(method, arch)
                keys.append(embed_shuffled(method.teacher, views[:, 2 * path + 1], arch))
            loss = cast(Tensor, sum(released_term(method, *pair) for pair in zip(queries, keys[::-1], strict=True)))
        method.enqueue(torch.stack(keys).mean(dim=0))
        return self._finish(loss, 'loop')

    def floor(self, index: int) -> Tensor:
        """Two student forwards, two teacher forwards, the backwards; no real loss, no update."""
        method, views, terms = self.method, self.batch['views'], []
        assert method.teacher is not None
        with self.autocast():
            for path, arch in enumerate(self.paths(index)):
                out_ND = method.student(views[:, 2 * path], arch)
                with torch.no_grad():
                    method.teacher(views[:, 2 * path + 1], arch)
                terms.append((out_ND * self.targets_ND).mean())
            loss = terms[0] + terms[1]
        loss.backward()
        return loss.detach()

    def move(self, optimiser: str = OURS) -> None:
        """An optimiser's step."""
        self.scaler.step(self.optimisers[optimiser])
        self.scaler.update()
        self.optimisers[optimiser].zero_grad()

    def _finish(self, loss: Tensor, optimiser: str) -> Tensor:
        self.scaler.scale(loss).backward()
        self.move(optimiser)
        return loss.detach()


# ---- what is measured ------------------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, Any]:
    """Times of whole steps, and of the pieces in which the forms differ."""
    sizes = QUICK if settings.quick else Sizes()
    trainers = {layout: Trainer(sizes, layout, settings.seed) for layout in LAYOUTS}

    def clear() -> None:
        for trainer in trainers.values():
            trainer.clear()

    times = alternate({name: _step(name, trainers) for name in CONTESTANTS}, settings, 'step', after=clear)
    ours, floor = (_fastest(times, form) for form in ('ours', 'floor'))
    pieces = _measure_pieces(trainers['contiguous'], settings)
    return {
        'settings': {**vars(sizes), 'views': 4, 'dtype': 'float32', 'sgd of ours': OURS, 'fastest': [ours, floor]},
        'rows': [
            *(row(name, t, sizes.images) for name, t in times.items()),
            *(row(*piece) for piece in pieces.items()),
        ],
        'ratios': {
            'released / ours': compare(times['released, contiguous'], times[ours]),
            'ours / floor': compare(times[ours], times[floor]),
            'floor, contiguous / channels_last': compare(times['floor, contiguous'], times['floor, channels_last']),
            'attention, released / ours': compare(times['released attention, contiguous'], times['floor, contiguous']),
            'teacher, loop / foreach': compare(pieces['teacher, loop'], pieces['teacher, foreach']),
            'queue, cloned / in place': compare(pieces['queue, cloned'], pieces['queue, in place']),
            'sgd, loop / foreach': compare(pieces['sgd, loop'], pieces['sgd, foreach']),
            'sgd, loop / fused': compare(pieces['sgd, loop'], pieces['sgd, fused']),
        },
    }


def measure_memory(settings: Settings, contestant: str) -> dict[str, float]:
    """Peak memory in MiB of one contestant, which is alone in the process."""
    trainer = Trainer(QUICK if settings.quick else Sizes(), contestant.split(', ')[1], settings.seed)
    before = peak_memory()
    for index in (-2, -1, 0):
        _step(contestant, dict.fromkeys(LAYOUTS, trainer))(index)
        trainer.clear()
    return {'peak_mib': peak_memory(), 'networks_mib': before}


def _step(contestant: str, trainers: dict[str, Trainer]) -> partial[Tensor]:
    form, layout = contestant.split(', ')
    return partial(getattr(Trainer, form.replace(' ', '_')), trainers[layout])


def _fastest(times: dict[str, Times], form: str) -> str:
    return min((name for name in times if name.startswith(form)), key=lambda name: median(times[name].wall))


def _measure_pieces(trainer: Trainer, settings: Settings) -> dict[str, Times]:
    """Each piece alone, for both paths of a step: teacher updates, shuffles, loss terms, and the optimiser."""
    method, pair, views = trainer.method, trainer.paths(0), trainer.batch['views']
    assert method.queue is not None
    q_ND = F.normalize(torch.randn(len(views), len(method.queue)), dim=1)
    k_ND, q_ND = q_ND.clone(), q_ND.requires_grad_()
    paper = PiNAS(SuperNet('pinas_nano'), queue_length=PAPER_QUEUE)

    def known(x: Tensor, arch: Arch) -> Tensor:
        return k_ND  # replaces the teacher, whose own time is not part of the shuffle's

    def backward(terms: Iterable[Tensor]) -> None:
        cast(Tensor, sum(terms)).backward()

    pieces: dict[str, Contestant] = {
        'teacher, loop': lambda _: [move_by_parameter(method, arch) for arch in pair],
        'teacher, foreach': lambda _: list(map(method.update_teacher, pair)),
        'shuffle': lambda _: [embed_shuffled(known, views[:, i], pair[0]) for i in (1, 3)],
        'queue, cloned': lambda _: backward(released_term(method, q_ND, k_ND) for _ in pair),
        'queue, in place': lambda _: backward(method.term(q_ND, k_ND)[0] for _ in pair),
        'queue of the paper, cloned': lambda _: backward(released_term(paper, q_ND, k_ND) for _ in pair),
        'queue of the paper, in place': lambda _: backward(paper.term(q_ND, k_ND)[0] for _ in pair),
    }
    times = alternate(pieces, settings, 'step, pieces', repeats=3)
    method.loss(trainer.batch, 0)['loss'].backward()
    for optimiser in trainer.optimisers.values():
        optimiser.param_groups[0]['lr'] = 0.0  # otherwise repeating the same gradients would blow up the weights
    sgd = {f'sgd, {name}': _stepping(optimiser) for name, optimiser in trainer.optimisers.items()}
    times |= alternate(sgd, settings, 'step, pieces', repeats=3)
    trainer.clear()
    return times


def _stepping(optimiser: SGD) -> Contestant:
    return lambda _: optimiser.step()
