"""Random sequences of what a training does, from captured blocks and eagerly: bit-equal all along.

The captured training runs on `tape.TapeRecorder`, which spoils whatever a card would overwrite. Set
`PINAS_SEQUENCES=1000` to try so many seeds.
"""

import copy
import os
import random
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from tape import TapeRecorder
from torch import Tensor, nn

from pinas_zoo.methods.pinas import PiNAS
from pinas_zoo.models.supernet import SuperNet, zero_momenta
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.space import Candidate, SearchSpace

#: Two positions that share a shortcut among their candidates, and one where a candidate leaves the block out.
SPACE = SearchSpace(
    'sequences', depths=(1, 2), planes=(8, 16), strides=(1, 2), stem_widths=(4, 4, 8), input_size=16,
    candidates=(Candidate(radix=2, base_width=16), Candidate(radix=1), Candidate(cardinality=2)),
)  # fmt: skip
SKIPS = replace(SPACE, name='skips', candidates=(*SPACE.candidates[:2], Candidate(skip=True)))
SWITCHES: tuple[dict[str, bool], ...] = (
    {}, {}, {}, dict(mean_teacher=False), dict(single_path=True), dict(negatives=False), dict(cross_path=False),
)  # fmt: skip
#: Number type of the weights, autocast's type, loss scaler.
PRECISIONS = ((torch.float64, None, False), (torch.float32, None, True), (torch.float32, torch.bfloat16, False))


def halve(parameter: Tensor) -> None:
    parameter.grad.mul_(0.5)


def same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


