"""Parts that time evaluation: inference, and many paths of a supernet."""

import time

import timm
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor

import pinas_zoo  # noqa: F401  registers the names
from pinas_zoo.methods import SPOS
from pinas_zoo.models.precision import autocast
from pinas_zoo.models.supernet import SuperNet
from pinas_zoo.models.typed import to_memory_format
from pinas_zoo.search.evaluate import Evaluator, PathScore
from pinas_zoo.space import PINAS_NANO, Arch, get_space
from pinas_zoo.speed.gpu.session import Session
from pinas_zoo.speed.inference import calls
from pinas_zoo.speed.rank import mutations

__all__ = ['inference', 'paths', 'precision']

LAYOUTS = {'channels_last': torch.channels_last, 'contiguous': torch.contiguous_format}


def inference(session: Session) -> None:
    """Images per second in eval mode with random weights, beside networks of the same family."""
    images, side = (2, 64) if session.tiny else (256, 224)
    halves = (torch.bfloat16, torch.float32) if session.cuda else (torch.float32,)
    for dtype in halves:
        for layout, memory_format in LAYOUTS.items():
            rates = {}
            for name in ('pinas_a', 'pinas_b', 'resnest50d', 'resnet50'):
                net = to_memory_format(timm.create_model(name).eval().to(session.device, dtype), memory_format)
                x = torch.randn(images, 3, side, side, device=session.device, dtype=dtype)
                x = x.contiguous(memory_format=memory_format)
                with torch.inference_mode():
                    rates[name] = 1e3 * images / session.time(calls(net, x), 5, 2).ms
            session.record(f'{str(dtype)[6:]}, {layout}, images/s', **rates)


def _score(session: Session, net: SuperNet, head: torch.nn.Module, archs: list[Arch], half: torch.dtype | None,
           calibration: list[Tensor], held: list[tuple[Tensor, Tensor]]) -> tuple[list[PathScore], float]:  # fmt: skip
    with autocast(session.device.type, half):
        Evaluator(net, head, calibration[:1], held[:1])(archs[:2])
        session.synchronise()
        start = time.monotonic()
        scores = Evaluator(net, head, calibration, held)(archs)
        session.synchronise()
    return scores, time.monotonic() - start


def paths(session: Session) -> None:
    """Paths of the paper's space evaluated per hour, at 128 images per batch: 2 batches to calibrate, 4 held out."""
    batch, count, name = (4, 4, 'pinas_nano') if session.tiny else (128, 16, 'pinas')
    space = get_space(name)
    side = space.input_size
    net = to_memory_format(SuperNet(space, zero_init_last=False).to(session.device), torch.channels_last)
    head = torch.nn.Linear(space.num_features, 10, device=session.device)
    calibration = [torch.randn(batch, 3, side, side, device=session.device) for _ in range(2)]
    label = torch.zeros(batch, dtype=torch.long, device=session.device)
    held = [(torch.randn(batch, 3, side, side, device=session.device), label) for _ in range(4)]
    archs = mutations(space, 2, count, 0)
    for kind, half in (('bf16', torch.bfloat16), ('TF32', None)):
        _, seconds = _score(session, net, head, archs, half, calibration, held)
        session.record(kind, paths_an_hour=3600 * count / seconds, path_images_per_second=count * batch * 6 / seconds)


def precision(session: Session) -> None:
    """Whether bf16 keeps the order of float32: 96 paths of a small supernet, briefly trained on made-up classes."""
    steps, count, batch = (4, 8, 16) if session.tiny else (200, 96, 128)
    torch.manual_seed(0)
    templates = F.interpolate(torch.randn(10, 3, 7, 7, device=session.device), size=28, mode='bilinear')

    def draw(images: int) -> tuple[Tensor, Tensor]:
        label = torch.randint(0, 10, (images,), device=session.device)
        return templates[label] + 1.5 * torch.randn(images, 3, 28, 28, device=session.device), label

    method = SPOS(SuperNet(PINAS_NANO, zero_init_last=False), 10).to(session.device).train()
    optimiser = torch.optim.SGD(method.param_groups()['weights'], 0.05, 0.9, foreach=True)
    for step in range(steps):
        image, label = draw(batch)
        method.loss({'image': image, 'label': label}, step)['loss'].backward()
        optimiser.step()
        optimiser.zero_grad()
    calibration, held = (
        [draw(2 * batch)[0] for _ in range(2)],
        [draw(4 * batch) for _ in range(2 if session.tiny else 8)],
    )
    archs = mutations(PINAS_NANO, 8, count, 0)
    net = method.supernet
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    full, slow = _score(session, net, method.head, archs, None, calibration, held)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    half, fast = _score(session, net, method.head, archs, torch.bfloat16, calibration, held)
    tau = kendalltau([score.loss for score in full], [score.loss for score in half]).statistic
    accuracies = [score.top1 for score in full]
    session.record(
        '96 paths', tau=float(tau), seconds_float32=slow, seconds_bf16=fast,
        top1_lowest=min(accuracies), top1_highest=max(accuracies),
    )  # fmt: skip
