"""What mmsegmentation lacks for the released DeepLabV3: its ASPP head, and the multi-scale test of its results."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from pinas_zoo.mm import checkpoint_loader as weights  # noqa: F401  lets mmengine read pinas:// and .safetensors
from pinas_zoo.registry import MODELS

__all__ = ['ReleasedASPPHead', 'ReleasedEncoderDecoder']


@MODELS.register_module()
class ReleasedASPPHead(BaseDecodeHead):
    """ASPP as in the released segmentation networks.

    mmseg's ASPPHead puts the pooled branch first and feeds the concatenation directly into the 3x3. Here that branch
    is last, and a 1x1 projection with channel dropout precedes the 3x3. Released checkpoints fit after renaming.

    Args:
        dilations: Dilation of each branch; 1 is a 1x1 convolution.
        project_dropout: Channel dropout after the projection.
        dropout_ratio: Dropout before the classifier.
        align_corners: As released.
        **kwargs: Arguments of mmseg's BaseDecodeHead: in_channels, channels, num_classes, norm_cfg ...

    Shape:
        features, of which ``in_index`` is (N, in_channels, h, w) -> (N, num_classes, h, w)
    """

    def __init__(
        self,
        dilations: tuple[int, ...] = (1, 12, 24, 36),
        project_dropout: float = 0.5,
        dropout_ratio: float = 0.1,
        align_corners: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(dropout_ratio=dropout_ratio, align_corners=align_corners, **kwargs)
        layer = dict(conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)
        self.branches = nn.ModuleList(
            ConvModule(self.in_channels, self.channels, 1, **layer)
            if rate == 1
            else ConvModule(self.in_channels, self.channels, 3, padding=rate, dilation=rate, **layer)
            for rate in dilations
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(self.in_channels, self.channels, 1, **layer))
        self.project = ConvModule((len(dilations) + 1) * self.channels, self.channels, 1, **layer)
        self.project_dropout = nn.Dropout2d(project_dropout)
        self.bottleneck = ConvModule(self.channels, self.channels, 3, padding=1, **layer)
        self.dropout = nn.Dropout(dropout_ratio)  # of single elements, whereas mmseg drops channels

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        x = self._transform_inputs(inputs)
        pooled = F.interpolate(self.pooled(x), x.shape[2:], mode='bilinear', align_corners=self.align_corners)
        x = torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1)
        return self.cls_seg(self.bottleneck(self.project_dropout(self.project(x))))


@MODELS.register_module()
class ReleasedEncoderDecoder(EncoderDecoder):
    """EncoderDecoder with the released multi-scale test.

    With ``test_cfg=dict(mode='multi-scale', base_size=, crop_size=, scales=, flip=)`` an image, at its original size,
    is resized so that its long side is ceil(base x scale), covered by windows of the crop size with a stride of two
    thirds of it, and padded with black. The logits of a window and of its mirror image are added, then exponentiated;
    windows are averaged, scales summed.

    Shape:
        inference: (N, 3, H, W), normalised -> (N, num_classes, H, W), scores
    """

    def inference(self, inputs: Tensor, batch_img_metas: list[dict[str, Any]]) -> Tensor:
        if self.test_cfg['mode'] != 'multi-scale':
            return super().inference(inputs, batch_img_metas)
        height, width = inputs.shape[2:]
        scores = inputs.new_zeros(len(inputs), self.out_channels, height, width)
        for scale in self.test_cfg['scales']:
            long = math.ceil(self.test_cfg['base_size'] * scale)
            longest = max(height, width)
            size = tuple(long if side == longest else int(side * long / longest + 0.5) for side in (height, width))
            scaled = F.interpolate(inputs, size, mode='bilinear', align_corners=True)
            scores += F.interpolate(self.score_windows(scaled), (height, width), mode='bilinear', align_corners=True)
        return scores

    def score_windows(self, x: Tensor) -> Tensor:
        """Average of the exponentiated logits of all windows. Shape: (N, 3, h, w) -> (N, num_classes, h, w)"""
        crop, (height, width) = self.test_cfg['crop_size'], x.shape[2:]
        stride = int(crop * 2 / 3)
        x = self.pad_black(x, max(height, crop), max(width, crop))
        scores = x.new_zeros(len(x), self.out_channels, *x.shape[2:])
        count = x.new_zeros(1, 1, *x.shape[2:])
        tops, lefts = (range(0, math.ceil((side - crop) / stride) * stride + 1, stride) for side in x.shape[2:])
        for top in tops:
            for left in lefts:
                window = x[:, :, top : top + crop, left : left + crop]
                high, wide = window.shape[2:]
                part = self.score_window(self.pad_black(window, crop, crop))
                scores[:, :, top : top + high, left : left + wide] += part[:, :, :high, :wide]
                count[:, :, top : top + high, left : left + wide] += 1
        return (scores / count)[:, :, :height, :width]

    def score_window(self, x: Tensor) -> Tensor:
        """exp of the sum of the logits and those of the mirror image. Shape: (N, 3, h, w) -> (N, num_classes, h, w)"""
        metas = [dict(img_shape=x.shape[2:])] * len(x)
        logits = self.encode_decode(x, metas)
        if self.test_cfg.get('flip', False):
            logits = logits + self.encode_decode(x.flip(3), metas).flip(3)
        return logits.exp()

    def pad_black(self, x: Tensor, height: int, width: int) -> Tensor:
        """Pads to the right and bottom with the value of a black pixel after normalisation."""
        down, right = height - x.shape[2], width - x.shape[3]
        if not down and not right:
            return x
        black = (-self.data_preprocessor.mean / self.data_preprocessor.std).to(x).view(1, -1, 1, 1)
        return F.pad(x - black, (0, right, 0, down)) + black
