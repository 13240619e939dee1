"""Pi-NAS: the unsupervised training of a supernet (Peng et al., ICCV 2021, section 3), in plain torch.

One step draws a pair of paths (a, b) that differ at every position and takes four views of each image. For a, then b:
the student embeds the query, the mean teacher is updated on that path's modules, the teacher embeds the key. Then
cross-path learning compares the query of one path with the key of the *other* one, against a queue of negative keys:

    loss = CE([q_a k_b, q_a queue] / T, 0) + CE([q_b k_a, q_b queue] / T, 0)

Shape suffixes: N images on this rank, D embedding dimensions, K queue length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pinas_zoo.dist import exchange, gather, is_distributed, on_device, rank_and_world
from pinas_zoo.methods.captured import CapturedContrast
from pinas_zoo.models.distance import relative_distance
from pinas_zoo.models.graphs import BlockGraphs
from pinas_zoo.models.recorder import Recorder
from pinas_zoo.models.supernet import Segment, SuperNet
from pinas_zoo.space import Arch

__all__ = ['InfoNCE', 'PiNAS', 'Projector']


class Projector(nn.Sequential):
    """Global average pooling and a two-layer perceptron, whose output has unit length.

    With `released_init` weights start Kaiming-normal and biases at 0, as released, instead of torch's default.

    Shape:
        (N, channels, H, W) -> (N, dim)
    """

    def __init__(self, channels: int, dim: int = 128, released_init: bool = False) -> None:
        layers = nn.Linear(channels, channels), nn.Linear(channels, dim)
        for layer in layers if released_init else ():
            nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            nn.init.zeros_(layer.bias)
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers[0], nn.ReLU(inplace=True), layers[1])

    def forward(self, x: Tensor) -> Tensor:
        out_ND = super().forward(x)
        # Half types lack the precision for a norm; the embeddings are small.
        return F.normalize(out_ND if out_ND.dtype == torch.float64 else out_ND.float(), dim=1)


class Encoder(nn.Module):
    """A supernet and its projector; the student is one, the teacher another."""

    def __init__(self, backbone: SuperNet, projector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projector = backbone, projector
        self.graphs: BlockGraphs | None = None
        self._by_block: dict[tuple[int, Any], list[nn.Parameter]] = {}
        self.register_load_state_dict_post_hook(lambda encoder, _: encoder._by_block.clear())  # noqa: SLF001 - its own

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Unit-length embeddings. Shape: (N, C, H, W) -> (N, D)"""
        if self.graphs is not None and self.graphs.accepts(x, arch):
            return self.graphs(x, arch)
        return self.projector(self.backbone(x, arch))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoder:
        self._by_block.clear()  # torch may replace the parameters by new ones
        return super()._apply(fn, recurse)

    def on_path(self, arch: Arch) -> list[nn.Parameter]:
        """Stem, chosen blocks with their shortcuts, and projector; a teacher's in the order of its student's."""
        for place in (places := list[tuple[int, Any]](enumerate(arch))):
            if place not in self._by_block:  # walking the modules of two paths takes milliseconds in every step
                self._by_block[place] = list(Segment(self.backbone, *place, self.projector).parameters())
        return [parameter for place in places for parameter in self._by_block[place]]


