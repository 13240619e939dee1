"""The building blocks of every network here: stem, split attention, bottleneck, projection shortcut.

Written from the shapes in the papers (Pi-NAS, Peng et al., ICCV 2021; ResNeSt, Zhang et al., 2020). Module names are
those of the released checkpoints (conv1, bn1, conv2.conv, conv2.bn0, ...), so that released keys need no renaming.
"""

from __future__ import annotations

import math

import torch
import torch.fx
from timm.layers import DropPath
from torch import Tensor, nn

from pinas_zoo.models import inverted_residual as inverted_residual  # registers its builders
from pinas_zoo.models.kinds import BUILDERS, Block, Place, Skip, register_builder
from pinas_zoo.models.layers import DEFAULT_LAYERS, Layers
from pinas_zoo.space import Candidate, SearchSpace

__all__ = [
    'Bottleneck',
    'Skeleton',
    'Skip',
    'SplitAttention',
    'init_weights',
    'make_candidate',
    'make_final',
    'make_shortcut',
]


@torch.fx.wrap  # a branch on a size cannot be traced symbolically
def several_images(pooled: Tensor, batch_statistics: bool) -> Tensor:
    """Returns pooled features unchanged; raises if the BN statistics would be taken over a single image.

    Raises:
        ValueError: The batch has one image.
    """
    if batch_statistics and pooled.shape[0] == 1:
        raise ValueError(
            'split attention normalises a 1x1 map: a training batch of 1 per device has no variance; '
            'use a batch of at least 2, SyncBN over several devices, or norm_eval'
        )
    return pooled


class SplitAttention(nn.Module):
    """Split-attention convolution (ResNeSt, section 3.1).

    Args:
        candidate: Radix (1 keeps the attention, as a sigmoid gate), cardinality, base width and kernel.
        planes: Planes of the stage; they give the width, the input's and output's channels.
        dilation: Dilation of the convolution.
        min_attention_width: Lower bound of the attention's hidden channels.
        layers: Activation and normalisation.

    Shape:
        (N, width, H, W) -> (N, width, H, W)
    """

    def __init__(
        self,
        candidate: Candidate,
        planes: int,
        dilation: int = 1,
        min_attention_width: int = 32,
        layers: Layers = DEFAULT_LAYERS,
    ) -> None:
        super().__init__()
        radix, cardinality, kernel = candidate.radix, candidate.cardinality, candidate.kernel
        width = candidate.group_width(planes)
        hidden = candidate.attention_width(planes, min_attention_width)
        self.radix, self.cardinality = radix, cardinality
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            width, width * radix, kernel, padding=padding, dilation=dilation, groups=cardinality * radix, bias=False
        )
        self.bn0 = layers.norm(width * radix)
        self.act0 = layers.act()
        self.fc1 = nn.Conv2d(width, hidden, 1, groups=cardinality)
        self.bn1 = layers.norm(hidden)
        self.act1 = layers.act()
        self.fc2 = nn.Conv2d(hidden, width * radix, 1, groups=cardinality)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act0(self.bn0(self.conv(x)))
        batch, channels = x.shape[0], x.shape[1]
        width = channels // self.radix
        # Pooling commutes with the sum over the splits, and leaves almost nothing to sum.
        pooled = x.mean((2, 3), keepdim=True).reshape(batch, self.radix, width, 1, 1).sum(dim=1)
        logits = self.fc2(self.attend(pooled))
        if self.radix == 1:
            return x * torch.sigmoid(logits)
        # fc2's channels are (cardinality, radix, width of a cardinal group): apply softmax over the radix, then move
        # the radix to the front, as in the convolution's groups.
        weights = logits.view(batch, self.cardinality, self.radix, -1).transpose(1, 2).softmax(dim=1)
        weights = weights.reshape(batch, self.radix, width, 1, 1).to(x.dtype)  # softmax is float32 in mixed precision
        splits = x.chunk(self.radix, dim=1)
        out = splits[0] * weights[:, 0]
        for r in range(1, self.radix):
            out = torch.addcmul(out, splits[r], weights[:, r])
        return out

    def attend(self, pooled: Tensor) -> Tensor:
        """Hidden activations of the attention. Shape: (N, width, 1, 1) -> (N, hidden, 1, 1)"""
        norm = self.bn1
        pooled = several_images(pooled, norm.training and isinstance(norm, nn.BatchNorm2d))
        return self.act1(norm(self.fc1(pooled)))


class Bottleneck(Block):
    """Bottleneck with split attention and average-down; one candidate of a position.

    Args:
        candidate: Radix, cardinality, base width and kernel.
        place: Its position in a network. The stride is taken by the average pooling after the 3x3 (`Place.pool`),
            which the first block of a dilated stage keeps at stride 1 (as released).

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, candidate: Candidate, place: Place) -> None:
        super().__init__()
        layers, width = place.layers, candidate.group_width(place.planes)
        self.conv1 = nn.Conv2d(place.in_channels, width, 1, bias=False)
        self.bn1 = layers.norm(width)
        self.act1 = layers.act()
        self.conv2 = SplitAttention(candidate, place.planes, place.dilation, place.min_attention_width, layers)
        self.pool = nn.AvgPool2d(3, place.stride, padding=1) if place.pool else nn.Identity()
        self.conv3 = nn.Conv2d(width, place.out_channels, 1, bias=False)
        self.bn3 = layers.norm(place.out_channels)
        self.drop_path = DropPath(place.drop_path) if place.drop_path > 0 else nn.Identity()
        self.act3 = layers.act()
        self.downsample = nn.Identity() if place.shortcut is None else place.shortcut

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """Runs the block.

        Args:
            x: Input.
            identity: Output of the shortcut, where several candidates share one (the supernet); None to compute it.

        Shape:
            x: (N, in_channels, H, W); output: (N, planes * expansion, ceil(H / stride), ceil(W / stride))
        """
        if identity is None:
            identity = self.downsample(x)
        return self.act3(self.branch(x) + identity)

    def branch(self, x: Tensor) -> Tensor:
        """The residual branch alone, without shortcut and activation. Shape: as `forward`."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.pool(self.conv2(x))
        return self.drop_path(self.bn3(self.conv3(x)))

    def last_norm(self) -> nn.Module:
        return self.bn3