class Training:
    """A method, its optimiser and scaler, and what may happen to them."""

    def __init__(self, captured: bool, setting: dict[str, Any]) -> None:
        self.captured, self.setting, self.step, self.terms = captured, setting, 0, {}
        self.lines: list[str] = []
        self.make()

    def make(self) -> None:
        """A new training in the state of the old one, if any, as after a restart."""
        torch.manual_seed(self.setting['seed'])
        net = SuperNet(self.setting['space'], zero_init_last=False)
        settings = dict(dim=8, queue_length=20, momentum=0.9, seed=self.setting['seed'])
        method = PiNAS(net, **settings | self.setting['switches'])
        to_memory_format(method.to(self.setting['dtype']), self.setting['layout']).train()
        self.adopt(method)

    def adopt(self, method: PiNAS) -> None:
        self.method = method
        if self.captured:
            self.recorder = TapeRecorder()
            method.use_graphs(self.recorder, self.lines.append)
        self.replace_optimiser()
        scale = 2.0**8 if self.setting['scaler'] else 1.0
        self.scaler = torch.amp.GradScaler('cpu', init_scale=scale, enabled=self.setting['scaler'])

    def replace_optimiser(self) -> None:
        parameters, how = self.method.param_groups()['weights'], self.setting['optimiser']
        self.optimiser = torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4, **how)
        if how.get('fused'):
            zero_momenta(self.optimiser)

    def observed(self) -> dict[str, Any]:
        found = {name: tensor.detach() for name, tensor in self.method.state_dict().items()}
        found |= {f'gradient of {name}': p.grad for name, p in self.method.named_parameters()}
        for number, state in enumerate(self.optimiser.state_dict()['state'].values()):
            found |= {f'{key} {number}': value for key, value in state.items()}
        return (
            found | {'scale': self.scaler.get_scale()} | {f'term {name}': value for name, value in self.terms.items()}
        )

    def views(self, images: int) -> Tensor:
        rng = np.random.default_rng([self.step, images])
        return torch.from_numpy(rng.standard_normal((images, 4, 3, 16, 16))).to(self.setting['dtype'])

    def autocast(self) -> Any:
        half = self.setting['half']
        return nullcontext() if half is None else torch.autocast('cpu', dtype=half, cache_enabled=False)

    def loss(self, images: int, part: int = 0) -> Tensor:
        with self.autocast():
            terms = self.method.loss({'views': self.views(images)}, self.step, part)
        self.terms |= {f'{name} {part}': value.detach() for name, value in terms.items()}  # read after the next step
        return terms['loss']

    # ---- what happens ----------------------------------------------------------------------------

    def train(self, batches: list[int], overflow: bool, clip: bool, clear: str) -> list[Tensor | None]:
        """A step; returns the gradients before the optimiser."""
        for part, images in enumerate(batches):
            loss = self.loss(images, part)
            if clear == 'after the forward pass' and not part:
                self.optimiser.zero_grad()
            if loss.requires_grad:
                self.scaler.scale(loss * (torch.inf if overflow and part == 0 else 1)).backward()
        gradients = [None if p.grad is None else p.grad.clone() for p in self.method.parameters()]
        if any(gradient is not None for gradient in gradients):  # the scaler refuses a step without any
            if clip:
                self.scaler.unscale_(self.optimiser)
                nn.utils.clip_grad_norm_(self.method.parameters(), 0.1)
            if not overflow or self.scaler.is_enabled():
                self.scaler.step(self.optimiser)
                self.scaler.update()
        if clear in ('to None', 'to zero'):
            self.optimiser.zero_grad(set_to_none=clear == 'to None')
        self.step += 1
        return gradients

    def overtake(self) -> None:
        """Two forward passes before their backward passes."""
        for loss in [self.loss(6, part) for part in range(2)]:
            if loss.requires_grad:
                loss.backward()

    def evaluate(self) -> Tensor:
        self.method.eval()
        with torch.no_grad(), self.autocast():
            out = self.method.student(self.views(5)[:, 0], self.method.paths(self.step)[0])
        self.method.train()
        return out

    def look(self, inference: bool) -> Tensor:
        """A forward pass in training mode without gradients."""
        with torch.inference_mode(inference), torch.no_grad(), self.autocast():
            return self.method.student(self.views(6)[:, 0], self.method.paths(self.step)[-1]).clone()

    def drop(self, backward: bool) -> None:
        """A step that an exception interrupts, before its backward pass or in it."""
        if not backward:
            self.loss(6)
            return
        parameter = dict(self.method.student.named_parameters())['projector.2.weight']
        if not parameter.requires_grad:
            return
        hook = parameter.register_hook(lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            self.loss(6).backward()
        hook.remove()
        self.optimiser.zero_grad()

    def freeze(self, name: str) -> None:
        for other, parameter in self.method.student.named_parameters():
            if other.startswith(name):
                parameter.requires_grad_(not parameter.requires_grad)

    def norms(self, name: str, momentum: float | None) -> None:
        for other, module in self.method.student.named_modules():
            if isinstance(module, nn.BatchNorm2d) and other.startswith(name):
                if momentum is None:
                    module.train(not module.training)
                else:
                    module.momentum = momentum

    def load(self, assign: bool) -> None:
        state = {name: value.clone() for name, value in self.method.state_dict().items()}
        optimiser = copy.deepcopy(self.optimiser.state_dict())
        self.method.load_state_dict(state, assign=assign)
        if assign:
            self.replace_optimiser()
        self.optimiser.load_state_dict(optimiser)

    def restart(self) -> None:
        saved, scaler = BytesIO(), self.scaler.state_dict()
        torch.save({'method': self.method.state_dict(), 'optimiser': self.optimiser.state_dict()}, saved)
        self.make()
        state = torch.load(BytesIO(saved.getvalue()))
        self.method.load_state_dict(state['method'])
        self.optimiser.load_state_dict(state['optimiser'])
        self.scaler.load_state_dict(scaler)

    def twin(self) -> None:
        scaler, optimiser = self.scaler.state_dict(), self.optimiser.state_dict()
        self.adopt(copy.deepcopy(self.method))
        self.optimiser.load_state_dict(optimiser)
        self.scaler.load_state_dict(scaler)

    def move(self, name: str, how: str) -> None:
        if how == 'queue' and self.method.queue is not None:
            self.method.queue = self.method.queue.clone()
        for other, module in self.method.student.named_modules():
            if not other.startswith(name):
                continue
            if how == 'data':
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.clone()
            elif how == 'parameters':  # others on the same memory
                for key, parameter in list(module.named_parameters(recurse=False)):
                    setattr(module, key, nn.Parameter(parameter.data, parameter.requires_grad))
            elif how == 'buffers':
                for key, buffer in list(module.named_buffers(recurse=False)):
                    setattr(module, key, buffer.clone())
        if how == 'parameters':
            state = self.optimiser.state_dict()
            self.replace_optimiser()
            self.optimiser.load_state_dict(state)

    def hook(self, name: str, kind: str) -> None:
        parameter = dict(self.method.student.named_parameters())[name]
        if kind == 'gradient' and parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient * 1.5)
        elif kind == 'accumulated' and parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(halve)

    def temperature(self, value: float) -> None:
        self.method.temperature = value

    def memory(self, free: float, failing: int | None) -> None:
        if self.captured:
            self.recorder.free = free
            self.recorder.fail_at = failing and self.recorder.recorded + failing