class InfoNCE(torch.autograd.Function):
    """Cross-entropy of [q k, q queue] / T with the positive first, averaged over the images.

    The gradient with respect to the queries is computed in the forward pass, so that nothing keeps a reference to the
    queue: it can be written in place before the backward pass, and no loss term copies it.

    Shape:
        q_ND, k_ND: (N, D); queue_DK: (D, K). Returns the scalar loss and the top-1 accuracy in percent.
    """

    @staticmethod
    def forward(ctx: Any, q_ND: Tensor, k_ND: Tensor, queue_DK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        with torch.autocast(q_ND.device.type, enabled=False):
            positive_N1 = (q_ND * k_ND).sum(dim=1, keepdim=True)
            logits = torch.cat([positive_N1, q_ND @ queue_DK], dim=1) / temperature
            log_p = logits.log_softmax(dim=1)
            loss, top1 = -log_p[:, 0].mean(), (logits.argmax(dim=1) == 0).to(logits).mean() * 100
            p = log_p.exp_()
            grad_ND = (p[:, :1] - 1) * k_ND + p[:, 1:] @ queue_DK.t()
        ctx.save_for_backward(grad_ND / (temperature * len(q_ND)))
        ctx.mark_non_differentiable(top1)
        return loss, top1

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        return grad_loss * ctx.saved_tensors[0], None, None, None


@torch.no_grad()
def batch_top1(q_ND: Tensor, k_ND: Tensor) -> Tensor:
    """Share of queries whose nearest key among the batch's is their own, in percent."""
    nearest = (q_ND @ k_ND.t()).argmax(dim=1)
    return (nearest == torch.arange(len(q_ND), device=nearest.device)).float().mean() * 100


class PiNAS(nn.Module):
    """The supernet-Pi model: cross-path learning and a mean teacher with negative samples.

    The switches exist for ablations; their defaults are the paper's setting.

    Args:
        supernet: Backbone of the student.
        dim: Embedding dimensions D.
        queue_length: Negative keys K.
        momentum: m of the teacher update k <- m k + (1 - m) q.
        temperature: T of the logits.
        cross_path: Off: q_a meets k_a and q_b meets k_b.
        mean_teacher: Off: keys come from the student itself, without gradient.
        negatives: Off: every term is mean(2 - 2 q k), without a queue. It may collapse.
        single_path: Plain MoCo: one path and two views per step; `cross_path` then has no effect.
        released_init: See `Projector`.
        shuffle_keys: Shuffle the key images over the ranks, so that BN statistics do not leak the positive. Has no
            effect with SyncBN, whose statistics cover all ranks, nor in a single process.
        seed: Paths and shuffles are drawn from (seed, step): equal on all ranks, also after an interruption.

    Raises:
        ValueError: A number is out of its range.

    Examples:
        >>> method = PiNAS(SuperNet('pinas_nano'), queue_length=256)
        >>> method.loss({'views': torch.randn(8, 4, 3, 28, 28)}, step=0)['loss'].backward()
    """

    queue: Tensor | None
    queue_ptr: Tensor | None
    captured: CapturedContrast | None = None

    def __init__(
        self,
        supernet: SuperNet,
        dim: int = 128,
        queue_length: int = 49152,
        momentum: float = 0.999,
        temperature: float = 0.2,
        cross_path: bool = True,
        mean_teacher: bool = True,
        negatives: bool = True,
        single_path: bool = False,
        shuffle_keys: bool = True,
        seed: int = 0,
        released_init: bool = False,
    ) -> None:
        super().__init__()
        if dim < 1 or queue_length < 1 or temperature <= 0 or not 0 <= momentum <= 1 or seed < 0:
            raise ValueError(
                f'allowed: dim >= 1, queue_length >= 1, temperature > 0, momentum in 0..1, seed >= 0; got '
                f'{dim=}, {queue_length=}, {temperature=}, {momentum=}, {seed=}'
            )
        self.student = Encoder(supernet, Projector(supernet.space.num_features, dim, released_init))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False) if mean_teacher else None
        self.register_buffer('queue', F.normalize(torch.randn(dim, queue_length), dim=0) if negatives else None)
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long) if negatives else None)
        self.temperature, self.momentum, self.seed = temperature, momentum, seed
        self.cross_path, self.single_path, self.shuffle_keys = cross_path, single_path, shuffle_keys
        self._move_teacher = get_ema_multi_avg_fn(momentum)

    # ---- the method -----------------------------------------------------------------------------

    def paths(self, step: int) -> tuple[Arch, ...]:
        """The paths of a step: a pair that differs at every position, or one path for plain MoCo."""
        rng = np.random.default_rng([self.seed, step])
        space = self.student.backbone.space
        return (space.sample(rng),) if self.single_path else space.distinct_pair(rng)

    def loss(self, batch: dict[str, Any], step: int, part: int = 0) -> dict[str, Tensor]:
        """One forward pass: queries, teacher updates, keys, loss, queue, in this order.

        Args:
            batch: 'views' of shape (N, 4, C, H, W), in the order query a, key a, query b, key b; plain MoCo uses the
                first two.
            step: Index of the optimiser step; the paths depend on it.
            part: Index of the backward pass within the step. The teacher moves in part 0 only; the queue takes the
                keys of every part (gradient accumulation).

        Returns:
            'loss', to be differentiated; 'top1', the accuracy of the contrast in percent among the queue's keys (at a
            high learning rate these differ from new ones by age alone); 'top1_batch', the same among the batch's own,
            new keys; 'feature_std', the standard deviation over the batch of an embedding dimension times sqrt(D):
            about 1 when spread out, 0 when collapsed.
        """
        captured, views, queries, keys = self.captured, batch['views'], [], []
        for index, arch in enumerate(self.paths(step)):
            queries.append(self.student(views[:, 2 * index], arch))
            if part == 0:
                self.update_teacher(arch)
            keys.append(self.embed_keys(views[:, 2 * index + 1], arch, (step, part, index)))
        return captured(queries, keys) if captured and captured.fits(queries, keys) else self.contrast(queries, keys)

    def contrast(self, queries: Sequence[Tensor], keys: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `loss` returns, from the embeddings of each path, N x D; the queue takes the keys."""
        partners = keys[::-1] if self.cross_path else keys  # the query of one path meets the other's key
        terms = [self.term(q_ND, k_ND) for q_ND, k_ND in zip(queries, partners, strict=True)]
        if self.queue is not None:
            self.enqueue(torch.stack(list(keys)).mean(dim=0))
        return {
            'loss': torch.stack([loss for loss, _ in terms]).sum(),
            'top1': torch.stack([top1 for _, top1 in terms]).mean(),
            'top1_batch': torch.stack([batch_top1(q, k) for q, k in zip(queries, partners, strict=True)]).mean(),
            'feature_std': torch.cat([q.detach() for q in queries]).std(dim=0).mean() * queries[0].shape[1] ** 0.5,
        }

    def update_teacher(self, arch: Arch) -> None:
        """k <- m k + (1 - m) q on the parameters of one path; the teacher keeps its own BN buffers."""
        if self.teacher is not None:
            self._move_teacher(self.teacher.on_path(arch), self.student.on_path(arch), 0)

    @torch.no_grad()
    def embed_keys(self, x: Tensor, arch: Arch, draw: Sequence[int]) -> Tensor:
        """Keys of one path, (N, C, H, W) -> (N, D); over several ranks the batch is shuffled because of BN."""
        encoder = self.student if self.teacher is None else self.teacher
        rank, ranks = rank_and_world() if self.shuffle_keys and is_distributed() else (0, 1)
        if ranks == 1 or isinstance(encoder.backbone.bn1, nn.SyncBatchNorm):
            return encoder(x, arch)
        order = np.random.default_rng([self.seed, *draw]).permutation(ranks * len(x))
        back = on_device(order.argsort().reshape(ranks, -1)[rank], x.device)
        return gather(encoder(exchange(x, order), arch))[back]

    def term(self, q_ND: Tensor, k_ND: Tensor) -> tuple[Tensor, Tensor]:
        """One term of the loss, and its top-1 accuracy in percent (without a queue: among the batch's keys)."""
        if self.queue is not None:
            return InfoNCE.apply(q_ND, k_ND, self.queue, self.temperature)
        return (2 - 2 * (q_ND * k_ND).sum(dim=1)).mean(), batch_top1(q_ND, k_ND)

    @torch.no_grad()
    def enqueue(self, keys_ND: Tensor) -> None:
        """Replaces the oldest keys by new ones, gathered over the ranks; any number of them."""
        assert self.queue is not None and self.queue_ptr is not None
        keys_ND, length = gather(keys_ND) if is_distributed() else keys_ND, self.queue.shape[1]
        count = torch.arange(len(keys_ND), device=keys_ND.device)[-length:]
        places, keys_DN = (self.queue_ptr + count) % length, keys_ND[-length:].t()
        # An overflow in half precision skips a step; its keys would stay in the queue for thousands of steps.
        keys_DN = torch.where(keys_DN.isfinite().all(dim=0), keys_DN, self.queue[:, places])
        if torch.are_deterministic_algorithms_enabled():  # CUDA's index_copy_ would sort, and may wait for the device
            age = (torch.arange(length, device=places.device) - places[0]) % length
            self.queue.copy_(keys_DN[:, age.clamp(max=len(places) - 1)].where(age < len(places), self.queue))
        else:
            self.queue.index_copy_(1, places, keys_DN)
        self.queue_ptr.add_(len(keys_ND)).remainder_(length)

    def use_graphs(self, recorder: Recorder, log: Callable[[str], None]) -> None:
        """Trains from captured blocks where possible, see `BlockGraphs`; `log` is called with one line at a time."""
        for encoder in filter(None, (self.student, self.teacher)):
            encoder.graphs = BlockGraphs(encoder.backbone, encoder.projector, recorder, log, direct=True)
        self.captured = CapturedContrast(self, recorder, log)

    # ---- the interface of a method --------------------------------------------------------------

    @property
    def supernet(self) -> SuperNet:
        """The student's supernet."""
        return self.student.backbone

    def parts(self, step: int) -> int:
        """Backward passes in a step."""
        return 1

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each optimiser."""
        return {'weights': list(self.student.parameters())}

    def score(self, arch: Arch) -> float | None:
        """No native score: Pi-NAS ranks by the accuracy of a linear head (`pinas_zoo.search.evaluate`)."""
        return None

    def units(self, step: int) -> float:
        """Path units of a step: for each path the query forward and backward (1) and the key forward (1/3)."""
        return len(self.paths(step)) * 4 / 3

    def log_scalars(self, step: int) -> dict[str, float]:
        """Numbers that are too expensive for every step."""
        return {'teacher_distance': self.teacher_distance(self.paths(step)[0])}

    def teacher_distance(self, arch: Arch) -> float:
        """Distance from student to teacher on one path, relative to the student's norm; 0 without a teacher."""
        teacher = self.teacher
        return 0.0 if teacher is None else relative_distance(teacher.on_path(arch), self.student.on_path(arch))
