"""The building blocks of every network here: stem, split attention, bottleneck, projection shortcut.

Written from the shapes in the papers (Pi-NAS, Peng et al., ICCV 2021; ResNeSt, Zhang et al., 2020). Module names are
those of the released checkpoints (conv1, bn1, conv2.conv, conv2.bn0, ...), so that released keys need no renaming.
"""

from __future__ import annotations

import torch
import torch.fx
from timm.layers import DropPath
from torch import Tensor, nn

from pinas_zoo.models.layers import DEFAULT_LAYERS, Layers
from pinas_zoo.space import Candidate, SearchSpace

__all__ = [
    'Bottleneck',
    'Skeleton',
    'Skip',
    'SplitAttention',
    'init_weights',
    'make_candidate',
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


class Bottleneck(nn.Module):
    """Bottleneck with split attention and average-down; one candidate of a position.

    Args:
        in_channels: Input channels.
        planes: Planes of the stage; the output has ``planes * expansion`` channels.
        candidate: Radix, cardinality, base width and kernel.
        stride: Stride, taken by the average pooling after the 3x3.
        dilation: Dilation of the 3x3.
        pool: Whether the 3x3 average pooling follows the 3x3 convolution. The first block of a dilated stage keeps
            it at stride 1 (as released).
        shortcut: Shortcut module; None where the caller passes `identity` or the shape does not change.
        drop_path: Probability of dropping the residual branch of a sample while training.
        layers: Activation and normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        candidate: Candidate,
        stride: int = 1,
        dilation: int = 1,
        pool: bool = False,
        shortcut: nn.Module | None = None,
        drop_path: float = 0.0,
        expansion: int = 4,
        min_attention_width: int = 32,
        layers: Layers = DEFAULT_LAYERS,
    ) -> None:
        super().__init__()
        width = candidate.group_width(planes)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = layers.norm(width)
        self.act1 = layers.act()
        self.conv2 = SplitAttention(candidate, planes, dilation, min_attention_width, layers)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if pool else nn.Identity()
        self.conv3 = nn.Conv2d(width, planes * expansion, 1, bias=False)
        self.bn3 = layers.norm(planes * expansion)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.act3 = layers.act()
        self.downsample = nn.Identity() if shortcut is None else shortcut

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


class Skip(nn.Module):
    """The candidate that leaves the block out. The activation has already been applied to its input."""

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        return x


def make_shortcut(
    space: SearchSpace, position: int, stride: int | None = None, layers: Layers = DEFAULT_LAYERS
) -> nn.Module | None:
    """The projection shortcut of a position: average pooling, 1x1 convolution, BN; None where there is none.

    Args:
        space: The space.
        position: Position from 0.
        stride: Stride, where a dilated network changes that of the space.
    """
    if not space.has_projection(position):
        return None
    stage, _ = space.stage_of(position)
    stride = space.strides[stage] if stride is None else stride
    channels = space.planes[stage] * space.expansion
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
) -> Bottleneck | Skip:
    """Builds one candidate at one position; the arguments are those of `pinas_zoo.models.mixed.make_block`."""
    candidate = space.candidates[choice]
    if candidate.skip:
        return Skip()
    stage, block = space.stage_of(position)
    return Bottleneck(
        space.in_channels(position),
        space.planes[stage],
        candidate,
        stride=(space.strides[stage] if block == 0 else 1) if stride is None else stride,
        dilation=dilation,
        # As released: the first block of every stage but stage 1, even where dilation has removed its stride.
        pool=block == 0 and space.strides[stage] > 1,
        shortcut=shortcut,
        drop_path=drop_path,
        expansion=space.expansion,
        min_attention_width=space.min_attention_width,
        layers=layers,
    )


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
        first, second, third = space.stem_widths
        kernel, padding = space.stem_kernel, space.stem_kernel // 2
        self.patchify = nn.PixelUnshuffle(space.stem_patch) if space.stem_patch > 1 else nn.Identity()
        self.conv1 = nn.Sequential(
            nn.Conv2d(
                in_chans * space.stem_patch**2, first, kernel, stride=space.stem_stride, padding=padding, bias=False
            ),
            layers.norm(first),
            layers.act(),
            nn.Conv2d(first, second, kernel, padding=padding, bias=False),
            layers.norm(second),
            layers.act(),
            nn.Conv2d(second, third, kernel, padding=padding, bias=False),
        )
        self.bn1 = layers.norm(third)
        self.act1 = layers.act()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if space.stem_pool else nn.Identity()

    def stem_modules(self) -> tuple[nn.Module, ...]:
        """The stem's modules in order."""
        return self.patchify, self.conv1, self.bn1, self.act1, self.maxpool

    def forward_stem(self, x: Tensor) -> Tensor:
        """Shape: (N, in_chans, H, W) -> (N, stem_widths[-1], H / stem_reduction, W / stem_reduction)"""
        return self.maxpool(self.act1(self.bn1(self.conv1(self.patchify(x)))))


def init_weights(module: nn.Module, zero_init_last: bool = False) -> None:
    """Initialises a network as the release does.

    Convolutions: normal, fan-out, ReLU gain. Biases, BN and linear layers keep torch's defaults.

    Args:
        module: Network whose modules are walked.
        zero_init_last: Start every block as its shortcut (the last BN's weight is 0), as the supernet does.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode='fan_out', nonlinearity='relu')
    if zero_init_last:
        for child in module.modules():
            if isinstance(child, Bottleneck):
                nn.init.zeros_(child.bn3.weight)
