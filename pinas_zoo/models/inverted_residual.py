"""Inverted residual and identity, the candidates of mobile search spaces.

timm has an inverted residual too. It is not used because its BN contains the activation (`BatchNormAct2d`), which
torch's conversion to SyncBN drops, and because a branch has to run without its shortcut.
"""

from timm.layers import DropPath, SqueezeExcite
from torch import Tensor, nn

from pinas_zoo.models.kinds import Block, Place, Skip, register_builder
from pinas_zoo.space.candidates import Identity, InvertedResidual

__all__ = ['InvertedResidualBlock', 'Projection']


class InvertedResidualBlock(Block):
    """Expand, depthwise convolution, squeeze-excitation, project (Sandler et al., MobileNetV2, 2018).

    Args:
        candidate: Kernel, expansion and squeeze-excitation.
        place: Channels, stride, dilation, layers.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, candidate: InvertedResidual, place: Place) -> None:
        super().__init__()
        layers, kernel, dilation = place.layers, candidate.kernel, place.dilation
        hidden = place.in_channels * candidate.expansion
        self.residual = not place.changes_shape
        expands = candidate.expansion > 1
        self.conv1 = nn.Conv2d(place.in_channels, hidden, 1, bias=False) if expands else nn.Identity()
        self.bn1 = layers.norm(hidden) if expands else nn.Identity()
        self.act1 = layers.act() if expands else nn.Identity()
        self.conv2 = nn.Conv2d(
            hidden,
            hidden,
            kernel,
            stride=place.stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=hidden,
            bias=False,
        )
        self.bn2 = layers.norm(hidden)
        self.act2 = layers.act()
        self.se = SqueezeExcite(hidden, rd_channels=candidate.se_width(hidden)) if candidate.se else nn.Identity()
        self.conv3 = nn.Conv2d(hidden, place.out_channels, 1, bias=False)
        self.bn3 = layers.norm(place.out_channels)
        self.drop_path = DropPath(place.drop_path) if place.drop_path > 0 and self.residual else nn.Identity()

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        """Runs the block; it has no projection, so `identity` is not used."""
        out = self.branch(x)
        return out + x if self.residual else out

    def branch(self, x: Tensor) -> Tensor:
        """The block without the addition of its input. Shape: as `forward`."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.se(self.act2(self.bn2(self.conv2(x))))
        return self.drop_path(self.bn3(self.conv3(x)))

    def last_norm(self) -> nn.Module:
        return self.bn3


class Projection(Block):
    """Identity where the shape changes: a strided 1x1 convolution with BN.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.residual = False
        self.conv = nn.Conv2d(place.in_channels, place.out_channels, 1, stride=place.stride, bias=False)
        self.bn = place.layers.norm(place.out_channels)

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        return self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def last_norm(self) -> nn.Module:
        return self.bn


@register_builder(InvertedResidual)
def build_inverted_residual(candidate: InvertedResidual, place: Place) -> InvertedResidualBlock:
    """Builds an inverted residual at a place."""
    return InvertedResidualBlock(candidate, place)


@register_builder(Identity)
def build_identity(candidate: Identity, place: Place) -> Block:
    """Builds an identity at a place."""
    return Projection(place) if place.changes_shape else Skip()
