"""A plain ResNet on the nano networks' skeleton, the baseline of the transfer study: same stem, depths and strides.

One class under two names: ``timm.create_model('resnet_nano')`` for `pinas_zoo.Classifier`, and
``backbone=dict(type='pinas_zoo.ResNetBackbone')``. Configs that use one import this module (`custom_imports`).
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from timm.models import register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from pinas_zoo.models.cost import count
from pinas_zoo.registry import MODELS
from pinas_zoo.space import PINAS_NANO
from pinas_zoo.weights.load import load_weights, read_weights

__all__ = ['NanoResNet', 'ResNetBackbone', 'matched_channels', 'resnet_nano']

#: Steps of width in `matched_channels`, as fractions of the nano planes.
WIDTH_STEPS = 96


class NanoResNet(ResNet):
    """timm's ResNet with bottlenecks, a deep stem and no pooling after it: strides 2, 4, 8, 16.

    Args:
        channels: Channels of the 3x3 convolutions, one per stage; a stage outputs four times as many.
        num_classes: Classes; 0 leaves the classifier out.
        output_stride: 8, 16 or 32, as for `PiNASNet`; by themselves these networks end at 16.
        drop_rate: Dropout before the classifier.

    Shape:
        (N, 3, H, W) -> (N, num_classes)
    """

    def __init__(
        self,
        channels: Sequence[int] = PINAS_NANO.planes,
        num_classes: int = 10,
        output_stride: int = 32,
        drop_rate: float = 0.0,
    ) -> None:
        if len(channels) != len(PINAS_NANO.depths):
            raise ValueError(f'channels must be {len(PINAS_NANO.depths)} numbers, one per stage, got {channels}')
        super().__init__(
            Bottleneck,  # type: ignore[arg-type] # timm's annotation names an instance, its code takes the class
            PINAS_NANO.depths,
            num_classes=num_classes,
            # timm counts from the stride of 4 of its stem with pooling.
            output_stride=min(32, 2 * output_stride),
            stem_type='deep',
            stem_width=PINAS_NANO.stem_widths[0],
            channels=tuple(channels),
            drop_rate=drop_rate,
        )
        self.maxpool = nn.Identity()  # type: ignore[assignment] # timm's attribute is inferred as its deepest case


@register_model
def resnet_nano(pretrained: bool = False, **kwargs: Any) -> NanoResNet:
    """The network for timm; it has no published weights."""
    if pretrained:
        raise ValueError('resnet_nano has no pre-trained weights; train configs/transfer/resnet-nano_*.py')
    timms = ('cache_dir', 'pretrained_cfg', 'pretrained_cfg_overlay')  # for weights
    return NanoResNet(**{key: value for key, value in kwargs.items() if key not in timms})


@MODELS.register_module()
class ResNetBackbone(NanoResNet, BaseModule):
    """The network for detectors and segmentors.

    Args:
        channels: See `NanoResNet`.
        out_indices: Stages to return, from 0.
        output_stride: See `NanoResNet`.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE, prefix='net.')``; the features have to fit exactly.

    Shape:
        (N, 3, H, W) -> one (N, 4 * channels[i], H / s_i, W / s_i) for each of `out_indices`
    """

    def __init__(
        self,
        channels: Sequence[int],
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_stride: int = 32,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(channels, 0, output_stride)
        self.out_indices, self.init_cfg = tuple(out_indices), init_cfg

    def init_weights(self, zero_init_last: bool = True) -> None:
        """timm's initialisation at construction, `init_cfg`'s checkpoint when mmengine asks."""
        if not hasattr(self, 'out_indices'):
            super().init_weights(zero_init_last=zero_init_last)
            return
        self._is_init = True
        if self.init_cfg:
            path, prefix = self.init_cfg['checkpoint'], self.init_cfg.get('prefix', '')
            state, _ = read_weights(path)
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            print_log(load_weights(self, own, str(path), ('fc.',)).summary(), logger='current')

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override] # mm's backbones give several
        features = self.forward_intermediates(x, [i + 1 for i in self.out_indices], intermediates_only=True)
        assert isinstance(features, list)
        return tuple(features)


def matched_channels(macs: int, size: int) -> tuple[int, ...]:
    """The channels, in the nano planes' proportions, with which the network comes closest to a number of MACs.

    Args:
        macs: Multiply-accumulates of one image, without a classifier.
        size: Side of that image in px.

    Raises:
        ValueError: Networks from half to twice the nano planes' width do not reach it.
    """

    def channels(width: int) -> tuple[int, ...]:
        return tuple(round(planes * width / WIDTH_STEPS) for planes in PINAS_NANO.planes)

    def cost(width: int) -> int:
        with torch.device('meta'):  # only shapes are needed
            return count(NanoResNet(channels(width), num_classes=0), size).macs

    widths = range(WIDTH_STEPS // 2, 2 * WIDTH_STEPS + 1)
    if not cost(widths[0]) <= macs <= cost(widths[-1]):
        raise ValueError(f'MACs must be in {cost(widths[0])}..{cost(widths[-1])} at {size} px, got {macs}')
    above = bisect_left(widths, macs, key=cost)
    return channels(min(widths[max(above - 1, 0) : above + 1], key=lambda width: abs(cost(width) - macs)))