@register_builder(Candidate)
def build_bottleneck(candidate: Candidate, place: Place) -> Block:
    """Builds a bottleneck at a place."""
    return Skip() if candidate.skip else Bottleneck(candidate, place)


def make_shortcut(
    space: SearchSpace, position: int, stride: int | None = None, layers: Layers = DEFAULT_LAYERS
) -> nn.Module | None:
    """The projection shortcut of a position: average pooling, 1x1 convolution, BN; None if there is none.

    Args:
        space: The space.
        position: Position from 0.
        stride: Stride, where a dilated network changes that of the space.
    """
    if not space.has_projection(position):
        return None
    stage, _ = space.stage_of(position)
    stride = space.strides[stage] if stride is None else stride
    channels = space.out_channels(position)
    # The released key names have index 0 without parameters, even where it does nothing.
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(space.in_channels(position), channels, 1, bias=False), layers.norm(channels))


def make_candidate(
    space: SearchSpace,
    position: int,
    choice: int,
    *,
    shortcut: nn.Module | None = None,
    stride: int | None = None,
    dilation: int = 1,
    drop_path: float = 0.0,
    layers: Layers = DEFAULT_LAYERS,
) -> Block:
    """Builds one candidate at one position; the arguments are those of `pinas_zoo.models.mixed.make_block`.

    Raises:
        ValueError: The kind of the candidate has no builder.
    """
    candidate = space.candidates[choice]
    if type(candidate) not in BUILDERS:
        raise ValueError(f'no builder is registered for {candidate}: see pinas_zoo.models.kinds.register_builder')
    stage, block = space.stage_of(position)
    place = Place(
        space.in_channels(position),
        space.out_channels(position),
        space.planes[stage],
        space.changes_shape(position),
        stride=(space.strides[stage] if block == 0 else 1) if stride is None else stride,
        dilation=dilation,
        # As released: the first block of every stage but stage 1, even where dilation has removed its stride.
        pool=block == 0 and space.strides[stage] > 1,
        min_attention_width=space.min_attention_width,
        shortcut=shortcut,
        drop_path=drop_path,
        layers=layers,
    )
    return BUILDERS[type(candidate)](candidate, place)


class Skeleton(nn.Module):
    """Base of backbone and supernet: the space and its stem.

    Args:
        space: The space.
        in_chans: Image channels.
        layers: Activation and normalisation.
    """

    def __init__(self, space: SearchSpace, in_chans: int = 3, layers: Layers = DEFAULT_LAYERS) -> None:
        super().__init__()
        self.space, self.in_chans = space, in_chans
        kernel, padding = space.stem_kernel, space.stem_kernel // 2
        self.patchify = nn.PixelUnshuffle(space.stem_patch) if space.stem_patch > 1 else nn.Identity()
        stem: list[nn.Module] = []
        channels, stride = in_chans * space.stem_patch**2, space.stem_stride
        for width in space.stem_widths:
            if stem:
                stem += [layers.norm(channels), layers.act()]
            stem.append(nn.Conv2d(channels, width, kernel, stride=stride, padding=padding, bias=False))
            channels, stride = width, 1
        self.conv1 = nn.Sequential(*stem)
        self.bn1 = layers.norm(channels)
        self.act1 = layers.act()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if space.stem_pool else nn.Identity()

    def stem_modules(self) -> tuple[nn.Module, ...]:
        """The stem's modules in order."""
        return self.patchify, self.conv1, self.bn1, self.act1, self.maxpool

    def forward_stem(self, x: Tensor) -> Tensor:
        """Shape: (N, in_chans, H, W) -> (N, stem_widths[-1], H / stem_reduction, W / stem_reduction)"""
        return self.maxpool(self.act1(self.bn1(self.conv1(self.patchify(x)))))


def make_final(space: SearchSpace, layers: Layers = DEFAULT_LAYERS) -> nn.Module:
    """The convolution after the last stage, with BN and activation; an identity where the space has none."""
    if not space.final_width:
        return nn.Identity()
    last = nn.Conv2d(space.out_channels(space.num_positions - 1), space.final_width, 1, bias=False)
    return nn.Sequential(last, layers.norm(space.final_width), layers.act())


def init_weights(module: nn.Module, zero_init_last: bool = False) -> None:
    """Initialises a network as the release does.

    Convolutions: normal, fan-out (of one group where they are depthwise), ReLU gain. Biases, BN and linear layers keep
    torch's defaults.

    Args:
        module: Network whose modules are walked.
        zero_init_last: Start every block as its shortcut (the last BN's weight is 0), as the supernet does.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            if child.groups == child.in_channels > 1:
                nn.init.normal_(child.weight, std=math.sqrt(2 * child.groups / (child.weight.numel())))
            else:
                nn.init.kaiming_normal_(child.weight, mode='fan_out', nonlinearity='relu')
        elif zero_init_last and isinstance(child, Block) and child.residual and (norm := child.last_norm()) is not None:
            nn.init.zeros_(norm.weight)