#: Prefixes of names of modules.
PLACES = (
    'backbone.conv1', 'backbone.bn1', 'backbone.blocks.0.downsample', 'backbone.blocks.0.candidates.0',
    'backbone.blocks.1.candidates.1', 'backbone.blocks.2', 'projector', 'backbone',
)  # fmt: skip
WEIGHTS = ('backbone.conv1.0.weight', 'projector.2.weight', 'backbone.blocks.1.candidates.0.conv1.weight')


def drawn(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Something that happens, and how."""
    place = rng.choice(PLACES)
    events: tuple[tuple[float, str, dict[str, Any]], ...] = (
        (14, 'train', dict(
            batches=[rng.choice((6, 6, 6, 4)) for _ in range(rng.choice((1, 1, 1, 2, 3)))],
            overflow=rng.random() < 0.1,
            clip=rng.random() < 0.3,
            clear=rng.choice((*['to None'] * 5, 'to zero', 'after the forward pass', 'never')),
        )),
        (1, 'evaluate', {}),
        (1, 'look', dict(inference=rng.random() < 0.5)),
        (1, 'drop', dict(backward=rng.random() < 0.5)),
        (1, 'freeze', dict(name=place)),
        (1, 'norms', dict(name=place, momentum=rng.choice((None, 0.2, 0.3)))),
        (1, 'load', dict(assign=rng.random() < 0.5)),
        (1, 'restart', {}),
        (1, 'twin', {}),
        (1, 'overtake', {}),
        (2, 'move', dict(name=place, how=rng.choice(('data', 'parameters', 'buffers', 'queue')))),
        (0.5, 'hook', dict(name=rng.choice(WEIGHTS), kind=rng.choice(('gradient', 'accumulated')))),
        (1, 'temperature', dict(value=rng.choice((0.2, 0.3)))),
        (0.5, 'memory', dict(free=rng.choice((1.0, 1.0, 0.05)), failing=rng.choice((None, 1, 2)))),
    )  # fmt: skip
    ((_, name, arguments),) = rng.choices(events, [weight for weight, *_ in events])
    return name, arguments


def run(seed: int, events: int) -> tuple[Training, list[tuple[str, dict[str, Any]]]]:
    rng = random.Random(seed)
    dtype, half, scaler = rng.choice(PRECISIONS)
    setting = dict(
        seed=seed, space=rng.choice((SPACE, SPACE, SKIPS)), switches=rng.choice(SWITCHES), dtype=dtype, half=half,
        scaler=scaler, optimiser=rng.choice(({}, dict(foreach=True), dict(fused=True))),
        layout=rng.choice((torch.contiguous_format, torch.channels_last)),
    )  # fmt: skip
    eager, captured = trainings = Training(False, setting), Training(True, setting)
    done: list[Any] = [setting]
    for _ in range(events):
        name, arguments = drawn(rng)
        done.append((name, arguments))
        try:
            results = [getattr(training, name)(**arguments) for training in trainings]
        except Exception as error:
            raise AssertionError(f'seed {seed}: {type(error).__name__}: {error} after {done}') from error
        for a, b in zip(*([*(r if isinstance(r, list) else [r])] for r in results), strict=True):
            assert same(a, b), f'seed {seed}: result after {done}'
        wanted, found = eager.observed(), captured.observed()
        assert wanted.keys() == found.keys()
        apart = [key for key, value in wanted.items() if not same(value, found[key])]
        assert not apart, f'seed {seed}: {len(apart)} differ, {apart[:6]}, after {done}'
    return captured, done


@pytest.mark.parametrize('seed', range(int(os.environ.get('PINAS_SEQUENCES', 0)) or 6))
def test_a_random_training_is_bit_equal_to_its_eager_form(seed: int) -> None:
    captured, _ = run(seed, 12)
    assert captured.recorder is not None
